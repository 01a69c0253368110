"""Proves that an ONNX file computes what the torch network computes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.graph import trace, value_name
from armlet.analysis.reference import reference_session
from armlet.data.splits import Samples
from armlet.errors import VerificationFailed
from armlet.models.network import Network, executable
from armlet.rounding import steps_allowed

FloatArray = npt.NDArray[np.float32]

# Float: both sum the same products in float32, in another order. What a layer adds so, relative to its largest value:
# some hundred roundings of 6e-8, which is what sums of a few thousand products differ by.
_RELATIVE_OF_A_LAYER = 1e-5


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two forms of a network are apart on `n_samples` inputs."""

    n_samples: int
    max_abs_difference: float
    tolerance: float
    reason: str


def verify(network: Network, onnx_file: Path, samples: Samples) -> Comparison:
    """Compare ONNX Runtime with torch.

    ONNX Runtime runs without graph optimisation, so that QDQ nodes are computed as they stand, in float: its own
    integer kernels saturate on some machines.

    Args:
        network: what the file was made from.
        onnx_file: takes a batch of one.
        samples: what is compared.

    Raises:
        VerificationFailed: an output differs by more than the tolerance.
    """
    with torch.no_grad():
        expected = executable(network)(*map(torch.from_numpy, samples.inputs)).numpy()
    session = reference_session(onnx_file)
    names = [i.name for i in session.get_inputs()]
    rows = ([x[i : i + 1] for x in samples.inputs] for i in range(len(samples)))
    found = np.concatenate([session.run(None, dict(zip(names, row, strict=True)))[0] for row in rows])
    difference = float(np.abs(found - expected).max())
    tolerance, reason = tolerance_of(network, expected)
    # Not `difference > tolerance`, which holds for no NaN.
    if found.shape != expected.shape or not difference <= tolerance:
        raise VerificationFailed(
            f"{onnx_file.name} differs from torch by {difference:.3g} on {len(samples)} samples, allowed are "
            f"{tolerance:.3g}: {reason}"
        )
    return Comparison(len(samples), difference, tolerance, reason)


def tolerance_of(network: Network, expected: FloatArray) -> tuple[float, str]:
    """Return how far two computations of these answers may be apart, and why."""
    largest = float(np.abs(expected).max())
    n_layers = max(1, sum(parameter.dim() > 1 for parameter in network.module.parameters()))
    # Differences of random sign add up as the square root of their number.
    float_tolerance = _RELATIVE_OF_A_LAYER * math.sqrt(n_layers) * max(largest, 1.0)
    if network.quantization is not None and any(p.dynamic_input for p in network.quantization.parameters):
        # A float sum that differs in its last bit can move a range, or round a value, to another step.
        return 0.05 * max(
            largest, 1.0
        ), "5 % of the largest output; inputs of layers are rounded while it runs"
    if network.quantization is None or not network.quantization.activations:
        return (
            float_tolerance,
            f"{_RELATIVE_OF_A_LAYER:g} of the largest output, times the square root of {n_layers} weights: float32 "
            "sums are taken in another order, and each layer adds differences of random sign",
        )
    step = _output_step(network)
    if step is None:
        # The float layers behind the last quantised value amplify its steps by an unknown factor.
        return 0.05 * max(
            largest, 1.0
        ), "5 % of the largest output; the last layers are float behind rounded values"
    n_steps = steps_allowed(len(network.quantization.activations))
    return (
        n_steps * step + float_tolerance,
        f"{n_steps} steps of the output's scale; halves may round either way",
    )


def _output_step(network: Network) -> float | None:
    """Return the scale of the network's output, None if that is float."""
    if network.quantization is None:
        return None
    (output,) = trace(network.module, network.architecture.inputs).outputs
    scales = {a.node: a.scale for a in network.quantization.activations}
    return scales.get(value_name(output))
