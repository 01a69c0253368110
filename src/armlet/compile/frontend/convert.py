"""ONNX nodes to layers, one function for each kind of operator. A function refuses what it can't express exactly."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.constants import transposed
from armlet.compile.frontend.generic import append, convert_generic
from armlet.compile.frontend.graph import (
    Add,
    Concat,
    Conv2d,
    Convert,
    Dense,
    Enlarge,
    Layer,
    Limit,
    Lookup,
    MatMul,
    Part,
    Pool,
    Reshape,
    RowMean,
    Softmax,
    Spread,
    Transpose,
)
from armlet.compile.frontend.integers import convert_to_float, dequantize, quantize
from armlet.compile.frontend.normalization import convert_group_norm, convert_layer_norm
from armlet.compile.frontend.reader import Converter, Reader, RefusedNode, attributes
from armlet.compile.frontend.recurrent import convert_recurrent
from armlet.compile.frontend.truth import convert_to_truth
from armlet.compile.frontend.values import Clamp, Constant, Tensor

if TYPE_CHECKING:
    import onnx


def shape4(reader: Reader, value: str) -> tuple[int, int, int, int]:
    """Return the shape of a value [1, C, H, W]; refuse any other."""
    tensor = reader.tensor(value)
    if len(tensor.shape) != 4 or tensor.shape[0] != 1:
        raise RefusedNode(f"its input has the shape {list(tensor.shape)}, not [1, C, H, W]")
    return tensor.shape[0], tensor.shape[1], tensor.shape[2], tensor.shape[3]


def window(
    node: onnx.NodeProto, shape: tuple[int, ...], kernel: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return stride and padding (top, left, bottom, right) of a convolution or pooling node."""
    given = attributes(node)
    if any(d != 1 for d in given.get("dilations", [])):
        raise RefusedNode("it is dilated")
    if given.get("ceil_mode", 0):
        raise RefusedNode("its windows go beyond the input (ceil_mode)")
    stride = tuple(given.get("strides", [1, 1]))
    mode = given.get("auto_pad", b"NOTSET").decode()
    if mode == "NOTSET":
        padding = tuple(given.get("pads", [0, 0, 0, 0]))
    elif mode == "VALID":
        padding = (0, 0, 0, 0)
    else:
        total = [
            max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(shape[2:], kernel, stride, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        padding = (*small, *large) if mode == "SAME_UPPER" else (*large, *small)
    return (stride[0], stride[1]), (padding[0], padding[1], padding[2], padding[3])


def _zero_bias(n: int) -> Constant:
    return Constant(np.zeros(n, np.float32))


def _conv(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    shape = shape4(reader, node.input[0])
    weight = reader.constant(node, 1)
    if weight is None or weight.values.ndim != 4:
        raise RefusedNode("only two-dimensional convolutions are known")
    stride, padding = window(node, shape, (weight.values.shape[2], weight.values.shape[3]))
    bias = reader.constant(node, 2) or _zero_bias(weight.values.shape[0])
    op = Conv2d(weight, bias, stride, padding, attributes(node).get("group", 1))
    append(reader, node, name, op, (node.input[0],))


def _conv_transpose(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a transposed convolution as a convolution with the kernel turned around, over the input spread apart."""
    given, shape = attributes(node), shape4(reader, node.input[0])
    weight = reader.constant(node, 1)
    if weight is None or weight.values.ndim != 4 or given.get("group", 1) != 1:
        raise RefusedNode("only two-dimensional transposed convolutions without groups are known")
    if any(d != 1 for d in given.get("dilations", [])) or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise RefusedNode("it is dilated, or pads by itself")
    rows, columns = weight.values.shape[2:]
    stride = (given.get("strides", [1, 1])[0], given.get("strides", [1, 1])[1])
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    below, beside = given.get("output_padding", [0, 0])
    border = (rows - 1 - top, columns - 1 - left, rows - 1 - bottom + below, columns - 1 - right + beside)
    if min(border) < 0:
        raise RefusedNode("it cuts off more than its kernel reaches")
    turned = np.ascontiguousarray(weight.values.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])
    turned_weight = Constant(turned, weight.scale, weight.zero, 1 - weight.axis)
    bias = reader.constant(node, 2) or _zero_bias(turned.shape[0])
    spread = f"{node.output[0]}:spread"
    height = (shape[2] - 1) * stride[0] + 1 + border[0] + border[2]
    width = (shape[3] - 1) * stride[1] + 1 + border[1] + border[3]
    reader.tensors[spread] = Tensor((1, shape[1], height, width), reader.tensor(node.input[0]).dtype)
    reader.layers.append(Layer(name, node.op_type, Spread(stride, border), (node.input[0],), spread))
    append(reader, node, name, Conv2d(turned_weight, bias, (1, 1), (0, 0, 0, 0), 1), (spread,))


def _resize(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    given, shape = attributes(node), shape4(reader, node.input[0])
    after = reader.tensor(node.output[0]).shape
    whole = all(b % a == 0 for a, b in zip(shape[2:], after[2:], strict=True))
    if given.get("mode", b"nearest") != b"nearest" or not whole or after[:2] != shape[:2]:
        raise RefusedNode("only whole repetitions of pixels are known")
    coordinates = given.get("coordinate_transformation_mode", b"half_pixel")
    if (coordinates, given.get("nearest_mode", b"round_prefer_floor")) not in (
        (b"asymmetric", b"floor"), (b"half_pixel", b"round_prefer_floor"), (b"half_pixel", b"round_prefer_ceil"),
    ):  # fmt: skip
        raise RefusedNode("it takes other pixels than the nearest")
    factor = (after[2] // shape[2], after[3] // shape[3])
    append(reader, node, name, Enlarge(factor), (node.input[0],))


def _of_groups(weight: Constant) -> Constant:
    """Return a weight [outputs, inputs]; refuse blocks that are not groups of the inputs of one output, around 0."""
    scale = weight.scale
    if scale is None or not weight.has_blocks:
        return weight
    if scale.shape[0] != len(weight.values) or np.any(weight.zero) or weight.values.dtype != np.int8:
        raise RefusedNode("its blocks are not int8 around 0, or share a scale between outputs")
    return weight


def _gemm(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    given = attributes(node)
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0 or given.get("transA", 0):
        raise RefusedNode("it scales or transposes")
    weight = reader.constant(node, 1)
    if weight is None:
        raise RefusedNode("it has no weight")
    weight = _of_groups(weight if given.get("transB", 0) else transposed(weight, (1, 0)))
    outputs = weight.values.shape[0]
    bias = reader.constant(node, 2) or _zero_bias(outputs)
    if bias.values.size not in (1, outputs):
        raise RefusedNode("its bias differs from row to row")
    if bias.values.size != outputs:
        bias = Constant(np.full(outputs, bias.real().reshape(-1)[0], np.float32))
    bias = Constant(bias.values.reshape(-1), bias.scale, bias.zero, 0)
    append(reader, node, name, Dense(weight, bias), (node.input[0],))


def _matmul(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    right = reader.constants.get(node.input[1])
    if right is None or right.values.ndim != 2 or len(reader.tensor(node.input[0]).shape) < 2:
        shapes = [reader.tensor(v).shape for v in node.input if v not in reader.constants]
        pairs = len(shapes) == 2 and min(map(len, shapes)) > 1 and shapes[0][:-2] == shapes[1][:-2]
        if pairs:
            append(reader, node, name, MatMul(), tuple(node.input))
        else:
            convert_generic(node, name, reader)
        return
    op = Dense(_of_groups(transposed(right, (1, 0))), _zero_bias(right.values.shape[1]))
    append(reader, node, name, op, (node.input[0],))


def _add(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    shapes = {reader.tensor(v).shape for v in node.input if v not in reader.constants}
    if any(v in reader.constants for v in node.input) or len(shapes) > 1:
        convert_generic(node, name, reader)
    else:
        append(reader, node, name, Add(), tuple(node.input))


def _relu(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    append(reader, node, name, Limit(Clamp(0.0, None)), (node.input[0],))


def _clip(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    limits = [reader.constant(node, position) for position in (1, 2)]
    if (dtype := reader.tensor(node.input[0]).dtype) != "float32":
        raise RefusedNode(f"{node.input[0]} is {dtype}, not float32")
    low, high = (None if c is None else float(c.values.reshape(-1)[0]) for c in limits)
    append(reader, node, name, Limit(Clamp(low, high)), (node.input[0],))


def _extremum(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read the greater, or the less, of float values and a number as a limit: PyTorch's clamp to a whole number."""
    numbers = [reader.constants[v] for v in node.input if v in reader.constants]
    values = [v for v in node.input if v not in reader.constants]
    single = len(values) == len(numbers) == 1 and numbers[0].values.size == 1
    if not single or reader.tensor(values[0]) != Tensor(reader.tensor(node.output[0]).shape, "float32"):
        convert_generic(node, name, reader)
        return
    number = float(numbers[0].real().reshape(-1)[0])
    clamp = Clamp(number, None) if node.op_type == "Max" else Clamp(None, number)
    append(reader, node, name, Limit(clamp), (values[0],))


def _pool(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    given = attributes(node)
    shape = shape4(reader, node.input[0])
    if len(given["kernel_shape"]) != 2 or any(node.output[1:]):
        raise RefusedNode("only two-dimensional pooling with one output is known")
    kernel = (given["kernel_shape"][0], given["kernel_shape"][1])
    stride, padding = window(node, shape, kernel)
    kind = "max_pool2d" if node.op_type == "MaxPool" else "avg_pool2d"
    if kind == "avg_pool2d" and any(padding) and not given.get("count_include_pad", 0):
        raise RefusedNode("its mean leaves out the padding (count_include_pad = 0)")
    append(reader, node, name, Pool(kind, kernel, stride, padding), (node.input[0],))


def _global_pool(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    shape = shape4(reader, node.input[0])
    kind = "max_pool2d" if node.op_type == "GlobalMaxPool" else "avg_pool2d"
    append(reader, node, name, Pool(kind, shape[2:], (1, 1), (0, 0, 0, 0)), (node.input[0],))


def _reduce_mean(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    shape = reader.tensor(node.input[0]).shape
    axes = reader.constant(node, 1)
    chosen = attributes(node).get("axes", []) if axes is None else axes.values.reshape(-1).tolist()
    if len(shape) == 3 and shape[0] == 1 and [a % 3 for a in chosen] == [1]:
        append(reader, node, name, RowMean(), (node.input[0],))
        return
    if len(shape) != 4 or shape[0] != 1 or sorted(a % 4 for a in chosen) != [2, 3]:
        convert_generic(node, name, reader)
        return
    pool = Pool("avg_pool2d", (shape[2], shape[3]), (1, 1), (0, 0, 0, 0))
    if attributes(node).get("keepdims", 1):
        append(reader, node, name, pool, (node.input[0],))
        return
    pooled = f"{node.output[0]}:pooled"
    reader.tensors[pooled] = Tensor((1, shape[1], 1, 1), reader.tensor(node.input[0]).dtype)
    reader.layers.append(Layer(name, node.op_type, pool, (node.input[0],), pooled))
    append(reader, node, name, Reshape(), (pooled,))


def _softmax(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    rank = len(reader.tensor(node.input[0]).shape)
    if attributes(node).get("axis", -1) % rank == rank - 1:
        append(reader, node, name, Softmax(), (node.input[0],))
    else:
        convert_generic(node, name, reader)


def _reshape(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    append(reader, node, name, Reshape(), (node.input[0],))


def _cast(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    types = reader.tensor(node.input[0]).dtype, reader.tensor(node.output[0]).dtype
    if node.output[0] in reader.truths and node.input[0] not in reader.truths:
        convert_to_truth(node, name, reader)
    elif types == ("int32", "float32"):
        append(reader, node, name, Convert(), (node.input[0],))
    elif types == ("int8", "float32"):
        convert_to_float(node, name, reader)
    elif types[0] == types[1] and len(reader.unsigned.intersection((node.input[0], node.output[0]))) != 1:
        _reshape(node, name, reader)
    else:
        ends = zip((node.input[0], node.output[0]), types, strict=True)
        source, result = ("uint8" if value in reader.unsigned else dtype for value, dtype in ends)
        raise RefusedNode(f"it turns {source} into {result}")


def _gather(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    table, index = reader.constants.get(node.input[0]), reader.constants.get(node.input[1])
    if table is None and index is not None and index.values.size == 1:
        shape = reader.tensor(node.input[0]).shape
        axis = attributes(node).get("axis", 0) % len(shape)
        if prod(shape[:axis]) == 1:
            _append_part(node, name, reader, axis, int(index.values.reshape(-1)[0]))
            return
    if table is None or table.values.ndim != 2 or attributes(node).get("axis", 0) != 0:
        raise RefusedNode("only rows of a constant table are gathered")
    if reader.tensor(node.input[1]).dtype != "int32":
        raise RefusedNode(f"its indices are {reader.tensor(node.input[1]).dtype}, not int32")
    append(reader, node, name, Lookup(table), (node.input[1],))


def _transpose(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    rank = len(reader.tensor(node.input[0]).shape)
    order = tuple(attributes(node).get("perm", reversed(range(rank))))
    append(reader, node, name, Transpose(order), (node.input[0],))


def _slice(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a slice as a part of memory where its elements lie in a row there, which is so behind axes of 1."""
    shape = reader.tensor(node.input[0]).shape
    starts, axes, steps = (reader.constant(node, position) for position in (1, 3, 4))
    axis = [] if starts is None or axes is None else axes.values.reshape(-1).tolist()
    plain = steps is None or bool((steps.values == 1).all())
    if starts is None or len(axis) != 1 or not plain or prod(shape[: axis[0] % len(shape)]) != 1:
        convert_generic(node, name, reader)
        return
    _append_part(node, name, reader, axis[0] % len(shape), int(starts.values.reshape(-1)[0]))


def _split(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a split as a slice for each part."""
    import onnx

    rank = len(reader.tensor(node.input[0]).shape)
    axis, start = attributes(node).get("axis", 0) % rank, 0
    for output in node.output:
        end = start + reader.tensor(output).shape[axis]
        given = {f"{output}:starts": start, f"{output}:ends": end, f"{output}:axes": axis}
        reader.constants.update({key: Constant(np.array([value])) for key, value in given.items()})
        part = onnx.helper.make_node("Slice", [node.input[0], *given], [output])
        _slice(part, name if len(node.output) == 1 else output, reader)
        start = end


def _append_part(node: onnx.NodeProto, name: str, reader: Reader, axis: int, start: int) -> None:
    """Append the elements from index `start` of an axis on, as many as the result has; all axes before it are 1."""
    shape, after = reader.tensor(node.input[0]).shape, reader.tensor(node.output[0])
    extent = shape[axis]
    start = min(start + extent if start < 0 else start, extent)
    flat = f"{node.output[0]}:flat"
    reader.tensors[flat] = Tensor((after.size,), after.dtype)
    part = Part(start * (prod(shape) // extent))
    reader.layers.append(Layer(name, node.op_type, part, (node.input[0],), flat))
    append(reader, node, name, Reshape(), (flat,))


def _concat(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    if any(v in reader.constants for v in node.input):
        raise RefusedNode("one of its inputs is a constant")
    axis = attributes(node)["axis"] % len(reader.tensor(node.output[0]).shape)
    append(reader, node, name, Concat(axis), tuple(node.input))


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Resize": _resize,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "Add": _add,
        "Relu": _relu,
        "Clip": _clip,
        "Max": _extremum,
        "Min": _extremum,
        "MaxPool": _pool,
        "AveragePool": _pool,
        "GlobalMaxPool": _global_pool,
        "GlobalAveragePool": _global_pool,
        "ReduceMean": _reduce_mean,
        "Softmax": _softmax,
        "LayerNormalization": convert_layer_norm,
        "GroupNormalization": convert_group_norm,
        "InstanceNormalization": convert_group_norm,
        "Reshape": _reshape,
        "Flatten": _reshape,
        "Squeeze": _reshape,
        "Unsqueeze": _reshape,
        "Identity": _reshape,
        "Dropout": _reshape,
        "Cast": _cast,
        "Transpose": _transpose,
        "Gather": _gather,
        "Concat": _concat,
        "Slice": _slice,
        "Split": _split,
        "LSTM": convert_recurrent,
        "GRU": convert_recurrent,
        "RNN": convert_recurrent,
        "QuantizeLinear": quantize,
        "DequantizeLinear": dequantize,
    }
)
"""The function that reads each operator."""
