"""Reads linear layers whose input is quantised while the program runs, in the form of ONNX Runtime's quantize_dynamic.

DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul with the product of both scales becomes one `Dense`; a bias behind
it is added by `simplify`. The values in between are in no other layer's reach.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from armlet.compile.frontend.graph import Array, Constant, Dense, Layer
from armlet.compile.frontend.reader import Reader, RefusedNode

if TYPE_CHECKING:
    import onnx

MOST = 2**30
"""What no accumulator may reach."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three results of DynamicQuantizeLinear of the float value `source`."""

    source: str
    kind: Literal["values", "scale", "zero"]


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """The scale of `source` times those of a weight, [1] or [outputs]."""

    source: str
    of_weight: Array


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Integer products of `source` with a weight [inputs, outputs] int8, as int32 or float32."""

    source: str
    weight: Array


Pending: TypeAlias = Part | Scales | Products


def read_dynamic(node: onnx.NodeProto, name: str, reader: Reader) -> bool:
    """Read a node of the pattern; return whether it is one.

    Raises:
        RefusedNode: a value of the pattern goes where it can't, or the weight has no kernel.
    """
    if node.op_type == "DynamicQuantizeLinear":
        for value, kind in zip(node.output, ("values", "scale", "zero"), strict=False):
            reader.pending[value] = Part(node.input[0], kind)  # type: ignore[arg-type]  # one of the three
        return True
    given = [reader.pending.get(value) for value in node.input]
    if not any(given):
        return False
    match node.op_type, given:
        case "MatMulInteger", [Part(source, "values"), _, Part(other, "zero"), *_] if source == other:
            reader.pending[node.output[0]] = Products(source, _weight(node, reader))
        case "Cast", [Products() as products] if reader.tensor(node.output[0]).dtype == "float32":
            reader.pending[node.output[0]] = products
        case "Mul", [Part(source, "scale"), None] | [None, Part(source, "scale")]:
            constant = reader.constant(node, given.index(None))
            assert constant is not None  # noqa: S101 - Mul has two inputs
            reader.pending[node.output[0]] = Scales(source, constant.values.reshape(-1))
        case "Mul", [Products() as products, Scales() as scales] | [
            Scales() as scales,
            Products() as products,
        ]:
            _finish(node, name, (products, scales), reader)
        case _:
            raise RefusedNode(
                "what DynamicQuantizeLinear gives goes through MatMulInteger, Cast and Mul only"
            )
    return True


def _weight(node: onnx.NodeProto, reader: Reader) -> Array:
    """Return the weight as int8 around 0; the file may have it as uint8 around 128."""
    weight, zero = reader.constant(node, 1), reader.constant(node, 3)
    middles = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}
    if weight is None or weight.values.ndim != 2 or weight.values.dtype not in middles:
        raise RefusedNode("its weight is not a matrix of 8-bit integers")
    middle = middles[weight.values.dtype]
    if np.any((0 if zero is None else zero.values) != middle):
        raise RefusedNode("its weight is not symmetric: the zero point is not the middle of its type")
    integers = weight.values.astype(np.int32) - middle
    if 256 * np.abs(integers).sum(0, dtype=np.int64).max() >= MOST:
        raise RefusedNode("its accumulator could overflow 32 bits")
    return integers.astype(np.int8)


def _finish(node: onnx.NodeProto, name: str, parts: tuple[Products, Scales], reader: Reader) -> None:
    products, scales = parts
    outputs = products.weight.shape[1]
    if products.source != scales.source or scales.of_weight.size not in (1, outputs):
        raise RefusedNode("its scales are those of another product")
    if scales.of_weight.dtype != np.float32 or not np.all(np.isfinite(scales.of_weight)):
        raise RefusedNode("its scales are not finite float32 numbers")
    by_channel = np.broadcast_to(scales.of_weight, (outputs,))
    weight = Constant(products.weight.T, by_channel, np.zeros(outputs, np.int8), 0)
    op = Dense(weight, Constant(np.zeros(outputs, np.float32)), dynamic=True)
    reader.tensor(products.source)
    reader.layers.append(Layer(name, "MatMulInteger", op, (products.source,), node.output[0]))
