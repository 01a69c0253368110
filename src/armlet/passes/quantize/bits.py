"""Mixed precision: which layers' weights get 4 bits and which 8, so that all of them fit a number of bytes.

What 4 bits cost in a layer is measured: the squared change of the network's answers when the weights of that layer
alone have 4 bits, less that with 8. Costs of several layers are taken to add up, as in Dong et al. 2019 and 2020
("HAWQ", "HAWQ-V2"), and the choice is the exact solution of the integer program
min Σ cost × chosen, Σ saved bytes × chosen ≥ bytes to save.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from armlet.analysis.graph import Traced
from armlet.models.quantization import Quantization, quantized_graph
from armlet.passes.base import PreconditionFailed
from armlet.passes.quantize.calibrate import NumberFormat, weights_alone
from armlet.passes.quantize.placement import Placement
from armlet.passes.quantize.ranges import Samples

_MOST_SAMPLES = 128


def choose_four_bits(
    traced: Traced, placement: Placement, numbers: NumberFormat, samples: Samples, n_bytes: int
) -> tuple[str, ...]:
    """Return the weights that get 4 bits so that at least `n_bytes` are saved when they are packed.

    Args:
        traced: the float graph.
        placement: what is quantised.
        numbers: what the integers are like, with 8 bits.
        samples: calibration samples, [N, *shape] for each input; the first 128 are used.
        n_bytes: to save, none where it is not positive.

    Raises:
        PreconditionFailed: weights of 4 bits everywhere would not save so much.
    """
    tables = {table.weight for table in placement.tables}  # their rows have 8 bits
    parameters = weights_alone(traced, placement, numbers).parameters
    names = [p.parameter for p in parameters if p.parameter not in tables]
    state = traced.program.state_dict
    saved = np.array([state[name].numel() // 2 for name in names])
    if n_bytes <= 0:
        return ()
    if saved.sum() < n_bytes:
        raise PreconditionFailed(
            f"quantize_static: weights of 4 bits everywhere are still {n_bytes - int(saved.sum())} bytes more than"
            " weight_budget"
        )
    chosen = solve(_costs(traced, placement, numbers, samples, names), saved, n_bytes)
    return tuple(name for name, four in zip(names, chosen, strict=True) if four)


def solve(costs: np.ndarray, saved: np.ndarray, least: float) -> np.ndarray:
    """Return bool [n]: the choice of the least total cost that saves at least so much."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    with _silent():
        result = milp(
            costs / max(float(np.abs(costs).max()), 1e-30),  # the solver's tolerances are absolute
            integrality=np.ones(len(costs)),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(saved[None, :], lb=least),
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        raise ValueError(f"the integer program has no solution: {result.message}")
    chosen: np.ndarray = result.x > 0.5
    return chosen


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the solver, a C++ library, prints of its own off the standard output, which may be JSON."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _costs(
    traced: Traced, placement: Placement, numbers: NumberFormat, samples: Samples, names: Sequence[str]
) -> np.ndarray:
    some = tuple(x[:_MOST_SAMPLES] for x in samples)
    with torch.no_grad():
        wanted: torch.Tensor = traced.runnable()(*some)
    errors = []
    for bits in (8, 4):
        quantization = weights_alone(traced, placement, replace(numbers, weight_bits=bits))
        of = {parameter.parameter: parameter for parameter in quantization.parameters}
        for name in names:
            with torch.no_grad():
                found = quantized_graph(traced, Quantization((), (of[name],)))(*some)
            errors.append(float(((found - wanted).double() ** 2).mean()))
    eight, four = np.array(errors).reshape(2, -1)
    # Rounding may help by chance: that is no reason to spend fewer bits than the budget asks for.
    costs: np.ndarray = np.maximum(four - eight, 0.0)
    return costs
