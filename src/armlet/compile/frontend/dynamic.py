"""Reads layers whose input is quantised while the program runs, in the form of ONNX Runtime's quantize_dynamic.

DynamicQuantizeLinear -> MatMulInteger or ConvInteger -> Cast -> Mul with the product of both scales becomes one `Dense`
or `Conv2d`; a bias behind it is added by `simplify`. The values in between are in no other layer's reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from armlet.compile.frontend.convert import shape4, window
from armlet.compile.frontend.graph import Conv2d, Dense, Layer
from armlet.compile.frontend.reader import Reader, RefusedNode, attributes
from armlet.compile.frontend.values import Array, Constant, largest_sums

if TYPE_CHECKING:
    import onnx

MOST = 2**30
"""What no accumulator may reach."""

_NO_BIAS = Constant(np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class Part:
    """One of the three results of DynamicQuantizeLinear of the float value `source`."""

    source: str
    kind: Literal["values", "scale", "zero"]


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """The scale of `source` times those of a weight, in the shape that the file gives them."""

    source: str
    of_weight: Array


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Integer products of `source` with a weight, as int32 or float32.

    Attributes:
        op: the layer, its weight [outputs, ...] of integers without scales yet.
        kind: of the node.
        nodes: names of the nodes read so far.
    """

    source: str
    op: Conv2d | Dense
    kind: str
    nodes: tuple[str, ...]


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
            op: Conv2d | Dense = Dense(_weight(node, reader), _NO_BIAS, dynamic=True)
            reader.pending[node.output[0]] = Products(source, op, node.op_type, (name,))
        case "ConvInteger", [Part(source, "values"), _, Part(other, "zero"), *_] if source == other:
            op = _conv2d(node, source, reader)
            reader.pending[node.output[0]] = Products(source, op, node.op_type, (name,))
        case "Cast", [Products() as products] if reader.tensor(node.output[0]).dtype == "float32":
            reader.pending[node.output[0]] = replace(products, nodes=(*products.nodes, name))
        case "Mul", [Part(source, "scale"), None] | [None, Part(source, "scale")]:
            constant = reader.constant(node, given.index(None))
            assert constant is not None  # noqa: S101 - Mul has two inputs
            reader.pending[node.output[0]] = Scales(source, constant.values)
        case "Mul", [Products() as products, Scales() as scales] | [
            Scales() as scales,
            Products() as products,
        ]:
            _finish(node, name, (products, scales), reader)
        case _:
            raise RefusedNode(
                "what DynamicQuantizeLinear gives goes through MatMulInteger or ConvInteger, Cast and Mul only"
            )
    return True


def _weight(node: onnx.NodeProto, reader: Reader) -> Constant:
    """Return the weight [outputs, ...] without zero points: int8 where that holds it, else int16."""
    weight, zero = reader.constant(node, 1), reader.constant(node, 3)
    extents, axis = (2, 1) if node.op_type == "MatMulInteger" else (4, 0)
    if weight is None or weight.values.ndim != extents or weight.values.dtype not in (np.int8, np.uint8):
        raise RefusedNode(f"its weight has not {extents} dimensions of 8-bit integers")
    zeros = np.zeros(1, weight.values.dtype) if zero is None else zero.values.reshape(-1)
    if zeros.size not in (1, weight.values.shape[axis]):
        raise RefusedNode("its weight has other zero points than one, or one for each output")
    integers = Constant(weight.values, np.ones(1, np.float32), zeros, axis).around_zero().values
    integers = integers.T if extents == 2 else integers
    if largest_sums(integers).max() >= MOST:
        raise RefusedNode("its accumulator could overflow 32 bits")
    return Constant(np.ascontiguousarray(integers))


def _conv2d(node: onnx.NodeProto, source: str, reader: Reader) -> Conv2d:
    shape, weight = shape4(reader, source), _weight(node, reader)
    stride, padding = window(node, shape, (weight.values.shape[2], weight.values.shape[3]))
    groups = attributes(node).get("group", 1)
    return Conv2d(weight, _NO_BIAS, stride, padding, groups, dynamic=True)


def _finish(node: onnx.NodeProto, name: str, parts: tuple[Products, Scales], reader: Reader) -> None:
    products, scales = parts
    weight = products.op.weight.values
    outputs, found = len(weight), scales.of_weight
    # Of a convolution [outputs, 1, 1], so that they are multiplied along the channels.
    by_channel = (outputs,) if weight.ndim == 2 else (outputs, 1, 1)
    extents = found.shape[next((i for i, extent in enumerate(found.shape) if extent != 1), found.ndim) :]
    if products.source != scales.source or extents not in ((), by_channel):
        raise RefusedNode("its scales are those of another product")
    if found.dtype != np.float32 or not np.all(np.isfinite(found)):
        raise RefusedNode("its scales are not finite float32 numbers")
    scale, zero = np.broadcast_to(found.reshape(-1), (outputs,)), np.zeros(outputs, np.int8)
    op = replace(
        products.op,
        weight=Constant(weight, scale, zero, 0),
        bias=Constant(np.zeros(outputs, np.float32)),
    )
    reader.tensor(products.source)
    layer = Layer(name, products.kind, op, (products.source,), node.output[0], joined=products.nodes)
    reader.layers.append(layer)
