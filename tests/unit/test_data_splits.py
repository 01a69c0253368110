"""Limits and hold-outs are stratified, disjoint, seeded and refuse what makes no sense."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.artifacts import InputSpec, Task
from armlet.data import Samples, Splits, hold_out, limited, prepare
from armlet.errors import UsageError

INPUTS = (InputSpec("input", (1,)),)


def numbered(counts: list[int], seed: int = 0) -> Samples:
    """Samples of which each is its own number, in random class order."""
    labels = (
        np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    )
    return Samples((np.arange(len(labels), dtype=np.float32)[:, np.newaxis],), labels, labels)


def splits_of(counts: list[int]) -> Splits:
    names = tuple(f"class {c}" for c in range(len(counts)))
    task = Task("classification", (len(counts),), names)
    nothing, test = numbered([0] * len(counts)), numbered([7] * len(counts), seed=1)
    return Splits(numbered(counts), nothing, test, INPUTS, task)


def numbers(samples: Samples) -> set[float]:
    return set(samples.inputs[0][:, 0].tolist())


def class_counts(samples: Samples, n_classes: int) -> list[int]:
    return np.bincount(samples.labels, minlength=n_classes).tolist()


@given(st.lists(st.integers(2, 60), min_size=2, max_size=8), st.floats(0.01, 0.6), st.integers(0, 9))
def test_a_hold_out_is_disjoint_complete_and_stratified(counts, share, seed):
    whole = splits_of(counts)
    held = hold_out(whole, share, seed)
    assert numbers(held.train) | numbers(held.validation) == numbers(whole.train)
    assert not numbers(held.train) & numbers(held.validation)
    total = max(1, round(share * sum(counts)))
    assert len(held.validation) == total
    for count, drawn in zip(counts, class_counts(held.validation, len(counts)), strict=True):
        assert abs(drawn - count * total / sum(counts)) < 1


def test_labels_stay_with_their_inputs():
    whole = splits_of([30, 20])
    label_of = dict(zip(whole.train.inputs[0][:, 0].tolist(), whole.train.labels.tolist(), strict=True))
    held = hold_out(whole, 0.3, seed=5)
    for samples in (held.train, held.validation, limited(whole.train, 9, seed=5)):
        assert [label_of[x] for x in samples.inputs[0][:, 0].tolist()] == samples.labels.tolist()


def test_the_same_seed_draws_the_same_samples_and_another_seed_others():
    whole = splits_of([50, 50, 50])
    first, again, other = (hold_out(whole, 0.2, seed) for seed in (3, 3, 4))
    assert numbers(first.validation) == numbers(again.validation)
    assert numbers(first.validation) != numbers(other.validation)


def test_a_share_of_zero_holds_nothing_out():
    whole = splits_of([5, 5])
    assert hold_out(whole, 0.0, seed=0).train.inputs[0].tolist() == whole.train.inputs[0].tolist()


def test_a_hold_out_of_everything_is_refused():
    with pytest.raises(UsageError, match="leaves none to train on"):
        hold_out(splits_of([2, 2]), 0.9, seed=0)


@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), st.integers(0, 200), st.integers(0, 9))
def test_a_limit_is_as_balanced_as_the_classes_allow(counts, more, seed):
    samples = numbered(counts)
    limit = len(counts) + more
    smaller = limited(samples, limit, seed)
    drawn = class_counts(smaller, len(counts))
    assert len(smaller) == min(limit, len(samples))
    for count, n in zip(counts, drawn, strict=True):
        assert n == count or n >= max(drawn) - 1


def test_a_limit_below_one_sample_a_class_is_refused():
    with pytest.raises(UsageError, match="limit of 2 samples is below one for each of 3 classes"):
        limited(numbered([5, 5, 5]), 2, seed=0)


def test_prepare_limits_first_and_leaves_the_test_split_apart():
    whole = splits_of([40, 40])
    ready = prepare(whole, validation=0.1, limit=20, test_limit=6, seed=0)
    assert (len(ready.train), len(ready.validation), len(ready.test)) == (18, 2, 6)
    assert class_counts(ready.test, 2) == [3, 3]
    assert numbers(ready.test) <= numbers(whole.test)
    assert ready.task == whole.task


def test_samples_of_the_wrong_type_or_length_are_refused():
    inputs, labels = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)
    with pytest.raises(TypeError, match="float64"):
        Samples((inputs.astype(np.float64),), labels)
    with pytest.raises(TypeError, match="labels are int64 of shape"):
        Samples((inputs,), labels, labels[:, np.newaxis])
    with pytest.raises(ValueError, match=r"'targets': 2"):
        Samples((inputs,), labels[:2])


@given(st.integers(2, 9), st.integers(1, 20), st.floats(0.02, 0.9), st.integers(0, 9))
def test_samples_that_have_groups_are_held_out_by_whole_groups(n_groups, size, share, seed):
    groups = np.repeat(np.arange(n_groups), size)
    inputs = np.arange(len(groups), dtype=np.float32)[:, np.newaxis]
    samples = Samples((inputs,), np.zeros(len(groups), np.int64), groups=groups)
    whole = Splits(
        samples,
        samples.take(slice(0)),
        samples,
        (InputSpec("input", (1,)),),
        Task("classification", (1,), ("a",)),
    )
    held = hold_out(whole, share, seed) if round(share * len(groups)) < len(groups) else None
    if held is None:
        return
    assert not set(held.train.groups) & set(held.validation.groups)
    assert len(held.train) + len(held.validation) == len(groups)
    assert len(held.train)
    assert len(held.validation)
    if size < share * len(groups) < (n_groups - 1) * size:
        assert abs(len(held.validation) - share * len(groups)) <= size / 2 + 1


def test_one_group_alone_can_not_be_held_out():
    samples = Samples((np.zeros((4, 1), np.float32),), np.zeros(4, np.int64), groups=np.zeros(4, np.int64))
    whole = Splits(
        samples,
        samples.take(slice(0)),
        samples,
        (InputSpec("input", (1,)),),
        Task("classification", (1,), ("a",)),
    )
    with pytest.raises(UsageError, match="whole groups"):
        hold_out(whole, 0.5, seed=0)


def test_shares_stay_with_their_samples():
    whole = splits_of([30, 20])
    shares = np.random.default_rng(0).random((50, 2), np.float32)
    held = hold_out(replace(whole, train=replace(whole.train, shares=shares)), 0.3, seed=5)
    for samples in (held.train, held.validation):
        assert np.array_equal(samples.shares, shares[samples.inputs[0][:, 0].astype(int)])


def test_shares_that_are_not_float32_of_each_class_are_refused():
    with pytest.raises(TypeError, match="shares are float32 of shape"):
        replace(numbered([2, 2]), shares=np.ones(4, np.float32))
