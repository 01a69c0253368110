"""Reads what packages publish as pickles: only the globals that a file is known to need, anything else is refused."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, known: Mapping[tuple[str, str], object]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._known = known

    def find_class(self, module: str, name: str) -> object:
        """Return what the caller says that a global is."""
        if (module, name) not in self._known:
            raise ValueError(f"it asks for {module}.{name}, which data do not need")
        return self._known[module, name]


def read_pickle(data: bytes, known: Mapping[tuple[str, str], object]) -> object:
    """Return the object of a pickle.

    Args:
        data: the pickle.
        known: what each global that may occur stands for, by module and name.

    Raises:
        ValueError: it is no pickle, or asks for anything else.
    """
    try:
        return _Reader(data, known).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"not a readable pickle: {error}") from error


def numpy_globals() -> dict[tuple[str, str], object]:
    """Return the globals with which NumPy arrays are pickled, by old and new NumPy alike."""
    import codecs

    import numpy as np
    from numpy._core import numeric
    from numpy._core.multiarray import _reconstruct

    return {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.numeric", "_frombuffer"): numeric._frombuffer,  # type: ignore[attr-defined]  # private
        ("numpy._core.numeric", "_frombuffer"): numeric._frombuffer,  # type: ignore[attr-defined]
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }
