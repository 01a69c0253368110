"""Packed arrays come back bit for bit, and are as small as their form promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.analysis.cost import cost_of
from armlet.analysis.storage import (
    PALETTE,
    RAW,
    SPARSE,
    SPARSE_PALETTE,
    index_bits,
    pack,
    packed_bytes,
    unpack,
)
from armlet.artifacts import InputSpec
from armlet.models.network import Network, architecture_of, build
from armlet.models.quantization import ParameterQuantization, Quantization

DTYPES = ["int8", "uint8", "int16", "float16", "int32", "float32", "int64", "float64"]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Any bits, of few values or many, with or without zeros, and empty or of one value too."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 9), min_size=0, max_size=3)))
    n_values, sparsity = draw(st.integers(1, 300)), draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    palette = rng.integers(0, 256, (n_values, dtype.itemsize), np.uint8)
    chosen = palette[rng.integers(0, n_values, int(np.prod(shape, dtype=int)))]
    chosen[rng.random(len(chosen)) < sparsity] = 0
    return np.ascontiguousarray(chosen).reshape(-1).view(dtype).reshape(shape)


@given(arrays())
def test_what_is_packed_comes_back_bit_for_bit(array):
    data = pack(array)
    found = unpack(data, array.dtype, array.shape)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert len(data) == packed_bytes(array) <= array.nbytes + 1


@given(arrays(), st.data())
def test_damaged_data_are_refused_or_give_an_array_of_the_right_shape(array, data):
    packed = bytearray(pack(array))
    if data.draw(st.booleans()):
        packed = packed[: data.draw(st.integers(0, len(packed)))]
    elif packed:
        packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(packed), array.dtype, array.shape)
    except (ValueError, IndexError):
        return
    assert found.shape == array.shape


def test_each_form_is_taken_where_it_is_the_smallest_and_has_the_size_it_promises():
    rng = np.random.default_rng(0)
    n, values = 4000, rng.standard_normal(4000).astype("float32")
    mask = rng.random(n) < 0.1
    sixteen = rng.choice(rng.standard_normal(16), n).astype("float32")
    n_kept = int(mask.sum())
    expected = {
        RAW: (values, 1 + 4 * n),
        SPARSE: (np.where(mask, values, np.float32(0)), 1 + n // 8 + 4 * n_kept),
        PALETTE: (sixteen, 1 + 1 + 16 * 4 + n // 2),
        SPARSE_PALETTE: (np.where(mask, sixteen, np.float32(0)), 1 + n // 8 + 1 + 16 * 4 + -(-n_kept // 2)),
    }
    for form, (array, size) in expected.items():
        data = pack(array)
        assert (data[0], len(data)) == (form, size)


def test_negative_zeros_and_numbers_that_are_none_survive():
    array = np.array([0.0, -0.0, np.nan, np.inf, 1.0] * 20, "float32")
    assert unpack(pack(array), "float32", (100,)).tobytes() == array.tobytes()


@pytest.mark.parametrize(("n", "bits"), [(1, 0), (2, 1), (3, 2), (16, 4), (17, 5), (256, 8)])
def test_numbers_of_values_take_as_many_bits_as_they_need(n, bits):
    assert index_bits(n) == bits


def test_a_network_s_stored_bytes_are_those_of_what_it_keeps():
    inputs = (InputSpec("input", (32,)),)
    network = build(architecture_of("fnn", {"hidden": [16], "norm": "none"}, inputs, (4,)), 0)
    quantization = Quantization((), (ParameterQuantization("layer1.linear.weight", (0.25,) * 16, "int8"),))
    quantized = Network(network.module, network.architecture, quantization)
    state = {name: p.detach().numpy() for name, p in network.module.named_parameters()}
    others = sum(packed_bytes(p) for name, p in state.items() if name != "layer1.linear.weight")
    integers = np.rint(state["layer1.linear.weight"] / 0.25).astype("int8")
    assert len(np.unique(integers)) <= 3  # or this would not tell integers from floats
    assert cost_of(quantized).stored_bytes == packed_bytes(integers) + others
    assert cost_of(network).stored_bytes == packed_bytes(state["layer1.linear.weight"]) + others
    # Random float32 values take what they take in memory, and a byte for each tensor.
    assert cost_of(network).stored_bytes == cost_of(network).weight_bytes + 4
