"""Limits and hold-outs are stratified, disjoint, seeded and refuse what makes no sense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.data import Samples, Splits, hold_out, limited, prepare
from armlet.errors import UsageError


def numbered(counts: list[int], seed: int = 0) -> Samples:
    """Samples of which each is its own number, in random class order."""
    labels = (
        np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    )
    return Samples(np.arange(len(labels), dtype=np.float32)[:, np.newaxis], labels)


def splits_of(counts: list[int]) -> Splits:
    names = tuple(f"class {c}" for c in range(len(counts)))
    return Splits(numbered(counts), numbered([0] * len(counts)), numbered([7] * len(counts), seed=1), names)


def numbers(samples: Samples) -> set[float]:
    return set(samples.inputs[:, 0].tolist())


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
    label_of = dict(zip(whole.train.inputs[:, 0].tolist(), whole.train.labels.tolist(), strict=True))
    held = hold_out(whole, 0.3, seed=5)
    for samples in (held.train, held.validation, limited(whole.train, 9, 2, seed=5)):
        assert [label_of[x] for x in samples.inputs[:, 0].tolist()] == samples.labels.tolist()


def test_the_same_seed_draws_the_same_samples_and_another_seed_others():
    whole = splits_of([50, 50, 50])
    first, again, other = (hold_out(whole, 0.2, seed) for seed in (3, 3, 4))
    assert numbers(first.validation) == numbers(again.validation)
    assert numbers(first.validation) != numbers(other.validation)


def test_a_share_of_zero_holds_nothing_out():
    whole = splits_of([5, 5])
    assert hold_out(whole, 0.0, seed=0).train.inputs.tolist() == whole.train.inputs.tolist()


def test_a_hold_out_of_everything_is_refused():
    with pytest.raises(UsageError, match="leaves none to train on"):
        hold_out(splits_of([2, 2]), 0.9, seed=0)


@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), st.integers(0, 200), st.integers(0, 9))
def test_a_limit_is_as_balanced_as_the_classes_allow(counts, more, seed):
    samples = numbered(counts)
    limit = len(counts) + more
    smaller = limited(samples, limit, len(counts), seed)
    drawn = class_counts(smaller, len(counts))
    assert len(smaller) == min(limit, len(samples))
    for count, n in zip(counts, drawn, strict=True):
        assert n == count or n >= max(drawn) - 1


def test_a_limit_below_one_sample_a_class_is_refused():
    with pytest.raises(UsageError, match="limit of 2 samples is below one for each of 3 classes"):
        limited(numbered([5, 5, 5]), 2, 3, seed=0)


def test_prepare_limits_first_and_leaves_the_test_split_apart():
    whole = splits_of([40, 40])
    ready = prepare(whole, validation=0.1, limit=20, test_limit=6, seed=0)
    assert (len(ready.train), len(ready.validation), len(ready.test)) == (18, 2, 6)
    assert class_counts(ready.test, 2) == [3, 3]
    assert numbers(ready.test) <= numbers(whole.test)
    assert ready.class_names == whole.class_names


def test_samples_of_the_wrong_type_or_length_are_refused():
    inputs, labels = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)
    with pytest.raises(TypeError, match="float64"):
        Samples(inputs.astype(np.float64), labels)
    with pytest.raises(ValueError, match=r"3 inputs have labels of shape \(2,\)"):
        Samples(inputs, labels[:2])
