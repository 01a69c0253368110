"""SparseGPT equals a plain NumPy form of its paper, beats magnitude on correlated inputs, and sees the right inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from armlet.analysis.sparsity import Pattern, magnitude_masks, pattern_mask
from armlet.models.recurrent import Recurrent
from armlet.passes.prune.observe import layers_in_order, observe, set_matrices
from armlet.passes.prune.sparsegpt import DAMPING, sparsegpt


def correlated(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Inputs [n, k] that are mostly the same mixture of k / 6 sources, whatever the seed of the samples."""
    mixing, rng = np.random.default_rng(99).standard_normal((k // 6, k)), np.random.default_rng(seed)
    return rng.standard_normal((n, k // 6)) @ mixing + 0.2 * rng.standard_normal((n, k))


def reference(weight: np.ndarray, hessian: np.ndarray, target: int | Pattern, block: int) -> np.ndarray:
    """The optimal brain surgeon column by column, with the inverse of what is left of the Hessian at each."""
    columns = weight.shape[1]
    damped = hessian + DAMPING * np.trace(hessian) / columns * np.eye(columns)
    inverses = [np.linalg.inv(damped[j:, j:]) for j in range(columns)]
    result, done = weight.astype(np.float64).copy(), 0
    width = target.m if isinstance(target, Pattern) else block
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        saliency = np.stack([result[:, j] ** 2 / inverses[j][0, 0] for j in range(start, stop)], axis=1)
        gone = np.zeros_like(saliency, bool)
        if isinstance(target, Pattern):
            for row, values in enumerate(saliency):
                gone[row, np.argsort(values, kind="stable")[: target.m - target.n]] = True
        else:
            due = target * stop // columns - done
            gone.reshape(-1)[np.argsort(saliency.reshape(-1), kind="stable")[:due]] = True
            done += due
        for j in range(start, stop):
            for row in np.flatnonzero(gone[:, j - start]):
                result[row, j:] -= result[row, j] / inverses[j][0, 0] * inverses[j][0]
                result[row, j] = 0.0
    return result


@pytest.mark.parametrize("target", [0, 61, 150, Pattern(2, 4), Pattern(1, 4), Pattern(4, 8)], ids=str)
def test_it_equals_the_plain_form(target):
    inputs = correlated(200, 24)
    weight = np.random.default_rng(1).standard_normal((7, 24))
    hessian = inputs.T @ inputs
    expected = reference(weight, hessian, target, block=10)
    found = sparsegpt(torch.from_numpy(weight), torch.from_numpy(hessian), target, block=10).numpy()
    np.testing.assert_array_equal(found == 0, expected == 0)
    # Both in float64; a Hessian of condition 1e3 loses some of its 16 digits.
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    if isinstance(target, int):
        assert int((found == 0).sum()) == target


@pytest.mark.parametrize("target", [0.5, 0.8, Pattern(2, 4)], ids=str)
def test_the_output_error_on_correlated_inputs_is_far_below_that_of_magnitude(target):
    inputs = torch.from_numpy(correlated(500, 48))
    weight = torch.from_numpy(np.random.default_rng(2).standard_normal((16, 48)))
    goal = target if isinstance(target, Pattern) else int(target * weight.numel())
    corrected = sparsegpt(weight, inputs.T @ inputs, goal)
    if isinstance(target, Pattern):
        least = weight * pattern_mask(weight, target, 1)
    else:
        least = weight * magnitude_masks({"w": weight}, target, "layer")["w"]
    assert (corrected == 0).sum() == (least == 0).sum()
    unseen = torch.from_numpy(correlated(500, 48, seed=1))
    error, of_magnitude = (((unseen @ (w - weight).T) ** 2).mean() for w in (corrected, least))
    assert error < 0.6 * of_magnitude


def test_an_input_that_is_always_zero_stops_nothing():
    inputs = torch.zeros(10, 8, dtype=torch.float64)
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    pruned = sparsegpt(weight, inputs.T @ inputs, 16)
    kept = pruned != 0
    assert int(kept.sum()) == 16
    torch.testing.assert_close(pruned[kept], weight[kept], rtol=1e-6, atol=0)  # nothing to correct


LAYERS = {
    "linear": (lambda: nn.Linear(12, 5, bias=False), (6, 3, 12)),
    "convolution": (lambda: nn.Conv2d(4, 6, (3, 2), bias=False), (3, 4, 9, 8)),
    "padded, strided, dilated": (
        lambda: nn.Conv2d(3, 5, 3, stride=2, padding=(2, 1), dilation=(1, 2), bias=False),
        (3, 3, 11, 12),
    ),
    "same padding": (lambda: nn.Conv2d(2, 4, 4, padding="same", bias=False), (2, 2, 7, 7)),
    "in groups": (lambda: nn.Conv2d(6, 9, 3, groups=3, bias=False), (3, 6, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False), (3, 5, 8, 8)),
    "over time": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (3, 4, 15)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrices_and_their_inputs_give_the_layer_s_outputs(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    module, samples = nn.Sequential(layer), (torch.randn(shape),)
    assert layers_in_order(module, samples) == ("0",)
    found = observe(module, "0", samples)["weight"]
    values = found.values.double()
    with torch.no_grad():
        energy = (layer.double()(samples[0].double()) ** 2).sum()
        layer.float()
    # Σ |W x|² = tr(W H Wᵀ), which no other arrangement of taps and channels would give.
    torch.testing.assert_close(
        torch.einsum("goi,gij,goj->", values, found.hessians, values), energy, rtol=1e-6, atol=0
    )
    before = layer.weight.detach().clone()
    set_matrices(layer, "weight", found.values)
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_recurrent_layer_s_states_are_those_before_each_frame(cell, direction):
    torch.manual_seed(1)
    layer = Recurrent(cell, 3, 4, direction).eval()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, frames, length):
            return self.layer(frames, length)[0]

    frames, length = torch.randn(5, 6, 3), torch.tensor([6, 1, 3, 0, 5], dtype=torch.int32)
    found = observe(Whole().eval(), "layer", (frames, length))
    states, inputs = [[] for _ in range(layer.weight.shape[0])], []
    for sample, n in zip(frames, length.tolist(), strict=True):
        valid = sample[:n]
        inputs += list(valid.double())
        for d in range(layer.weight.shape[0]):
            backwards = direction == "reverse" or d == 1
            for n_before in range(1, n):  # the state after the first frames of this direction
                seen = valid[n - n_before :] if backwards else valid[:n_before]
                last = layer(seen[None], torch.tensor([n_before], dtype=torch.int32))[1][0]
                states[d].append(last.detach().unflatten(0, (-1, 4))[d].double())
    expected = torch.stack(inputs).T @ torch.stack(inputs)
    for d, before in enumerate(states):
        torch.testing.assert_close(found["weight"].hessians[d], expected)
        rows = torch.stack(before)
        # States are float32, computed over sequences of other lengths.
        torch.testing.assert_close(found["recurrent_weight"].hessians[d], rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_layers_come_in_the_order_in_which_they_run():
    class Twisted(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first, self.unused = nn.Linear(4, 2), nn.Linear(3, 4), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(torch.relu(self.first(x)))

    assert layers_in_order(Twisted().eval(), (torch.zeros(2, 3),)) == ("first", "last")
