"""A border around a picture, written by the kernel that makes the picture, for the one layer that reads both."""

from __future__ import annotations

from dataclasses import dataclass

from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Vector,
    ceil_div,
    constant,
    lanes_for,
    loop,
    minimum,
    store,
)


@dataclass(frozen=True, slots=True)
class Border:
    """A border of one value around a channels-last picture.

    Attributes:
        rows, columns: of the picture.
        padding: top, left, bottom, right.
        value: of the border's elements, as they are stored.
    """

    rows: int
    columns: int
    padding: tuple[int, int, int, int]
    value: float

    @property
    def n_pixels(self) -> int:
        """Pixels of picture and border."""
        top, _, bottom, _ = self.padding
        return (top + self.rows + bottom) * self.width

    @property
    def width(self) -> int:
        """Columns of picture and border."""
        return self.padding[1] + self.columns + self.padding[3]

    def pixel(self, row: Expr, column: Expr) -> Expr:
        """Return which pixel one of the picture is, in reading order, the border's counted."""
        return (row + self.padding[0]) * self.width + self.padding[1] + column

    def fill(self, y: Buffer, channels: int, vector: Vector) -> None:
        """Write the border into a buffer: before the picture, between its rows, and behind it."""
        top, left, bottom, right = self.padding
        self._write(y, channels, vector, 0, (1, top * self.width + left))
        self._write(y, channels, vector, self.pixel(0, self.columns), (self.rows - 1, right + left))
        behind = self.pixel(self.rows - 1, self.columns)
        self._write(y, channels, vector, behind, (1, right + bottom * self.width))

    def _write(self, y: Buffer, channels: int, vector: Vector, start: int, shape: tuple[int, int]) -> None:
        """Write so many runs of pixels, a row apart, in one loop: LLVM would unroll the inner one of two, and both."""
        (n_runs, n_pixels), dtype = shape, str(y.dtype)
        if n_runs * n_pixels == 0:
            return
        run = n_pixels * channels
        lanes = lanes_for(run, vector.lanes(dtype))
        stores = ceil_div(run, lanes)
        with loop(n_runs * stores) as number:
            at = minimum(number % stores * lanes, run - lanes)
            place = (start + number // stores * self.width) * channels + at
            store(y, place, lanes, constant(self.value, dtype, lanes))


def pixel_of(border: Border | None, row: Expr, column: Expr, width: int) -> Expr:
    """Return which pixel of a result one is in memory.

    Args:
        border: of the result, None where there is none.
        row: of the pixel.
        column: of the pixel.
        width: pixels of one row of the loops; `row` is 0 and `column` counts all of the picture where it has another.
    """
    if border is None:
        return row * width + column
    if width == border.columns:
        return border.pixel(row, column)
    # Rows before it add their borders, so that no remainder is needed.
    between = border.width - border.columns
    return border.pixel(0, column) + column // border.columns * between
