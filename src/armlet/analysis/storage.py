"""Arrays as few bytes, and back bit for bit: a mask and the values that are not zero, or numbers of shared values.

The first byte says which of four forms follows; all numbers are little-endian, bits count from the lowest:

0. raw: the values.
1. sparse: one bit for each value, 1 where it is not zero; then the values that are not zero.
2. palette: number of different values less one (a byte), those values, then for each value its number in
   ⌈log₂ count⌉ bits.
3. sparse palette: the mask of form 1, then form 2 without its first byte, of the values that are not zero.

A zero is a value whose bits are all zero, so that -0.0 comes back as such. Of the forms that are possible the smallest
is taken. Decoding needs no tables and one pass: `armlet/runtime/unpack.c.in` is the same in C.

Source: Han, Mao and Dally 2016, "Deep Compression", sections 2 and 3, without its Huffman code: archives of apps are
deflated anyway.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RAW, SPARSE, PALETTE, SPARSE_PALETTE = range(4)
MOST_VALUES = 256

Array = npt.NDArray[Any]


def pack(array: Array) -> bytes:
    """Return an array's values, in row-major order, in the smallest form; dtype and shape are not stored.

    Args:
        array: of items of 1, 2, 4 or 8 bytes.
    """
    bits = _bits(array)
    filled = bits != 0
    present = bits[filled]
    mask: bytes = np.packbits(filled, bitorder="little").tobytes()
    forms: list[bytes] = [bytes([RAW]) + bits.tobytes(), bytes([SPARSE]) + mask + present.tobytes()]
    if (shared := _palette(bits)) is not None:
        forms.append(bytes([PALETTE]) + shared)
    if (shared := _palette(present)) is not None:
        forms.append(bytes([SPARSE_PALETTE]) + mask + shared)
    return min(forms, key=len)


def unpack(data: bytes, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
    """Return the array that `pack` was given.

    Raises:
        ValueError: the data is not of such an array.
    """
    dtype = np.dtype(dtype).newbyteorder("<")
    kind, n = np.dtype(f"<u{dtype.itemsize}"), int(np.prod(shape, dtype=np.int64))
    form, at = data[0] if data else -1, 1
    if form not in (RAW, SPARSE, PALETTE, SPARSE_PALETTE):
        raise ValueError(f"{form} is no form of a packed array")
    filled = np.ones(n, bool)
    if form in (SPARSE, SPARSE_PALETTE):
        mask = np.frombuffer(data, np.uint8, -(-n // 8), at)
        filled, at = np.unpackbits(mask, count=n, bitorder="little").astype(bool), at + len(mask)
    n_present = int(filled.sum())
    if form in (RAW, SPARSE):
        present, at = np.frombuffer(data, kind, n_present, at), at + n_present * kind.itemsize
    elif n_present:
        n_values = data[at] + 1
        values = np.frombuffer(data, kind, n_values, at + 1)
        at += 1 + n_values * kind.itemsize
        width = index_bits(n_values)
        stream = np.frombuffer(data, np.uint8, -(-n_present * width // 8), at)
        numbers = np.unpackbits(stream, count=n_present * width, bitorder="little").reshape(n_present, width)
        present, at = values[numbers @ (1 << np.arange(width))], at + len(stream)
    else:
        present = np.zeros(0, kind)
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where an array of {n} values takes {at}")
    bits = np.zeros(n, kind)
    bits[filled] = present
    return bits.view(dtype).reshape(shape)


def packed_bytes(array: Array) -> int:
    """Return how many bytes `pack` makes of an array."""
    return len(pack(array))


def index_bits(n_values: int) -> int:
    """Return the bits of a number from 0 to `n_values` - 1; none where there is one value."""
    return (n_values - 1).bit_length()


def _bits(array: Array) -> Array:
    """Return an array's values as unsigned integers of the same size, [n]."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
    return flat.view(np.dtype(f"<u{flat.dtype.itemsize}"))


def _palette(bits: Array) -> bytes | None:
    """Return values as their count, themselves and their numbers; nothing of none, None of too many."""
    values, numbers = np.unique(bits, return_inverse=True)
    if len(values) == 0:
        return b""
    if len(values) > MOST_VALUES:
        return None
    width = index_bits(len(values))
    spread = (numbers[:, None] >> np.arange(width)) & 1
    stream = np.packbits(spread.astype(np.uint8).reshape(-1), bitorder="little")
    return bytes([len(values) - 1]) + values.tobytes() + stream.tobytes()
