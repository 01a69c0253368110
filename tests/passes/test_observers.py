"""How ranges of activations come from their values: each observer against a plain reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization.observer import MovingAverageMinMaxObserver

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.data.splits import Samples
from armlet.models.network import Network, executable
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.quantize.calibrate import NumberFormat, weight_scales
from armlet.passes.quantize.observers import OBSERVERS, ObserverOptions, entropy_bins, mse_range, observe
from armlet.passes.quantize.ranges import activation_scale, min_max_ranges, sample_problems
from armlet.spec.passes import QuantizeStatic

INPUT = InputSpec("input", (4,))


@pytest.fixture(scope="module")
def traced():
    """Two values of one graph: the input doubled, and the same cut off at zero."""
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()).eval()
    with torch.no_grad():
        module[0].weight.copy_(2 * torch.eye(4))
    return trace(module, (INPUT,))


def draw(n: int = 3000, outlier: float | None = None) -> torch.Tensor:
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)) + 0.3
    if outlier is not None:
        values[17, 2] = outlier / 2
    return values


def ranges(traced, values: torch.Tensor, **options: object):
    found = observe(traced, ("linear", "relu"), (values,), ObserverOptions(**options))
    return found["linear"], found["relu"]


def test_min_max_holds_all(traced):
    values = draw()
    doubled = 2 * values.numpy()
    linear, relu = ranges(traced, values)
    assert linear == (doubled.min(), doubled.max())
    assert relu == (0.0, doubled.max())


def test_percentile_ranges_leave_out_outliers(traced):
    values = draw(outlier=40.0)
    linear, _ = ranges(traced, values, kind="percentile", percentile=99)
    expected = np.percentile(2 * values.numpy(), [1, 99])
    width = (2 * (values.max() - values.min())).item() / 8192
    np.testing.assert_allclose(linear, expected, atol=2 * width)  # to the edge of a histogram's bin
    assert ranges(traced, values)[0][1] == 40.0


def test_the_moving_average_is_torchs(traced):
    values = draw()
    reference = MovingAverageMinMaxObserver(averaging_constant=0.2)
    for batch in torch.split(2 * values, 64):
        reference(batch)
    linear, _ = ranges(traced, values, kind="moving_average", averaging=0.2)
    np.testing.assert_allclose(linear, (reference.min_val.item(), reference.max_val.item()), rtol=1e-5)
    assert linear != ranges(traced, values)[0]


def reference_entropy_bins(counts: np.ndarray, n_levels: int) -> int:
    """Migacz's pseudo-code, bin by bin, the count of zeros replaced by its neighbour's."""
    counts = np.array([counts[1], *counts[1:]])
    divergences = {}
    for n in range(n_levels, len(counts) + 1):
        p = [float(c) for c in counts[:n]]
        p[-1] += float(sum(counts[n:]))
        q = [0.0] * n
        for level in range(n_levels):
            first, last = level * n // n_levels, (level + 1) * n // n_levels
            filled = [i for i in range(first, last) if counts[i] > 0]
            for i in filled:
                q[i] = float(sum(counts[first:last])) / len(filled)
        if sum(q) == 0:
            continue
        p = [x / sum(p) for x in p]
        q = [max(x / sum(q), 1e-4 / n) for x in q]
        q = [x / sum(q) for x in q]
        divergences[n] = sum(x * np.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)
    return min(divergences, key=lambda n: divergences[n])


@pytest.mark.parametrize("seed", range(4))
def test_the_entropy_threshold_is_that_of_the_plain_algorithm(seed):
    rng = np.random.default_rng(seed)
    values = np.abs(np.concatenate([rng.normal(size=4000), rng.laplace(scale=2.0, size=60)]))
    counts = np.histogram(values, 160, (0, values.max()))[0].astype(float)
    found = entropy_bins(counts, 16)
    assert found == reference_entropy_bins(counts, 16)
    assert 16 < found < 160


def test_entropy_cuts_both_sides_at_one_threshold(traced):
    values = draw(20_000, outlier=60.0)
    linear, relu = ranges(traced, values, kind="entropy")
    low, high = min_max_ranges(traced, ("linear",), (values,))[0]
    assert high == 60.0
    assert 4.0 < linear[1] < 30.0
    assert linear[0] == max(low, -linear[1])
    assert relu[0] == 0.0
    assert 4.0 < relu[1] < 30.0


def quantized(values: np.ndarray, limits: tuple[float, float], *, symmetric: bool) -> np.ndarray:
    scale, zero_point = activation_scale(*limits, symmetric=symmetric)
    codes = np.clip(np.rint(values / scale) + zero_point, -128, 127)
    return (codes - zero_point) * scale


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_mse_range_beats_every_range_of_a_grid(traced, symmetric):
    values = draw(20_000, outlier=60.0)
    doubled = 2 * values.numpy().astype(np.float64)

    def error(limits: tuple[float, float]) -> float:
        return float(((quantized(doubled, limits, symmetric=symmetric) - doubled) ** 2).mean())

    linear, _ = ranges(traced, values, kind="mse", symmetric=symmetric)
    low, high = doubled.min(), doubled.max()
    grid = [error((low * a, high * b)) for a in np.linspace(0.3, 1, 15) for b in np.linspace(0.1, 1, 31)]
    # The bins' centres stand for the values, and the ends are searched one after the other.
    assert error(linear) <= 1.05 * min(grid)
    assert error(linear) < 0.9 * error((low, high))


def test_the_mse_range_of_even_values_is_all_of_them():
    assert mse_range(np.ones(8192), (-1.0, 1.0), symmetric=False) == (-1.0, 1.0)


def test_a_value_that_never_changes_keeps_its_range(traced):
    still = torch.full((70, 4), -0.5)
    for kind in OBSERVERS:
        assert ranges(traced, still, kind=kind) == ((-1.0, -1.0), (0.0, 0.0)), kind


@pytest.mark.parametrize("kind", list(OBSERVERS))
def test_values_that_are_not_finite_are_refused(traced, kind):
    with pytest.raises(PreconditionFailed, match="values of linear are not finite"):
        ranges(traced, torch.full((3, 4), 3e38), kind=kind)


def test_symmetric_scales_put_zero_in_the_middle():
    scale, zero_point = activation_scale(-1.0, 3.0, symmetric=True)
    assert zero_point == 0
    np.testing.assert_allclose(scale, 3.0 / 127, rtol=1e-6)
    assert activation_scale(0.0, 0.0, symmetric=True) == (1.0, 0)


def test_one_scale_for_all_channels_is_that_of_the_largest_weight():
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, None, 0.1, NumberFormat(per_channel=False))
    np.testing.assert_allclose(scales, [np.abs(weight).max() / 127] * 5, rtol=1e-6)


def test_the_least_squared_error_of_weights_is_below_that_of_their_full_range():
    weight = np.random.default_rng(0).standard_t(3, size=(6, 400)).astype(np.float32)

    def errors(scales: np.ndarray) -> np.ndarray:
        found = np.clip(np.rint(weight / scales[:, None]), -127, 127) * scales[:, None]
        return ((found - weight) ** 2).sum(axis=1)

    widest = weight_scales(weight, None, 0.1)
    found = weight_scales(weight, None, 0.1, NumberFormat(weight_range="mse"))
    shares = np.linspace(0.3, 1.0, 71, dtype=np.float32)
    np.testing.assert_allclose(
        errors(found), np.min([errors(widest * share) for share in shares], axis=0), rtol=1e-4
    )
    assert errors(found).sum() < errors(widest).sum()


def test_samples_that_do_not_fit_are_named():
    inputs = (INPUT, InputSpec("length", (), "int32", 9))
    good, lengths = np.zeros((3, 4), np.float32), np.zeros(3, np.int32)
    assert sample_problems((good, lengths), inputs) == ()
    assert sample_problems((good,), inputs) == ("calibration samples have 1 inputs, the network takes 2",)
    bad = good.copy()
    bad[1, 3] = np.nan
    assert sample_problems((bad, lengths), inputs) == (
        "calibration samples of input are not finite: 1 of 3, the first is number 1",
    )
    assert sample_problems((np.zeros((3, 5), np.float32), lengths), inputs) == (
        "calibration samples of input are float32 of shape [5], meant is float32 [4]",
    )


def test_the_pass_refuses_samples_that_are_not_numbers(tiny_network, context, splits):
    inputs = splits.train.inputs[0].copy()
    inputs[3:] = np.nan
    broken = Samples((inputs,), splits.train.targets, splits.train.labels)
    given = context(tiny_network())
    given = dataclasses.replace(given, splits=dataclasses.replace(splits, train=broken))
    with pytest.raises(PreconditionFailed, match="samples of input are not finite: 189 of 192"):
        run_pass(QuantizeStatic(kind="quantize_static"), tiny_network(), given)


@pytest.mark.parametrize(
    "options",
    [{"observer": kind} for kind in OBSERVERS]
    + [{"activations": "symmetric"}, {"weights": "per_tensor"}, {"weight_range": "mse"}],
    ids=str,
)
def test_every_way_to_find_ranges_stays_close_to_the_float_network(options, tiny_network, context, splits):
    network: Network = tiny_network(block="residual", activation="relu6")
    spec = QuantizeStatic(kind="quantize_static", **options)
    result, record = run_pass(spec, network, context(network))
    assert "calibrated on 192 training samples" in record.notes[0]
    inputs = torch.from_numpy(splits.test.inputs[0])
    with torch.no_grad():
        expected, found = network.module(inputs), executable(result)(inputs)
    noise = 10 * torch.log10(((expected - expected.mean()) ** 2).mean() / ((found - expected) ** 2).mean())
    assert noise > 16
