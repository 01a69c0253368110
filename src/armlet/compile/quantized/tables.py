"""Chains of elementwise operators on one int8 value, which a table of 256 entries computes at once.

Input -> Output: the float layers of a QDQ graph between a dequantized value and its quantized result -> int8 [256].

The table is made when compiling, in float32 by ONNX's own reference implementation; looking up is exact everywhere.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import numpy as np

from armlet.compile.frontend.evaluate import evaluate
from armlet.compile.frontend.graph import Add, Generic, Layer, Limit
from armlet.compile.frontend.values import Array, QuantizedTensor
from armlet.compile.quantized import reference


@dataclass(frozen=True, slots=True)
class Formula:
    """What a float value is of one other.

    Attributes:
        source: the value that it depends on, and no other.
        layers: that compute it, in order.
    """

    source: str
    layers: tuple[Layer, ...]


def formula_of(layer: Layer, known: Mapping[str, Formula], sources: Container[str]) -> Formula | None:
    """Return what a layer's output is of one source, None where it is not one element of one of those.

    Args:
        layer: any.
        known: the formulas of values before it.
        sources: values that formulas may begin at.
    """
    op = layer.op
    if isinstance(op, Generic):
        if not op.elementwise or any(values.size > 1 for values in op.constants.values()):
            return None
    elif not isinstance(op, Add | Limit):
        return None
    operands = [Formula(name, ()) if name in sources else known.get(name) for name in layer.inputs]
    found = [formula for formula in operands if formula is not None]
    if not found or len(found) < len(operands) or len({formula.source for formula in found}) > 1:
        return None
    before = dict.fromkeys(part for formula in found for part in formula.layers)
    return Formula(found[0].source, (*before, layer))


def table_of(formula: Formula, origin: QuantizedTensor, to: QuantizedTensor) -> Array:
    """Return int8 [256]: the formula's quantized value for each int8 number of its source."""

    def function(x: Array) -> Array:
        values = {formula.source: x}
        with np.errstate(all="ignore"):  # far from zero some intermediate values are infinite, and rightly so
            for layer in formula.layers:
                values[layer.output] = computed(layer, values).reshape(-1)
        return values[formula.layers[-1].output]

    return reference.table(function, origin, to)


def computed(layer: Layer, values: Mapping[str, Array]) -> Array:
    """Return what a layer that may be part of a formula makes of values, in float32."""
    op = layer.op
    if isinstance(op, Generic):
        operands = [op.constants[n] if n in op.constants else values[n] for n in op.node.input if n]
        return evaluate(op.node, operands, op.opset)
    if not isinstance(op, Add | Limit):
        raise TypeError(f"{layer.name}, a {layer.kind}, is no part of a formula")
    total = np.sum([values[name] for name in layer.inputs], axis=0, dtype=np.float32)
    return np.asarray(np.clip(total, op.clamp.low, op.clamp.high) if op.clamp.is_active else total)
