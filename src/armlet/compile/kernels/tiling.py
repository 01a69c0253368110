"""How a convolution or linear layer is cut up: how it multiplies, what is loaded together, which tiles there are.

`conv2d.tile_of` puts these together. Registers hold a tile's accumulators and what is loaded for them. Of the tiles
that there are, the first is taken where no table has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.loops import Vector, ceil_div, n_bytes
from armlet.compile.kernels.reduction import INSTRUCTIONS, UNITS, Step, pixels_of

if TYPE_CHECKING:
    from armlet.compile.kernels.choices import Choice
    from armlet.compile.kernels.conv2d import Conv2d

MOST_CANDIDATES = 16
"""Tiles that tuning tries, those of the least work: among more, the best is 0.7 % better."""
_LEAST_LOADED = 4
"""The fewest real numbers that are loaded as one vector, to multiply by its lanes."""
_CACHED_BYTES = 24 << 10
"""Of weights that stay in the innermost cache beside inputs; no core here has less than 32 KiB."""
_FEWEST_SUMS = 8
"""Vectors of sums that keep a core busy: about the latency of a multiplication times how many begin in a cycle."""
_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
"""Pixels, and vectors of channels, of a tile."""
_INPUT_WORK: Mapping[Step, float] = MappingProxyType({"lanes": 1 / 4, "pmaddwd": 1 / 2, "vpdpbusd": 1 / 2})
"""What it takes to load a pixel's inputs for one step, in multiplications; in steps that are not here, one."""


