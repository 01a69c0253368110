"""Pruning of single weights: as many zeros as asked for, where asked for, and no later step revives one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from armlet.analysis.sparsity import Pattern, magnitude_masks, pattern_mask, weight_tensors
from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.export import export_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build, load_network, save_network
from armlet.models.quantization import quantized_values
from armlet.passes import PassContext, PostconditionFailed, PreconditionFailed, manager, run_pass
from armlet.passes.base import PassResult
from armlet.progress import Silent
from armlet.registry import Registry
from armlet.spec.passes import ClusterWeights, Distill, PruneWeights, QuantizeStatic, order_problems
from armlet.train import evaluate

TRAIN = {"epochs": 2, "batch_size": 64}
SEQUENCE = (InputSpec("input", (10, 6)), InputSpec("length", (), "int32", 11))
TEXT = (InputSpec("input", (10,), "int32", 24), InputSpec("length", (), "int32", 11))
PICTURE, LATENT = (InputSpec("input", (1, 12, 12)),), (InputSpec("input", (16,)),)

FAMILIES = {
    "fnn": ("fnn", {"hidden": [16, 12]}, PICTURE, (4,)),
    "cnn": ("cnn", {"channels": [8, 12], "block": "separable"}, PICTURE, (4,)),
    "rnn": ("rnn", {"hidden": [12, 8]}, SEQUENCE, (4,)),
    "lstm": ("lstm", {"hidden": [12], "bidirectional": True, "projection": 8}, SEQUENCE, (4,)),
    "transformer": ("transformer", {"width": 16, "heads": 2, "depth": 1}, TEXT, (4,)),
    "autoencoder": ("autoencoder", {"channels": [4, 8], "code": 8}, PICTURE, (1, 12, 12)),
    "gan": ("gan", {"channels": [16, 8]}, LATENT, (1, 12, 12)),
}


def prune(**options: object) -> PruneWeights:
    return PruneWeights(kind="prune_weights", **options)


def samples_of(inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...], n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    arrays = []
    for spec in inputs:
        if spec.dtype == "int32":
            arrays.append(rng.integers(1, spec.n_values, (n, *spec.shape)).astype("int32"))
        else:
            arrays.append(rng.standard_normal((n, *spec.shape), "float32"))
    return Samples(tuple(arrays), rng.random((n, *output_shape), "float32"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Network, PassContext]:
    """A network of each family with what a pass needs; its task is to answer numbers."""
    kind, options, inputs, output_shape = FAMILIES[request.param]
    network = build(architecture_of(kind, options, inputs, output_shape), seed=3)
    task = Task("forecast", output_shape)
    parts = (samples_of(inputs, output_shape, n, seed) for seed, n in enumerate((96, 32, 32)))
    splits = Splits(*parts, inputs, task)
    return network, PassContext(splits, network, Scorer(task), 0, tmp_path / "work", Silent())


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    module = network.module
    return {w.parameter: module.get_parameter(w.parameter).detach() for w in weight_tensors(module)}


def sparsity_of(network: Network) -> dict[str, float]:
    return {name: float((value == 0).float().mean()) for name, value in weights_of(network).items()}


def test_every_family_is_pruned_in_each_of_its_weights(family, tmp_path):
    network, context = family
    pruned, record = run_pass(prune(sparsity=0.7), network, context)
    # All but biases, normalisations, positions and the factors of a generator.
    left = {name for name, p in network.module.named_parameters() if p.dim() > 1} - set(weights_of(network))
    assert all("bias" in name or "positions" in name for name in left)
    for name, value in weights_of(pruned).items():
        assert int((value == 0).sum()) == int(0.7 * value.numel() + 1e-9), name
        kept = value != 0
        torch.testing.assert_close(value[kept], weights_of(network)[name][kept], rtol=0, atol=0)
        assert weights_of(network)[name][~kept].abs().max() <= value[kept].abs().min()
    assert record.after.stored_bytes < 0.5 * record.before.stored_bytes
    assert record.after.weight_bytes == record.before.weight_bytes
    assert "stored smaller, not faster" in record.notes[0]
    save_network(pruned, tmp_path / "saved")
    assert load_network(tmp_path / "saved").constraints == pruned.constraints != ()
    exported = export_onnx(pruned, context.splits.validation, tmp_path / "exported")
    assert exported.max_abs_difference <= exported.tolerance


@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.5, "method": "sparsegpt", "calibration_samples": 32},
        {"pattern": "2:4"},
        {"pattern": "2:4", "method": "sparsegpt", "calibration_samples": 32},
    ],
    ids=str,
)
def test_every_family_takes_every_method(family, options):
    network, context = family
    pruned, record = run_pass(prune(**options), network, context)
    # What the pass ensures was checked; here that it had something to do.
    assert float(torch.cat([w.flatten() for w in weights_of(pruned).values()]).eq(0).float().mean()) > 0.2
    by_magnitude = {note.partition(" ")[0] for note in record.notes if "by magnitude" in note}
    chosen = {w.parameter for w in weight_tensors(pruned.module)} - {
        note.partition(" ")[0] for note in record.notes if "keeps its weights" in note
    }
    spread = (nn.ConvTranspose2d, nn.Embedding)
    unseen = {
        w.parameter
        for w in weight_tensors(pruned.module)
        if w.parameter.endswith("projection_weight")
        or isinstance(pruned.module.get_submodule(w.layer), spread)
    }
    assert by_magnitude == (unseen & chosen if options.get("method") == "sparsegpt" else set())


def test_every_family_keeps_zeros_and_shared_values_through_training(family):
    network, context = family
    cubic = prune(sparsity=0.6, schedule="cubic", every=1, finetune=TRAIN)
    pruned, _ = run_pass(cubic, network, context)
    cluster = ClusterWeights(kind="cluster_weights", values=8, finetune=TRAIN)
    shared, record = run_pass(cluster, pruned, replace(context, work=context.work / "shared"))
    assert record.after.stored_bytes < record.before.stored_bytes
    again, _ = run_pass(
        Distill(kind="distill", train=TRAIN), shared, replace(context, work=context.work / "again")
    )
    for name, value in weights_of(again).items():
        assert int((value == 0).sum()) == int(0.6 * value.numel() + 1e-9), name
        assert torch.equal(value == 0, weights_of(pruned)[name] == 0)
        assert len(torch.unique(value)) <= 8
        assert not torch.equal(value, weights_of(shared)[name]), name  # or nothing was trained


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([(2, 4), (4, 8), (1, 4), (3, 5)]),
    st.integers(0, 2),
    st.integers(0, 2**31),
)
def test_a_pattern_leaves_the_greatest_n_of_each_m(rows, groups, n_m, axis, seed):
    pattern = Pattern(*n_m)
    shape = [rows, 3, 2]
    shape[axis] = groups * pattern.m
    weight = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
    mask = pattern_mask(weight, pattern, axis).numpy()
    values = np.moveaxis(np.abs(weight.numpy()), axis, -1).reshape(-1, pattern.m)
    kept = np.moveaxis(mask, axis, -1).reshape(-1, pattern.m)
    assert (kept.sum(axis=1) == pattern.n).all()
    assert (np.where(kept, values, np.inf).min(axis=1) >= np.where(kept, 0, values).max(axis=1)).all()


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=4),
    st.floats(0, 0.999),
    st.sampled_from(["layer", "global"]),
    st.integers(0, 2**31),
)
def test_the_least_weights_go_and_no_layer_is_emptied(sizes, sparsity, scope, seed):
    rng = np.random.default_rng(seed)
    weights = {str(i): torch.from_numpy(rng.standard_normal(n)) for i, n in enumerate(sizes)}
    masks = magnitude_masks(weights, sparsity, scope)
    assert all(mask.any() for mask in masks.values())
    n_gone = sum(int((~mask).sum()) for mask in masks.values())
    if scope == "layer":
        assert n_gone == sum(int(sparsity * n + 1e-9) for n in sizes)
    else:
        assert n_gone <= int(sparsity * sum(sizes) + 1e-9)
    for name, mask in masks.items():
        if not mask.all():
            assert weights[name][~mask].abs().max() <= weights[name][mask].abs().min()


def test_global_scope_takes_more_from_a_layer_of_weak_weights(tiny_network, context):
    network = tiny_network("fnn")
    with torch.no_grad():
        network.module.layer1.linear.weight.mul_(0.01)
    pruned, record = run_pass(prune(sparsity=0.5, scope="global"), network, context(network))
    shares = sparsity_of(pruned)
    assert shares["layer1.linear.weight"] > 0.5
    assert shares["layer2.linear.weight"] == 0
    assert any(note.startswith("layer1.linear.weight: ") for note in record.notes)


def test_excluded_layers_and_those_without_whole_groups_are_left_and_named(tiny_network, context):
    network = tiny_network(channels=[6, 8, 4])
    pruned, record = run_pass(prune(pattern="2:4", exclude=("stage3",)), network, context(network))
    shares = sparsity_of(pruned)
    assert shares["stage1.block1.conv.weight"] == shares["stage3.block1.conv.weight"] == 0
    assert shares["classifier.weight"] == 0.5
    assert "stage1.block1.conv.weight keeps its weights: 1 inputs are no groups of 4" in record.notes
    assert "stage3.block1.conv.weight keeps its weights: excluded" in record.notes
    kept = {c.parameter for c in pruned.constraints}
    assert "stage3.block1.conv.weight" not in kept


def test_a_pattern_that_fits_nothing_is_refused(tiny_network, context):
    network = tiny_network(channels=[6, 10])
    with pytest.raises(PreconditionFailed, match="there is no weight to prune"):
        run_pass(prune(pattern="4:8"), network, context(network))


def test_the_cubic_schedule_ends_at_the_sparsity_and_gives_back_what_pruning_took(
    tiny_network, context, splits
):
    network = tiny_network("fnn", hidden=[24])
    options = {"epochs": 15, "batch_size": 32, "learning_rate": 1e-2}
    cubic = prune(sparsity=0.9, schedule="cubic", every=3, finetune=options)
    pruned, record = run_pass(cubic, network, context(network))
    for name, value in weights_of(pruned).items():
        assert int((value == 0).sum()) == int(0.9 * value.numel() + 1e-9), name
    at_once, _ = run_pass(prune(sparsity=0.9), network, context(network))
    assert record.score_after.value > 0.9
    assert record.score_after.value > evaluate(at_once, splits.test, Scorer(splits.task), "test").value
    assert len(record.history) == 15


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_the_cubic_schedule_ends_in_a_pattern_too(pattern, tiny_network, context):
    network = tiny_network("fnn", hidden=[16, 8])
    options = {"epochs": 6, "batch_size": 32}
    cubic = prune(pattern=pattern, schedule="cubic", every=2, finetune=options)
    pruned, _ = run_pass(cubic, network, context(network))
    share = {"2:4": 0.5, "1:4": 0.75}[pattern]
    assert set(sparsity_of(pruned).values()) == {share}


def test_zeros_hold_through_fine_tuning_distillation_and_quantisation(network, context, splits):
    pruned, _ = run_pass(prune(sparsity=0.75, finetune=TRAIN), network, context(network))
    zeros = {name: value == 0 for name, value in weights_of(pruned).items()}
    distilled, _ = run_pass(Distill(kind="distill", train=TRAIN), pruned, context(network))
    for name, value in weights_of(distilled).items():
        assert not torch.equal(value, weights_of(pruned)[name])  # or nothing was trained
        assert torch.equal(value == 0, zeros[name]), name
    quantize = QuantizeStatic(kind="quantize_static", calibration_samples=48)
    quantized, record = run_pass(quantize, distilled, context(network))
    assert quantized.quantization is not None
    integers = {p.parameter: p for p in quantized.quantization.parameters if p.dtype == "int8"}
    assert set(integers) == set(zeros)
    for name, parameter in integers.items():
        value = quantized.module.get_parameter(name).detach().numpy()
        found = quantized_values(value, parameter)
        assert (found[zeros[name].numpy()] == 0).all()
    assert record.after.stored_bytes < 0.7 * record.after.weight_bytes


def test_a_pass_that_revives_zeros_breaks_the_contract(tiny_network, context, monkeypatch):
    network = tiny_network("fnn")
    pruned, _ = run_pass(prune(sparsity=0.5), network, context(network))

    class Revives:
        never_raises = ()

        def requires(self, network, context):
            return ()

        def run(self, network, context):
            with torch.no_grad():
                network.module.layer1.linear.weight.fill_(0.1)
            return PassResult(network)

        def ensures(self, before, after):
            return ()

    passes = Registry("pass")
    passes.register("quantize_static")(lambda options: Revives())
    monkeypatch.setattr(manager, "PASSES", passes)
    with pytest.raises(PostconditionFailed, match=r"\d+ zeros of layer1.linear.weight.*no longer zero"):
        run_pass(QuantizeStatic(kind="quantize_static"), pruned, context(network))


def test_weights_shared_by_two_layers_are_named_once():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    assert [w.parameter for w in weight_tensors(module)] == ["0.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either a sparsity or a pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "give either a sparsity or a pattern"),
        ({"pattern": "4:4"}, "4:4 leaves every weight"),
        ({"pattern": "2:4", "scope": "global"}, "leave scope out"),
        ({"sparsity": 0.5, "scope": "global", "method": "sparsegpt"}, "one layer at a time"),
        ({"sparsity": 0.5, "schedule": "cubic"}, "add finetune"),
        ({"sparsity": 0.5, "schedule": "cubic", "finetune": {"patience": 2}}, "set finetune.patience to 0"),
        ({"sparsity": 0.5, "schedule": "cubic", "finetune": {}, "begin": 0.8}, "must begin before it ends"),
        ({"pattern": "2:4", "schedule": "cubic", "method": "sparsegpt"}, "prunes at once"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        prune(**options)


def test_channels_are_pruned_before_weights_and_weights_before_they_share_values():
    weights, shared = prune(sparsity=0.5), ClusterWeights(kind="cluster_weights")
    channels = {"kind": "prune_channels", "ratio": 0.5}
    from armlet.spec.passes import PruneChannels

    structured = PruneChannels(**channels)
    assert order_problems((structured, weights, shared)) == []
    ((place, said),) = order_problems((weights, structured))
    assert place == 1
    assert said.startswith(
        "prune_channels can't come after prune_weights (pass 1): channels that go would tear"
    )
    ((place, said),) = order_problems((shared, weights))
    assert place == 1
    assert said.startswith("prune_weights can't come after cluster_weights (pass 1): zeros would be one more")
