"""The shipped data sets, in full: fetched into the shared folder, verified, loaded, refused when damaged."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pydantic import TypeAdapter

from armlet import data
from armlet.data.letter_recognition import csv_of_rda
from armlet.errors import CorruptedFile, UsageError
from armlet.progress import Silent
from armlet.spec.data import DataSpec
from armlet.store import cache_root


@pytest.fixture(scope="module", params=data.kinds())
def fetched(request):
    folder = cache_root() / "data"
    ready, _ = data.fetch(request.param, folder, Silent())
    return request.param, folder, ready


EXPECTED = {
    "electricity-demand": ((96, 8), 13_584, 3_504),
    "fashion-mnist": ((1, 28, 28), 60_000, 10_000),
    "japanese-vowels": ((29, 12), 270, 370),
    "letter-recognition": ((16,), 16_000, 4_000),
    "movie-sentences": ((64,), 8_454, 2_114),
    "shuttle": ((9,), 22_793, 26_304),
    "smartwatch-exercises": ((100, 6), 3_675, 1_002),
}
HIGHEST = {"fashion-mnist": 255, "letter-recognition": 15}


def test_a_fetched_set_has_its_full_size_and_verifies(fetched):
    kind, folder, ready = fetched
    shape, n_train, n_test = EXPECTED[kind]
    assert (ready.inputs[0].shape, ready.n_train, ready.n_test) == (shape, n_train, n_test)
    assert ready.source_digests == data.digests(kind)
    assert ready.licence == data.licence(kind)
    assert data.verify(kind, folder) == []
    assert data.is_fetched(kind, folder)


def test_what_a_recipe_is_checked_against_is_what_the_data_has(fetched):
    kind, folder, ready = fetched
    spec = TypeAdapter(DataSpec).validate_python({"kind": kind})
    splits = data.load(kind, folder, spec.options())
    shape = ready.inputs[0].shape
    assert spec.asks == splits.task.kind
    assert spec.picture == (shape[1:] if len(shape) == 3 else None)
    assert (spec.form == "picture", spec.form == "text") == (
        len(shape) == 3,
        ready.inputs[0].dtype == "int32",
    )
    if ready.class_names:
        assert spec.n_classes == len(ready.class_names)


def test_each_split_is_whole_and_validation_is_still_empty(fetched):
    kind, folder, ready = fetched
    _, n_train, n_test = EXPECTED[kind]
    splits = data.load(kind, folder)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (n_train, 0, n_test)
    assert all(np.isfinite(x).all() for s in (splits.train, splits.test) for x in s.inputs)
    if splits.task.kind == "classification":
        for samples in (splits.train, splits.test):
            counts = np.bincount(samples.labels)
            assert len(counts) == len(splits.task.class_names) == len(set(ready.class_names))
            assert counts.min() >= 24


def test_whole_numbers_become_steps_from_0_to_1(fetched):
    kind, folder, _ = fetched
    if kind not in HIGHEST:
        pytest.skip("its numbers are scaled otherwise")
    (values,) = data.load(kind, folder).test.inputs
    assert (values.min(), values.max()) == (0, 1)
    raw = values[:500] * HIGHEST[kind]
    # a float32 quotient times the divisor is within 2 rounding errors of the whole number
    np.testing.assert_allclose(raw, raw.round(), atol=HIGHEST[kind] * 2e-7)


def test_a_damaged_copy_is_named_and_never_repaired_in_silence(fetched, tmp_path):
    kind, folder, _ = fetched
    shutil.copytree(folder / kind, tmp_path / kind)
    damaged = sorted((tmp_path / kind).iterdir())[-1]
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(CorruptedFile) as caught:
        data.fetch(kind, tmp_path, Silent())
    assert caught.value.file == damaged
    assert [problem.file for problem in data.verify(kind, tmp_path)] == [damaged]


def test_a_malformed_file_can_not_be_read(fetched, tmp_path):
    kind, folder, _ = fetched
    (tmp_path / kind).mkdir()
    for path in (folder / kind).iterdir():
        (tmp_path / kind / path.name).write_bytes(path.read_bytes()[:700])
    with pytest.raises(UsageError, match=r"is not |has the shape"):
        data.load(kind, tmp_path)


def test_the_first_rows_are_the_published_ones(fetched):
    kind, folder, _ = fetched
    splits = data.load(kind, folder)
    if kind == "letter-recognition":
        assert splits.task.class_names[splits.train.labels[0]] == "T"
        expected = [2, 8, 3, 5, 1, 8, 13, 0, 6, 6, 10, 8, 0, 8, 0, 8]
        np.testing.assert_array_equal((splits.train.inputs[0][0] * 15).round(), expected)
    elif kind == "fashion-mnist":
        assert [splits.task.class_names[c] for c in splits.train.labels[:3]] == [
            "Ankle boot",
            "T-shirt/top",
            "T-shirt/top",
        ]


def test_an_unknown_set_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"unknown data set 'fashon-mnist'.*did you mean 'fashion-mnist'"):
        data.fetch("fashon-mnist", tmp_path, Silent())


def test_the_sets_are_those_that_a_recipe_can_name():
    from typing import get_args

    members = get_args(get_args(DataSpec)[0])
    assert data.kinds() == tuple(sorted(get_args(m.model_fields["kind"].annotation)[0] for m in members))


def test_bytes_that_are_not_the_r_data_frame_are_refused():
    pytest.importorskip("rdata")
    with pytest.raises(ValueError, match="not R data"):
        csv_of_rda(b"\x1f\x8b nonsense")


def samples_of(kind: str, **options: object):
    return data.load(kind, cache_root() / "data", options)


@pytest.fixture(scope="module", autouse=True)
def everything():
    for kind in data.kinds():
        data.ensure(kind, cache_root() / "data", Silent())


@pytest.fixture(scope="module")
def sentences():
    """The sentences as they are by default: their tokenizer takes a while to train."""
    return samples_of("movie-sentences")


def test_frames_behind_the_end_of_an_utterance_are_zeros_and_valid_ones_are_standardised():
    train = samples_of("japanese-vowels").train
    values, lengths = train.inputs
    valid = np.arange(29) < lengths[:, None]
    assert (lengths.min(), lengths.max()) == (7, 26)
    assert not values[~valid].any()
    np.testing.assert_allclose(values[valid].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(values[valid].std(axis=0), 1, atol=1e-5)


def test_people_who_test_are_not_among_those_who_train():
    splits = samples_of("smartwatch-exercises")
    assert set(splits.train.groups) == set(range(1, 9))
    assert set(splits.test.groups) == {9, 10}


def test_no_answer_of_the_test_year_is_in_a_training_window():
    splits = samples_of("electricity-demand")
    demand = np.loadtxt(cache_root() / "data/electricity-demand/elecdemand.csv", delimiter=",", skiprows=1)[
        :, 0
    ]
    border = round(0.8 * len(demand))
    mean = demand[:border].mean()
    np.testing.assert_allclose(splits.test.targets[:, 0] * mean, demand[border:], rtol=1e-6)
    np.testing.assert_allclose(splits.train.targets[-1, 0] * mean, demand[border - 1], rtol=1e-6)
    # the newest reading of a window lies 48 half hours before what is asked for
    newest = (splits.test.inputs[0][:, -1, 0] + 1) * mean
    np.testing.assert_allclose(newest, demand[border - 48 : -48], rtol=1e-5)


def test_anomalies_are_only_in_the_test_split():
    splits = samples_of("shuttle")
    assert (splits.train.labels.sum(), splits.test.labels.sum()) == (0, 3511)
    np.testing.assert_array_equal(splits.train.targets, splits.train.inputs[0])


def test_the_tokenizer_is_the_same_each_time_and_never_saw_the_test_sentences(sentences):
    splits, again = sentences, samples_of("movie-sentences")
    assert splits.assets == again.assets
    small = samples_of("movie-sentences", vocabulary=300, length=12)
    assert small.inputs[0].n_values == 300
    assert small.train.inputs[0].shape[1] == 12
    tokens, lengths = splits.train.inputs
    assert tokens.max() < 4000
    assert not tokens[np.arange(64) >= lengths[:, None]].any()
    assert lengths.min() >= 1


def test_noisy_pictures_are_asked_for_the_clean_ones():
    splits = samples_of("fashion-mnist", task="denoising", noise=0.1)
    (noisy,) = splits.test.inputs
    difference = noisy - splits.test.targets
    middle = (splits.test.targets > 0.3) & (splits.test.targets < 0.7)  # where nothing is cut off
    assert difference[middle].std() == pytest.approx(0.1, rel=0.02)
    assert (noisy.min(), noisy.max()) == (0, 1)


def test_random_numbers_are_asked_for_pictures():
    splits = samples_of("fashion-mnist", task="generation", latent=7)
    (numbers,) = splits.train.inputs
    assert numbers.shape == (60_000, 7)
    assert (abs(numbers.mean()) < 0.01, abs(numbers.std() - 1) < 0.01) == (True, True)
    assert (splits.train.targets.min(), splits.train.targets.max()) == (-1, 1)


def test_a_spread_stretches_the_same_random_numbers_and_leaves_the_pictures():
    usual, wide = (
        samples_of("fashion-mnist", task="generation", latent=7, spread=spread) for spread in (1.0, 1.5)
    )
    np.testing.assert_allclose(wide.test.inputs[0], 1.5 * usual.test.inputs[0], rtol=1e-6)
    np.testing.assert_array_equal(wide.test.targets, usual.test.targets)


def test_the_words_on_preprocessing_are_those_of_the_task():
    said = {
        task: data.fetch("fashion-mnist", cache_root() / "data", Silent(), {"task": task})[0].preprocessing
        for task in ("classification", "denoising", "generation")
    }
    assert said["classification"].endswith("each value divided by 255")
    assert said["denoising"] == f"{said['classification']}; the answer times 255 is the clean picture"
    assert said["generation"].startswith("random numbers")
    assert "divided by 255" not in said["generation"]


def test_a_sentence_is_learned_as_good_as_people_find_it(sentences):
    samples, plain = samples_of("movie-sentences", ratings=True).train, sentences.train
    np.testing.assert_allclose(samples.shares.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(samples.shares.argmax(axis=1), samples.targets)
    # The logit of a share is a mean rating, which goes up to 4.
    assert 0.95 < samples.shares.max() <= 1 / (1 + np.exp(-4))
    assert np.array_equal(samples.targets, plain.targets)
    assert plain.shares is None
