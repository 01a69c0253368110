"""What is done to a float network before it is quantised, and to its weights and biases once scales are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from armlet.analysis.graph import Traced
from armlet.models.quantization import Quantization
from armlet.passes.quantize.adaround import Rounded, adaround
from armlet.passes.quantize.bias_correction import correct_biases, correct_biases_by_means
from armlet.passes.quantize.equalize import equalize
from armlet.passes.quantize.fold_batch_norm import Moments
from armlet.passes.quantize.gptq import gptq
from armlet.passes.quantize.placement import Placement
from armlet.passes.quantize.ranges import Samples
from armlet.passes.quantize.simulation import Simulation
from armlet.passes.quantize.smooth import smooth


@dataclass(frozen=True, slots=True)
class Refinement:
    """What is done beside finding scales.

    Attributes:
        equalize: rescale channels between layers.
        smooth: α of SmoothQuant, None for none.
        rounding: how weights become integers.
        rounding_steps: of adaround, for each layer.
        bias_correction: take out mean shifts.
    """

    equalize: bool = False
    smooth: float | None = None
    rounding: Literal["nearest", "adaround", "gptq"] = "nearest"
    rounding_steps: int = 1000
    bias_correction: bool = False


def rescale(
    traced: Traced, moments: Mapping[str, Moments], samples: Samples, options: Refinement
) -> tuple[Mapping[str, Moments], tuple[str, ...]]:
    """Rescale channels in place, without changing what the network answers.

    Returns:
        the moments of the rescaled layers, and notes.
    """
    notes: tuple[str, ...] = ()
    if options.equalize:
        found = equalize(traced, moments)
        moments = found.moments
        notes += (f"channels equalised between {found.n_pairs} pairs of layers", *found.notes)
    if options.smooth is not None:
        n, reasons = smooth(traced, samples, options.smooth)
        notes += (f"scale of {n} activations moved into the weights that read them", *reasons)
    return moments, notes


def refine(
    traced: Traced,
    placement: Placement,
    quantization: Quantization,
    evidence: Samples | Mapping[str, Tensor],
    options: Refinement,
    seed: int,
) -> tuple[str, ...]:
    """Change weights and biases in place so that their quantised form answers more like the float network.

    Args:
        traced: of the module that changes.
        placement: what is quantised.
        quantization: its scales, which stay.
        evidence: calibration samples, [N, *shape] for each input, or the mean of each value's channels by its node.
        options: what is done.
        seed: of everything random.

    Returns:
        notes.
    """
    if options.rounding == "nearest" and not options.bias_correction:
        return ()
    simulation, notes = Simulation(traced, placement, quantization), []
    if not isinstance(evidence, Mapping) and options.rounding != "nearest":
        if options.rounding == "adaround":
            generator = torch.Generator().manual_seed(seed)
            rounded = adaround(simulation, evidence, options.rounding_steps, generator)
        else:
            rounded = gptq(simulation, evidence)
        notes.append(_rounding_note(options.rounding, rounded, len(simulation.layers)))
    if options.bias_correction:
        if isinstance(evidence, Mapping):
            missing = correct_biases_by_means(simulation, evidence)
        else:
            missing = correct_biases(simulation, evidence)
        notes.append(f"biases of {len(simulation.layers) - len(missing)} layers corrected")
        notes += [f"{name} has no bias to correct" for name in missing]
    return tuple(notes)


def _rounding_note(method: str, rounded: tuple[Rounded, ...], n_layers: int) -> str:
    shares = [r.after / r.before for r in rounded if r.before > 0]
    mean = sum(shares) / len(shares) if shares else 1.0
    others = (
        f"; {n_layers - len(rounded)} layers are rounded to the nearest" if n_layers > len(rounded) else ""
    )
    return (
        f"{method} chose the rounding of {len(rounded)} layers: the squared error of their outputs is"
        f" {mean:.0%} of that of the nearest integers, on average{others}"
    )
