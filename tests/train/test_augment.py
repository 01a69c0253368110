"""Augmentation changes each sample on its own, in its own way, and leaves what decides the answer."""

from __future__ import annotations

import pytest
import torch

from armlet.train.augment import AUGMENTATIONS, augment, mix

PICTURES = torch.rand(64, 2, 14, 14, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(64, 20, 6, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(64, 9, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randint(3, 50, (64, 30), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
BATCHES = {4: PICTURES, 3: SEQUENCES, 2: ROWS}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        yield


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_a_change_keeps_the_shape_changes_something_and_not_every_sample_alike(name: str) -> None:
    change = AUGMENTATIONS[name]
    for dims in change.dims:
        batch = TOKENS if change.tokens else BATCHES[dims]
        same = torch.cat([batch[:1]] * 64)  # one sample, 64 times
        given = same.clone()
        (changed,) = augment((name,), (same,))
        assert changed.shape == batch.shape
        assert changed.dtype == batch.dtype
        assert torch.equal(same, given)  # what was given stays as it is
        assert not torch.equal(changed, same)
        assert not all(torch.equal(changed[0], sample) for sample in changed)


def test_a_flip_mirrors_about_half_of_the_pictures() -> None:
    flipped = AUGMENTATIONS["flip"].apply(PICTURES)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, PICTURES, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, PICTURES, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_a_shift_moves_a_picture_by_at_most_a_fourteenth() -> None:
    shifted = AUGMENTATIONS["shift"].apply(PICTURES)
    padded = torch.nn.functional.pad(PICTURES, (1, 1, 1, 1))
    for number, picture in enumerate(shifted):
        windows = [padded[number, :, r : r + 14, c : c + 14] for r in range(3) for c in range(3)]
        assert any(torch.equal(picture, window) for window in windows)


def test_a_rotation_keeps_lengths_and_angles_of_each_sensor() -> None:
    turned = AUGMENTATIONS["rotate"].apply(SEQUENCES).reshape(64, 20, 2, 3)
    given = SEQUENCES.reshape(64, 20, 2, 3)
    products = torch.einsum("ntsx,nusx->nstu", given, given)
    torch.testing.assert_close(
        torch.einsum("ntsx,nusx->nstu", turned, turned), products, rtol=1e-4, atol=1e-4
    )


def test_another_speed_leaves_what_does_not_move() -> None:
    still = torch.ones(8, 20, 6) * torch.arange(6)
    torch.testing.assert_close(AUGMENTATIONS["speed"].apply(still), still)


def test_tokens_are_dropped_by_a_tenth_and_padding_never_is() -> None:
    tokens = torch.full((200, 40), 9, dtype=torch.int32)
    tokens[:, 20:] = 0
    dropped = AUGMENTATIONS["token_drop"].apply(tokens)
    assert (dropped[:, 20:] == 0).all()
    assert (dropped[:, :20] == 1).float().mean() == pytest.approx(0.1, abs=0.02)


def test_mixup_mixes_inputs_and_targets_by_the_same_share() -> None:
    targets = torch.eye(64)
    mixed, shares = mix(ROWS, targets, 1.0, 0.0)
    torch.testing.assert_close(mixed, shares @ ROWS)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(64))


def test_cutmix_mixes_targets_by_the_area_that_came_from_the_other_picture() -> None:
    values = torch.arange(64.0)[:, None, None, None].expand(64, 1, 10, 10).clone()
    for _ in range(5):
        mixed, shares = mix(values, torch.eye(64), 0.0, 1.0)
        torch.testing.assert_close(
            mixed.mean(dim=(1, 2, 3)), shares @ torch.arange(64.0), rtol=1e-4, atol=1e-4
        )
