"""Where each ONNX value lies in the .tflite file, in which order, and the moves from one order to another.

ONNX keeps pictures as [N, C, H, W], LiteRT as [N, H, W, C]. A value is kept in the order that its layer makes, and
moved only when a reader needs another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from ai_edge_litert import schema_py_generated as tfl

from armlet.errors import UnsupportedOperator
from armlet.export.litert.flatbuffer import FlatModel, Tensor
from armlet.export.litert.graph import Graph

TO_CHANNELS_LAST = (0, 2, 3, 1)
TO_CHANNELS_FIRST = (0, 3, 1, 2)


class Order(Enum):
    """How the elements of a value lie in memory; FLAT is [N, H·W·C] for an ONNX value [N, C·H·W]."""

    PLAIN = ""
    CHANNELS_LAST = "/channels_last"
    FLAT = "/flat_channels_last"


@dataclass(frozen=True, slots=True)
class Placed:
    """A value's tensor; `picture` is the (C, H, W) of a flat one."""

    tensor: Tensor
    picture: tuple[int, ...] = ()


class Values:
    """Maps ONNX values to tensors of the file."""

    def __init__(self, graph: Graph, model: FlatModel) -> None:
        self._graph, self._model = graph, model
        self._placed: dict[tuple[str, Order], Placed] = {}

    def add(self, name: str, order: Order = Order.PLAIN, picture: tuple[int, ...] = ()) -> Tensor:
        """Add the tensor of a value that a layer makes: int8 if the graph quantises the value."""
        shape = self._graph.shape(name)
        if order is Order.CHANNELS_LAST:
            shape = _permuted(shape, TO_CHANNELS_LAST)
        tensor = self._model.add_tensor(name + order.value, shape, self._graph.scales.get(name))
        self._placed[name, order] = Placed(tensor, picture)
        return tensor

    def order(self, name: str) -> Order:
        """Return an order in which a value can be read without a move."""
        names = (name, self._graph.dequantized.get(name, name))
        for order in (Order.CHANNELS_LAST, Order.FLAT):
            if any((each, order) in self._placed for each in names):
                return order
        return Order.PLAIN

    def read(self, name: str, order: Order = Order.PLAIN) -> Tensor:
        """Return a value in an order; FLAT only where `order` says that it lies so.

        Raises:
            UnsupportedOperator: no float32 value of this name exists.
        """
        return self.placed(name, order).tensor

    def placed(self, name: str, order: Order) -> Placed:
        """Return a value's tensor as `read` does, with its picture."""
        if (name, order) not in self._placed:
            self._placed[name, order] = self._made(name, order)
        return self._placed[name, order]

    def _made(self, name: str, order: Order) -> Placed:
        if name in self._graph.dequantized:
            source = self.placed(self._graph.dequantized[name], order)
            tensor = self._model.add_tensor(name + order.value, source.tensor.shape, None)
            self._model.add_operator(tfl.BuiltinOperator.DEQUANTIZE, 2, [source.tensor], tensor)
            return Placed(tensor, source.picture)
        if order is Order.CHANNELS_LAST:
            return Placed(self.transposed(self.read(name), TO_CHANNELS_LAST, name + order.value))
        if (name, Order.CHANNELS_LAST) in self._placed:
            source = self._placed[name, Order.CHANNELS_LAST]
            return Placed(self.transposed(source.tensor, TO_CHANNELS_FIRST, name))
        if (name, Order.FLAT) in self._placed:
            return Placed(self._unflattened(self._placed[name, Order.FLAT], name))
        constant = self._graph.constants.get(name)
        if constant is None or constant.real.dtype != np.float32:
            raise UnsupportedOperator(f"{name} is not a float32 value of the network")
        return Placed(self._model.add_constant(name, constant.real))

    def _unflattened(self, flat: Placed, name: str) -> Tensor:
        channels, height, width = flat.picture
        picture = self.reshaped(flat.tensor, (1, height, width, channels), f"{name}/picture")
        picture = self.transposed(picture, TO_CHANNELS_FIRST, f"{name}/channels_first")
        return self.reshaped(picture, flat.tensor.shape, name)

    def transposed(self, tensor: Tensor, axes: Sequence[int], name: str) -> Tensor:
        """Return a tensor with its dimensions permuted."""
        result = self._model.add_tensor(name, _permuted(tensor.shape, axes), tensor.quantization)
        self.transpose(tensor, axes, result)
        return result

    def transpose(self, tensor: Tensor, axes: Sequence[int], result: Tensor) -> None:
        """Make `result` of `tensor` with its dimensions permuted: a RESHAPE where no element moves."""
        if _moves_nothing(tensor.shape, axes):
            self.reshape(tensor, result)
            return
        permutation = self._model.add_constant(f"{result.name}/axes", np.array(axes, np.int32))
        version = 1 if tensor.quantization is None else 2
        self._model.add_operator(
            tfl.BuiltinOperator.TRANSPOSE, version, [tensor, permutation], result, tfl.TransposeOptionsT()
        )

    def reshaped(self, tensor: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """Give a tensor another shape."""
        result = self._model.add_tensor(name, shape, tensor.quantization)
        self.reshape(tensor, result)
        return result

    def reshape(self, tensor: Tensor, result: Tensor) -> None:
        """Make `result` of the elements of `tensor`."""
        shape = self._model.add_constant(f"{result.name}/shape", np.array(result.shape, np.int32))
        options = tfl.ReshapeOptionsT(newShape=list(result.shape))
        self._model.add_operator(tfl.BuiltinOperator.RESHAPE, 1, [tensor, shape], result, options)


def _permuted(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in axes)


def _moves_nothing(shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether the dimensions of more than one element keep their order."""
    longer = [axis for axis in axes if shape[axis] > 1]
    return longer == sorted(longer)
