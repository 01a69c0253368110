"""How a convolution or linear layer is cut up: how it multiplies, what is loaded together, which tiles there are.

`conv2d.tile_of` puts these together. Registers hold a tile's accumulators and what is loaded for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.loops import Vector, ceil_div
from armlet.compile.kernels.reduction import INSTRUCTIONS, UNITS, Step, pixels_of

if TYPE_CHECKING:
    from armlet.compile.kernels.choices import Choice
    from armlet.compile.kernels.conv2d import Conv2d

_LEAST_LOADED = 4
"""The fewest real numbers that are loaded as one vector, to multiply by its lanes."""
_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
"""Pixels, and vectors of channels, of a tile."""


def candidates(spec: Conv2d, how: tuple[Step, int], lanes: int, vector: Vector) -> tuple[Choice, ...]:
    """Return the tiles whose accumulators and what is loaded for them fit the registers, an eighth of these left free.

    Args:
        spec: of the convolution.
        how: inputs are multiplied, and how many steps' are loaded as one vector.
        lanes: channels of one vector.
        vector: unit.
    """
    step, loaded = how
    adds = "int32" if ep.multiplies_integers(spec.epilogue) else vector.real
    each = ceil_div(lanes, vector.lanes(adds))
    sizes = [(pixels, vectors) for pixels in _COUNTS for vectors in _COUNTS]
    return tuple(
        (pixels, lanes * vectors)
        for pixels, vectors in sizes
        if lanes * vectors <= spec.outputs // spec.groups
        and pixels <= spec.out_width
        and pixels % pixels_of(step) == 0
        and (
            8 * pixels * vectors * each <= 7 * vector.n_registers
            if loaded == 1
            else (vectors + 1) * pixels + 2 <= vector.n_registers
        )
    )


def sides(spec: Conv2d, step: Step, lanes: int, vector: Vector) -> tuple[int, int]:
    """Return channels and pixels of a tile whose steps load their own inputs: about half the registers accumulate."""
    outputs = spec.outputs // spec.groups
    adds = "int32" if ep.multiplies_integers(spec.epilogue) else vector.real
    budget = vector.n_registers // 2 * vector.lanes(adds)
    most_pixels = spec.out_width
    widths = [w for w in (lanes, 2 * lanes, 4 * lanes, 8 * lanes) if w <= min(outputs, budget)]
    if most_pixels > 1:  # two channels' worth of accumulators for each pixel still leave room for pixels
        widths = [w for w in widths if w <= max(lanes, budget // min(most_pixels, 4))]
    # One pixel's input is read for one vector of channels' products, or for all of the tile's.
    reading = lanes if most_pixels == 1 else 0
    channels = min(widths, key=lambda w: (ceil_div(outputs, w) * (w + reading), -w))
    together = pixels_of(step)
    pixels = min(
        range(together, min(most_pixels, max(budget // channels, 1)) + 1, together),
        key=lambda p: (ceil_div(most_pixels, p) * (p + 1), -p),
    )
    return channels, pixels


def sides_by_lanes(spec: Conv2d, lanes: int, together: tuple[int, int], vector: Vector) -> tuple[int, int]:
    """Return channels and pixels of a tile whose steps multiply by lanes: those of the least cost.

    A product costs two and what else there is one, as cores do two of them at a time and four of anything.
    Registers hold the accumulators, a vector of inputs for each pixel and two of weights, which are loaded as a pair.

    Args:
        spec: of the convolution.
        lanes: channels of one vector.
        together: steps whose inputs are loaded as one vector, and inputs of a step.
        vector: unit.
    """
    outputs, (loaded, unit) = spec.outputs // spec.groups, together
    groups = ceil_div(spec.runs * spec.run_length, loaded * unit)

    def cost(sides: tuple[int, int]) -> int:
        vectors, pixels = sides[0] // lanes, sides[1]
        products = vectors * pixels
        turn = 1 if fit_twice(vectors, pixels, vector) and groups % 2 == 0 else 2
        one = 2 * products * loaded + pixels + ceil_div(vectors * loaded, 2) + turn
        if outputs % sides[0]:  # weights of a step are then far from those of the next one
            one += loaded
        n_tiles = ceil_div(outputs, sides[0]) * ceil_div(spec.out_width, pixels)
        return n_tiles * (groups * one + 4 * products)

    fitting = [
        (vectors * lanes, pixels)
        for vectors in range(1, min(outputs // lanes, vector.n_registers) + 1)
        for pixels in range(1, min(spec.out_width, vector.n_registers) + 1)
        if (vectors + 1) * pixels + 2 <= vector.n_registers
    ]
    return min(fitting, key=lambda sides: (cost(sides), sides))


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
