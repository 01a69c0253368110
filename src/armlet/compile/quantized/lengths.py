"""What depends on nothing but a length: which tokens there are, how many, and masks made of that.

armlet's networks write 1.0 for a token that begins before the end and 0.0 for one behind it as
clamp(length - starts, 0, 1), with whole numbers for `starts`. Such a value is a flag for each token: an int8 number of
scale 1. A product with flags, a mask for each of both flags and a mean over as many tokens need no float numbers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from armlet.compile.frontend.graph import (
    Add,
    Convert,
    Generic,
    Layer,
    Limit,
    Reshape,
)
from armlet.compile.frontend.values import Array, Clamp, QuantizedTensor, Tensor
from armlet.compile.quantized.tables import computed

FLAG = QuantizedTensor(1.0, 0)
_EXACT = 2**24
"""Whole numbers below are exact in float32, and their differences of the right sign."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What of a graph depends on a length.

    Attributes:
        makers: the layer that gives each value.
        tensors: shape and type of each value.
        most: frames or tokens of the longest input, which no length is above.
        flags: values that are 1.0 or 0.0 for each token, as far as they have been found.
    """

    makers: Mapping[str, Layer]
    tensors: Mapping[str, Tensor]
    most: int = 0
    flags: set[str] = field(default_factory=set)

    def starts(self, layer: Layer) -> tuple[str, Array] | None:
        """Return the length [1] and the starts [T] of tokens of a layer that gives flags; None for any other."""
        before = self.makers.get(layer.inputs[0]) if layer.op == Limit(Clamp(0.0, 1.0)) else None
        if before is None or not isinstance(before.op, Generic) or before.op.node.op_type != "Sub":
            return None
        if len(before.inputs) != 1 or before.op.node.input[0] != before.inputs[0]:
            return None
        (values,) = before.op.constants.values()
        length = self._length(before.inputs[0])
        whole = bool(np.all(values == np.rint(values)) and np.all(np.abs(values) < _EXACT))
        if length is None or not whole or values.size != self.tensors[layer.output].size:
            return None
        return length, values.reshape(-1).astype(np.int32)

    def flag(self, value: str) -> str | None:
        """Return the flags that a value is under another shape; None where it is something else."""
        source = self._unmoved(value)
        return source if source in self.flags else None

    def hidden(self, layer: Layer) -> tuple[str, str] | None:
        """Return the value [..., T, C] and the flags that a layer is the product of; None for any other layer."""
        if not isinstance(layer.op, Generic) or layer.op.node.op_type != "Mul" or len(layer.inputs) != 2:
            return None
        for value, by in (layer.inputs, layer.inputs[::-1]):
            flag, shape = self.flag(by), self.tensors[value].shape
            if flag is not None and self.tensors[by].shape == (*shape[:-1], 1):
                return value, flag
        return None

    def count(self, layer: Layer) -> tuple[str, str, int] | None:
        """Return what a mean over tokens is made of; None where a layer is no such mean.

        Returns:
            The value [1, T, C] that is summed up over T; the flags whose number, or the int32 length, that the sum is
            divided by; and the largest such number.
        """
        if not isinstance(layer.op, Generic) or layer.op.node.op_type != "Div" or len(layer.inputs) != 2:
            return None
        total = self.makers.get(layer.inputs[0])
        if total is None or not self._is_sum(total, (1,)) or self.tensors[layer.inputs[1]].size != 1:
            return None
        value = total.inputs[0]
        shape = self.tensors[value].shape
        if len(shape) != 3 or shape[0] != 1:
            return None
        divisor = self._unmoved(layer.inputs[1])
        limit = self.makers.get(divisor)
        if limit is not None and isinstance(limit.op, Limit):
            if limit.op.clamp.high is not None or (limit.op.clamp.low or 0.0) > 1:
                return None
            divisor = self._unmoved(limit.inputs[0])
        if (length := self._length(divisor)) is not None:
            return value, length, max(shape[1], self.most)  # tokens may be of several frames
        number = self.makers.get(divisor)
        if number is None or not self._is_sum(number, None):
            return None
        flag = self.flag(number.inputs[0])
        return None if flag is None else (value, flag, self.tensors[flag].size)

    def mask(self, value: str) -> tuple[str, Array] | None:
        """Return the flags [n] that a mask [..., n] depends on, and the masks of none and of all, float32 [2, ..., n].

        None where a number of the mask depends on anything but the flag of its column.
        """
        way: dict[str, Layer] = {}
        if not self._follow(value, way):
            return None
        sources = {n for layer in way.values() for n in layer.inputs if n not in way}
        if len(sources) != 1:
            return None
        (flag,) = sources
        masks = []
        for number in (0.0, 1.0):
            values = {flag: np.full(self.tensors[flag].shape, number, np.float32)}
            for name, layer in way.items():
                known = layer.inputs[0]
                shape = self.tensors[name].shape
                moved = isinstance(layer.op, Reshape)
                values[name] = values[known].reshape(shape) if moved else computed(layer, values)
            masks.append(values[value])
        return flag, np.stack(masks).astype(np.float32)

    def _follow(self, value: str, way: dict[str, Layer]) -> bool:
        """Enter the layers between flags and a value, in order; return whether columns stay columns on all of it."""
        if value in way:
            return True
        shape = self.tensors[value].shape
        if value in self.flags:
            return shape[-1] == self.tensors[value].size
        layer = self.makers.get(value)
        if layer is None or not layer.inputs:
            return False
        if isinstance(layer.op, Reshape):
            kept = shape[-1] == self.tensors[layer.inputs[0]].shape[-1]
        else:
            kept = isinstance(layer.op, Add | Limit) or (
                isinstance(layer.op, Generic) and layer.op.elementwise
            )
        kept = kept and all(self.tensors[name].shape[-1:] == shape[-1:] for name in layer.inputs)
        if not kept or not all(self._follow(name, way) for name in layer.inputs):
            return False
        way[value] = layer
        return True

    def _unmoved(self, value: str) -> str:
        """Return the value that one is under another shape."""
        while (layer := self.makers.get(value)) is not None and isinstance(layer.op, Reshape):
            value = layer.inputs[0]
        return value

    def _length(self, value: str) -> str | None:
        """Return the one int32 number that a value is as a float32 number; None where it is something else."""
        layer = self.makers.get(self._unmoved(value))
        if layer is None or not isinstance(layer.op, Convert):
            return None
        source = layer.inputs[0]
        single = self.tensors[source].size == 1 and self.tensors[source].dtype == "int32"
        return source if single else None

    def _is_sum(self, layer: Layer, over: Container[int] | None) -> bool:
        """Whether a layer sums up over these dimensions; over all there are where `over` is None."""
        if not isinstance(layer.op, Generic) or layer.op.node.op_type != "ReduceSum":
            return False
        rank = len(self.tensors[layer.inputs[0]].shape)
        if over is None:
            return self.tensors[layer.output].size == 1
        axes = [int(a) % rank for values in layer.op.constants.values() for a in values.reshape(-1)]
        return len(axes) == 1 and axes[0] in over
