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
    return request.param, folder, data.fetch(request.param, folder, Silent())


EXPECTED = {
    "fashion-mnist": ((1, 28, 28), 60_000, 10_000, 255),
    "letter-recognition": ((16,), 16_000, 4_000, 15),
}


def test_a_fetched_set_has_its_full_size_and_verifies(fetched):
    kind, folder, ready = fetched
    shape, n_train, n_test, _ = EXPECTED[kind]
    assert (ready.inputs[0].shape, ready.n_train, ready.n_test) == (shape, n_train, n_test)
    assert ready.source_digests == data.digests(kind)
    assert ready.licence == data.licence(kind)
    assert data.verify(kind, folder) == []
    assert data.is_fetched(kind, folder)


def test_what_a_recipe_is_checked_against_is_what_the_data_has(fetched):
    kind, _, ready = fetched
    spec = TypeAdapter(DataSpec).validate_python({"kind": kind})
    assert spec.n_classes == len(ready.class_names)
    assert spec.picture == (ready.inputs[0].shape[1:] if len(ready.inputs[0].shape) == 3 else None)


def test_inputs_are_float32_whole_steps_from_0_to_1(fetched):
    kind, folder, _ = fetched
    _, n_train, n_test, highest = EXPECTED[kind]
    splits = data.load(kind, folder)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (n_train, 0, n_test)
    for samples in (splits.train, splits.test):
        assert samples.inputs[0].dtype == np.float32
        assert samples.labels.dtype == np.int64
        assert (samples.inputs[0].min(), samples.inputs[0].max()) == (0, 1)
        raw = samples.inputs[0][:500] * highest
        # a float32 quotient times the divisor is within 2 rounding errors of the whole number
        np.testing.assert_allclose(raw, raw.round(), atol=highest * 2e-7)


def test_every_class_has_a_name_and_samples_in_both_splits(fetched):
    kind, folder, ready = fetched
    splits = data.load(kind, folder)
    for samples in (splits.train, splits.test):
        counts = np.bincount(samples.labels)
        assert (
            len(counts)
            == len(splits.task.class_names)
            == len(ready.class_names)
            == len(set(ready.class_names))
        )
        assert counts.min() > 100


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
        (tmp_path / kind / path.name).write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"is not (an IDX file|the Letter Recognition file)"):
        data.load(kind, tmp_path)


def test_the_first_rows_are_the_published_ones(fetched):
    kind, folder, _ = fetched
    splits = data.load(kind, folder)
    if kind == "letter-recognition":
        assert splits.task.class_names[splits.train.labels[0]] == "T"
        expected = [2, 8, 3, 5, 1, 8, 13, 0, 6, 6, 10, 8, 0, 8, 0, 8]
        np.testing.assert_array_equal((splits.train.inputs[0][0] * 15).round(), expected)
    else:
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
