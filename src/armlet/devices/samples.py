"""Samples as a runner program reads and writes them: each sample's tensors, raw, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from armlet.artifacts import TensorInfo

if TYPE_CHECKING:
    import numpy as np


def pack(arrays: Sequence[np.ndarray]) -> bytes:
    """Return the bytes of N samples.

    Args:
        arrays: one array [N, ...] for each input, in order, of the input's dtype.
    """
    import numpy as np

    flat = [np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8) for array in arrays]
    return np.concatenate(flat, axis=1).tobytes()


def unpack(raw: bytes, n: int, outputs: Sequence[TensorInfo]) -> tuple[np.ndarray, ...]:
    """Return one array [N, *shape[1:]] for each output.

    Args:
        raw: what the runner wrote: N samples, each its outputs one after the other.
        n: number of samples.
        outputs: in order, each with a batch of one.
    """
    import numpy as np

    table = np.frombuffer(raw, np.uint8).reshape(n, sample_bytes(outputs))
    arrays, start = [], 0
    for info in outputs:
        part = np.ascontiguousarray(table[:, start : start + info.n_bytes])
        arrays.append(part.view(info.dtype).reshape(n, *info.shape[1:]))
        start += info.n_bytes
    return tuple(arrays)


def sample_bytes(tensors: Sequence[TensorInfo]) -> int:
    """Return the bytes of one sample of these tensors."""
    return sum(info.n_bytes for info in tensors)