def tiles_of_steps(spec: Conv2d, step: Step, lanes: int, vector: Vector) -> tuple[Choice, ...]:
    """Return pixels and channels of the tiles whose steps load their own inputs, those of the least work first."""
    adds = "int32" if ep.multiplies_integers(spec.epilogue) else vector.real
    each = ceil_div(lanes, vector.lanes(adds))
    sizes = [(pixels, lanes * vectors) for pixels in _COUNTS for vectors in _COUNTS]
    taken = {(pixels, channels): pixels * (channels // lanes) * each for pixels, channels in sizes}
    fitting = [
        (pixels, channels)
        for (pixels, channels), n in taken.items()
        if channels <= spec.outputs // spec.groups
        and pixels <= spec.out_width
        and pixels % pixels_of(step) == 0
        and (8 * n <= 7 * vector.n_registers or (pixels, channels) == (pixels_of(step), lanes))
    ]
    ordered = sorted(fitting, key=lambda c: (_work(spec, step, c, taken[c], vector), c[0]))
    formula = next(c for c in ordered if _leaves_room(step, c, taken[c], vector))
    cached = (c for c in ordered if c[0] >= formula[0] or _fits_cache(spec, c[1], vector))
    return tuple(dict.fromkeys((formula, *cached)))


def _leaves_room(step: Step, choice: Choice, taken: int, vector: Vector) -> bool:
    """Whether half the registers hold the sums.

    `sadalp` has two copies of each pixel's inputs beside them. One output of int8 is computed in general registers, of
    which fewer are free.
    """
    pixels, channels = choice
    if step == "pairs" and channels == 1:
        return 4 * taken <= vector.n_registers
    if step == "sadalp" and pixels > 1:
        return 2 * taken <= vector.n_registers and taken + 2 * pixels <= vector.n_registers * 3 // 4
    return 2 * taken <= vector.n_registers or (pixels == 1 and 8 * taken <= 5 * vector.n_registers)


def _work(spec: Conv2d, step: Step, choice: Choice, taken: int, vector: Vector) -> float:
    """Return what a reduction step of all tiles costs, in multiplications.

    Loads of inputs and weights go on beside them in part. With few sums, each multiplication waits for the one before.
    The shares are rounded from a fit to the modelled cycles of 20 kernels on Cortex-A72 and A76; on x86-64 they were
    checked by time.
    """
    pixels, channels = choice
    n_tiles = ceil_div(spec.out_width, pixels) * ceil_div(spec.outputs // spec.groups, channels)
    inputs = pixels * _INPUT_WORK.get(step, 1)
    weights = taken / pixels * (1 / 4 if _fits_cache(spec, channels, vector) else 1)
    return n_tiles * max(taken + inputs + weights, _FEWEST_SUMS)


def _fits_cache(spec: Conv2d, channels: int, vector: Vector) -> bool:
    """Whether the weights of a block stay in the innermost cache from one tile to the next, or there is no next."""
    weights = channels * spec.runs * spec.run_length * n_bytes(ep.weight_element(spec.epilogue, vector))
    return weights <= _CACHED_BYTES or spec.out_height * spec.out_width == 1


def tiles_of_loads(spec: Conv2d, lanes: int, together: tuple[int, int], vector: Vector) -> tuple[Choice, ...]:
    """Return pixels and channels of the tiles whose steps multiply by lanes of what is loaded, the cheapest first.

    A product costs two and what else there is one, as cores do two of them at a time and four of anything; of few sums,
    each product waits for the one before.
    Registers hold the accumulators, a vector of inputs for each pixel and two of weights, which are loaded as a pair.

    Args:
        spec: of the convolution.
        lanes: channels of one vector.
        together: steps whose inputs are loaded as one vector, and inputs of a step.
        vector: unit.
    """
    outputs, (loaded, unit) = spec.outputs // spec.groups, together
    groups = ceil_div(spec.runs * spec.run_length, loaded * unit)

    def cost(choice: Choice) -> int:
        pixels, vectors = choice[0], choice[1] // lanes
        products = vectors * pixels
        turn = 1 if fit_twice(vectors, pixels, vector) and groups % 2 == 0 else 2
        one = 2 * max(products, _FEWEST_SUMS) * loaded + pixels + ceil_div(vectors * loaded, 2) + turn
        if outputs % choice[1]:  # weights of a step are then far from those of the next one
            one += loaded
        n_tiles = ceil_div(outputs, choice[1]) * ceil_div(spec.out_width, pixels)
        return n_tiles * (groups * one + 4 * products)

    fitting = [
        (pixels, vectors * lanes)
        for vectors in range(1, min(outputs // lanes, vector.n_registers) + 1)
        for pixels in range(1, min(spec.out_width, vector.n_registers) + 1)
        if (vectors + 1) * pixels + 2 <= vector.n_registers
    ]
    return tuple(sorted(fitting, key=lambda choice: (cost(choice), choice[1], choice[0])))


def fit_twice(vectors: int, pixels: int, vector: Vector) -> bool:
    """Whether registers hold the accumulators of a tile, two vectors of inputs for each pixel and two of weights."""
    return (vectors + 2) * pixels + 2 <= vector.n_registers


def loaded_of(spec: Conv2d, step: Step, lanes: int, vector: Vector) -> int:
    """Return how many steps' inputs are loaded as one vector, as many as fit a run; 1 where each loads its own."""
    if step == "lanes":
        most = vector.lanes(vector.real)
        return most if spec.run_length >= most else _LEAST_LOADED
    fits = step == "sdot" and vector.by_lane and lanes == 4 and spec.run_length >= vector.n_bytes
    return vector.n_bytes // UNITS[step] if fits else 1


def step_of(spec: Conv2d, vector: Vector) -> Step:
    """Choose the reduction step: the widest that the vector unit has and that one run and the outputs fill."""
    outputs = spec.outputs // spec.groups
    if not ep.multiplies_integers(spec.epilogue):
        fits = vector.by_lane and outputs >= 4 and spec.run_length >= _LEAST_LOADED
        return "lanes" if fits else "singles"
    for step in INSTRUCTIONS[vector.products]:
        if step == "sadalp" and spec.weights_reach_minus_128:
            continue
        # AVX-512 has its instruction for shorter vectors, too.
        least = 4 if step == "vpdpbusd" else vector.lanes("int32")
        readable = spec.run_length + spec.slack
        if outputs >= least and readable >= UNITS[step] and spec.out_width >= pixels_of(step):
            return step
    return "pairs" if spec.run_length >= 2 and not spec.weights_reach_minus_128 else "singles"
