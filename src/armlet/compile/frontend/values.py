"""What the layers of the normal form work on: shapes and types of values, constants, and limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """Shape and element type of a value, in the order of dimensions that ONNX gives."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """How an int8 tensor stands for real numbers: real = scale × (stored - zero).

    Attributes:
        scale: a float32 number.
        zero: the zero point, within int8.
    """

    scale: float
    zero: int


THEMSELVES = QuantizedTensor(1.0, 0)
"""What int8 numbers stand for where all that is done with them is to move or to choose them."""


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A constant, possibly stored as integers with a scale.

    Attributes:
        values: as stored.
        scale: float32, one for the tensor or one for each index along `axis`; or, of as many dimensions as the values,
            one for each block of them, which are all of one shape; None for a plain constant.
        zero: zero points, like `scale`.
        axis: the axis of `scale`; meaningless when it has one element or is of blocks.
    """

    values: Array
    scale: Array | None = None
    zero: Array | None = None
    axis: int = 0

    @property
    def has_blocks(self) -> bool:
        """Whether each scale is of a block of values."""
        return self.scale is not None and self.scale.ndim > 1

    def real(self) -> npt.NDArray[np.float64]:
        """Return the numbers that it stands for, exactly (ONNX DequantizeLinear before its rounding)."""
        if self.scale is None or self.zero is None:
            return self.values.astype(np.float64)
        shifted: Array = self.values.astype(np.int64) - self._over_values(self.zero).astype(np.int64)
        real: npt.NDArray[np.float64] = shifted * self._over_values(self.scale).astype(np.float64)
        return real

    def around_zero(self) -> Constant:
        """Return integers of 8 bits less their zero points, int8 where they fit, else int16; others as they are."""
        if self.zero is None or self.values.dtype not in (np.int8, np.uint8):
            return self
        integers: Array = self.values.astype(np.int16) - self._over_values(self.zero).astype(np.int16)
        fit = integers.min(initial=0) >= -128 and integers.max(initial=0) < 128
        values = integers.astype(np.int8) if fit else integers
        return replace(self, values=values, zero=np.zeros(self.zero.shape, np.int8))

    def _over_values(self, factors: Array) -> Array:
        """Return scales or zero points in a form that broadcasts to the values."""
        if not self.has_blocks:
            along = self.axis if factors.size > 1 else -1
            return factors.reshape([-1 if i == along else 1 for i in range(self.values.ndim)])
        for axis, extent in enumerate(self.values.shape):
            factors = factors.repeat(extent // factors.shape[axis], axis)
        return factors


def largest_sums(weight: Array) -> npt.NDArray[np.int64]:
    """Return what no sum on the way to an output's accumulator exceeds, but for its bias: [outputs].

    Args:
        weight: integers [outputs, ...]; those of int16 are computed as int8 and a shift for each output, in two sums.
    """
    rows = np.abs(weight.astype(np.int64)).reshape(len(weight), -1)
    sums: npt.NDArray[np.int64] = 256 * rows.sum(1)
    return np.maximum(sums, 2**15 * rows.shape[1]) if weight.dtype == np.int16 else sums


@dataclass(frozen=True, slots=True)
class Clamp:
    """An activation that only limits its input: ReLU is (0, None), ReLU6 is (0, 6)."""

    low: float | None = None
    high: float | None = None

    @property
    def is_active(self) -> bool:
        """Whether it limits anything."""
        return self.low is not None or self.high is not None

    def then(self, other: Clamp) -> Clamp:
        """Return one clamp that does what this and then `other` do."""
        lows = [c for c in (self.low, other.low) if c is not None]
        highs = [c for c in (self.high, other.high) if c is not None]
        low = max(lows, default=None)
        high = min(highs, default=None)
        if low is not None and high is not None and low > high:  # clip(clip(x, 0, 6), 7, 9) is 7, not [7, 6]
            raise ValueError(f"clamps {self} and {other} do not overlap")
        return Clamp(low, high)


NO_CLAMP = Clamp()
"""Limits nothing."""
