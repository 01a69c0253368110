"""Pickles of packages are read without running what they ask for."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from armlet.data.pickles import numpy_globals, read_pickle


class Malicious:
    def __reduce__(self):
        return os.system, ("true",)


def test_arrays_are_read():
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": ["x", 1]}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        found = read_pickle(pickle.dumps(values, protocol), numpy_globals())
        np.testing.assert_array_equal(found["a"], values["a"])


def test_a_global_that_data_do_not_need_is_refused():
    with pytest.raises(ValueError, match=r"asks for \w+\.system"):
        read_pickle(pickle.dumps(Malicious()), numpy_globals())


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"not a pickle", pickle.dumps([1, 2])[:-2]])
def test_what_is_no_pickle_is_refused(data):
    with pytest.raises(ValueError, match="not a readable pickle"):
        read_pickle(data, numpy_globals())
