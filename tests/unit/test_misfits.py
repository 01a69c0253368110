"""Sections of a recipe that are right by themselves and wrong beside each other are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet.errors import UsageError
from armlet.spec.load import load_recipe

WATCH, SPEECH = "{kind: smartwatch-exercises}", "{kind: japanese-vowels}"
PICTURES = "{kind: fashion-mnist}"
LSTM, CNN = "{kind: lstm}", "{kind: cnn}"
GENERATED, GAN = "{kind: fashion-mnist, task: generation}", "{kind: gan}"
CAUSAL = "{kind: transformer, patch: 5, causal: true}"


@pytest.mark.parametrize(
    ("data", "model", "rest", "problem"),
    [
        (PICTURES, CNN, "stream: {}", "stream: this cnn can't be streamed: it takes its input as a whole"),
        (
            WATCH, "{kind: lstm, bidirectional: true}", "stream: {}",
            "stream: this lstm can't be streamed: it reads backwards, too: use bidirectional: false",
        ),
        (WATCH, LSTM, "stream: {frames: 3}", "stream.frames: smartwatch-exercises's 100 frames can't be taken 3 at a"),
        (SPEECH, LSTM, "stream: {frames: 30}", "stream.frames: japanese-vowels's 29 frames can't be taken 30 at a"),
        (WATCH, CAUSAL, "stream: {frames: 4}", "stream.frames: 4 frames are not whole tokens of 5 (model.patch)"),
        (WATCH, "{kind: transformer, patch: 5}", "stream: {frames: 5}", "stream: this transformer can't be streamed"),
        (PICTURES, "{kind: transformer, causal: true}", "stream: {}", "stream: this transformer can't be streamed"),
        (WATCH, LSTM, "budgets: {step_latency: 1 ms}", "budgets.step_latency: is of a program for streams"),
        (WATCH, CNN, "", "model.kind: a cnn takes pictures, and smartwatch-exercises has sequences"),
        (PICTURES, CNN, "pretrain: {mask: 20 %}", "pretrain: a cnn has no encoder of parts"),
        (PICTURES, CNN, "judge: {model: {kind: cnn}}", "judge: only generated samples need a judge"),
        (
            GENERATED, GAN, "judge: {model: {kind: cnn, channels: [4, 4, 4, 4, 4, 4]}}",
            "judge.model.channels: pictures of 28×28 can't be halved 5 times",
        ),
        (
            GENERATED, GAN, "judge: {model: {kind: cnn}, train: {loss: non_saturating}}",
            "judge.train.loss: non_saturating is not for classification",
        ),
        (
            GENERATED, GAN, "judge: {model: {kind: cnn}, train: {augment: [token_drop]}}",
            "judge.train.augment: token_drop does not fit pictures to classification",
        ),
        (
            GENERATED, GAN, "judge: {model: {kind: cnn}, train: {schedule: one_cycle, warm_up: 10 %}}",
            "judge.train: one_cycle rises over its first quarter by itself: leave warm_up out",
        ),
        (WATCH, LSTM, "train: {warm_up: 10 %}", "train: one_cycle rises over its first quarter by itself"),
        (WATCH, LSTM, "train: {augment: [flip]}", "train.augment: flip does not fit sequences"),
        (WATCH, LSTM, "train: {loss: mse}", "train.loss: mse is not for classification"),
        (WATCH, LSTM, "train: {cutmix: 1.0}", "train.cutmix: is for the classification of pictures"),
        (SPEECH, LSTM, "train: {mixup: 1.0}", "train.mixup: is for rows, pictures and sequences of one length"),
        (SPEECH, LSTM, "train: {augment: [speed]}", "train.augment: speed is for sequences of one length"),
        ("{kind: shuttle}", "{kind: autoencoder}", "train: {loss: bce}", "train.loss: bce is of answers from 0 to 1"),
        (
            "{kind: fashion-mnist, task: denoising}", "{kind: autoencoder, code: 0, variational: true}", "",
            "model.variational: draws the code: use a code above 0",
        ),
        (WATCH, LSTM, "pretrain: {train: {mixup: 1.0}}", "pretrain.train.mixup: does nothing where hidden parts"),
        (
            "{kind: smartwatch-exercises, fraction: 50 %}", LSTM,
            "passes: [{kind: distill, unlabeled: true, train: {mixup: 1.0}}]",
            "passes.0.unlabeled: samples without labels can't be mixed",
        ),
        (
            "{kind: smartwatch-exercises, fraction: 50 %}", LSTM,
            "passes: [{kind: quantize_aware, alpha: 50 %, unlabeled: true, train: {mixup: 1.0}}]",
            "passes.0.unlabeled: samples without labels can't be mixed",
        ),
        (
            WATCH, LSTM, "passes: [{kind: prune_channels, ratio: 20 %, group_lasso: {strength: 1, loss: mse}}]",
            "passes.0.group_lasso.loss: mse is not for classification",
        ),
        (
            WATCH, LSTM, "passes: [{kind: distill, unlabeled: true}]",
            "passes.0.unlabeled: every sample keeps its label: set data.fraction or data.per_class",
        ),
        (WATCH, LSTM, "budgets: {psnr: 20 dB}", "budgets.psnr: smartwatch-exercises is scored by accuracy"),
        (
            WATCH, LSTM, "passes: [{kind: distill, terms: [{kind: logits}, {kind: hidden_states}]}]\n"
            "train: {loss: mse}", "train.loss: mse is not for classification",
        ),
        (
            PICTURES, CNN, "passes: [{kind: distill, terms: [{kind: outputs}, {kind: hidden_states}]}]",
            "passes.0.terms.1.kind: a cnn has no states of frames or tokens: use features",
        ),
        (
            "{kind: shuttle}", "{kind: autoencoder}", "passes: [{kind: distill, terms: [{kind: logits}]}]",
            "passes.0.terms.0.kind: logits is of classes, and shuttle asks for anomaly: use outputs",
        ),
        (
            "{kind: letter-recognition}", "{kind: fnn}",
            "passes: [{kind: prune_channels, ratio: 0.5, finetune: {distill: {terms: [{kind: attention}]}}}]",
            "passes.0.finetune.distill.terms.0.kind: a fnn has no places to attend to: use features",
        ),
        (
            "{kind: fashion-mnist, per_class: 9}", CNN,
            "passes: [{kind: distill, unlabeled: true, terms: [{kind: decoupled}]}]",
            "passes.0.terms.0.kind: decoupled needs the class of every sample: set unlabeled to false",
        ),
        (
            PICTURES, CNN, "passes: [{kind: prune_channels, ratio: 0.5}, {kind: quantize_static}]\nprecision: float16",
            "precision: passes.1 quantises, and float16 is for networks of real numbers: use float32",
        ),
        (WATCH, "{kind: lstm, hidden: [8], projection: 8}", "", "model.projection: is not narrower than the 8 units"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_named(tmp_path: Path, data, model, rest, problem) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: tiny\ndata: {data}\nmodel: {model}\n{rest}\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(file)
    (found,) = [line for line in str(caught.value).splitlines() if line.strip()]
    assert problem in found


def test_other_schedules_warm_up(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: tiny\ndata: {WATCH}\nmodel: {LSTM}\ntrain: {{schedule: cosine, warm_up: 10 %}}\n")
    assert load_recipe(file).train.warm_up == 0.1


@pytest.mark.parametrize(
    ("data", "model", "frames"),
    [(WATCH, LSTM, 25), (SPEECH, LSTM, 4), (WATCH, CAUSAL, 10), ("{kind: movie-sentences}", CAUSAL, 1)],
)
def test_a_stream_that_fits_is_taken(tmp_path: Path, data, model, frames) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"name: tiny\ndata: {data}\nmodel: {model}\nstream: {{frames: {frames}}}\n")
    stream = load_recipe(file).stream
    assert stream is not None
    assert stream.frames == frames


FINETUNE = "passes: [{kind: prune_channels, ratio: 50 %%, finetune: {%s}}]"


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("train: {focal_gamma: 1}", "focal_gamma does nothing without loss: focal: leave it out"),
        ("train: {huber_delta: 2}", "huber_delta does nothing without loss: huber"),
        ("train: {momentum: 0.5, optimizer: adam}", "momentum does nothing without optimizer: sgd or rmsprop"),
        ("train: {betas: [0.8, 0.9], optimizer: sgd}", "betas does nothing without optimizer: adam, adamw or lion"),
        (
            "train: {step_every: 20 %, step_factor: 0.5}",
            "step_every and step_factor do nothing without schedule: step: leave them out",
        ),
        ("train: {critic_steps: 2}", "train.critic_steps: does nothing for classification: leave it out"),
        (FINETUNE % "gradient_penalty: 1", "passes.0.finetune.gradient_penalty: does nothing for classification"),
        (
            "passes: [{kind: prune_channels, ratio: 50 %, samples: 9}]",
            "samples does nothing without importance: taylor",
        ),
        (
            "passes: [{kind: prune_weights, sparsity: 50 %, calibration_samples: 9}]",
            "calibration_samples does nothing without method",
        ),
        (
            "passes: [{kind: prune_weights, sparsity: 50 %, begin: 10 %, every: 2}]",
            "begin and every do nothing without schedule: cubic",
        ),
        (
            "passes: [{kind: factorize, ratio: 50 %, nearest: weights, calibration_samples: 9}]",
            "does nothing without nearest: results",
        ),
        ("passes: [{kind: distill, alpha: 0 %, temperature: 2}]", "temperature does nothing without alpha above 0 %"),
        ("passes: [{kind: distill, teacher: current, teachers: 2}]", "teachers does nothing without teacher: trained"),
        (
            "passes: [{kind: distill, temperature: 2, terms: [{kind: outputs}]}]",
            "temperature does nothing without a term of softened",
        ),
        ("passes: [{kind: quantize_static, group_size: 8}]", "group_size does nothing without weights: per_group"),
        ("passes: [{kind: quantize_static, percentile: 99}]", "percentile does nothing without observer: percentile"),
        (
            "passes: [{kind: quantize_static, averaging: 0.5}]",
            "averaging does nothing without observer: moving_average",
        ),
        (
            "passes: [{kind: quantize_static, rounding: gptq, rounding_steps: 5}]",
            "rounding_steps does nothing without rounding: adaround",
        ),
        ("passes: [{kind: quantize_static, deviations: 3}]", "deviations does nothing without calibration: batch_norm"),
        (
            "passes: [{kind: quantize_static, calibration: batch_norm, input_range: [0, 1], observer: mse}]",
            "observer does nothing without calibration: data",
        ),
        (
            "passes: [{kind: quantize_static, mode: weight_only, activations: symmetric}]",
            "activations does nothing without integer",
        ),
        (
            "passes: [{kind: quantize_aware, train: {epochs: 2}, freeze_after: 3}]",
            "freeze_after: 3 does nothing in 2 epochs",
        ),
        ("passes: [{kind: quantize_aware, teachers: 2}]", "teachers does nothing without alpha above 0 %"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused_with_what_it_needs(section, problem, tmp_path: Path):
    file = tmp_path / "idle.yaml"
    file.write_text(f"name: idle\ndata: {PICTURES}\nmodel: {CNN}\n{section}\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_recipe(file)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("train: {label_smoothing: 0.1}", "train.label_smoothing: does nothing for denoising: leave it out"),
        ("passes: [{kind: distill, temperature: 2}]", "passes.0.temperature: softens answers of classes"),
    ],
)
def test_an_option_of_classes_is_refused_where_there_are_none(section, problem, tmp_path: Path):
    file, data = tmp_path / "idle.yaml", "{kind: fashion-mnist, task: denoising}"
    file.write_text(f"name: idle\ndata: {data}\nmodel: {{kind: autoencoder}}\n{section}\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_recipe(file)
    assert problem in str(caught.value)
