"""What is known of an ONNX graph while its nodes are read one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from armlet.compile.frontend.graph import Layer
from armlet.compile.frontend.values import Constant, Tensor

if TYPE_CHECKING:
    import onnx

    from armlet.compile.frontend.dynamic import Pending


class RefusedNode(Exception):
    """One node can't be read; the message says why. Never leaves this package: `read_onnx` gathers them."""


@dataclass(slots=True)
class Reader:
    """What is known while the nodes are read one after the other.

    Attributes:
        constants: values known at compile time.
        tensors: shape and type of every value.
        layers: what has been read.
        opset: version of the ONNX operators.
        used: values that a node or the caller reads.
        pending: values of layers that are not whole yet (`frontend.dynamic`).
        factors: the two constants of each constant that is their matrix product.
        truths: values that are true or false, 1.0 or 0.0 between the layers.
        unsigned: values of 8-bit integers without a sign, int8 and 128 less between the layers.
    """

    constants: dict[str, Constant]
    tensors: dict[str, Tensor]
    opset: int
    used: frozenset[str] = frozenset()
    pending: dict[str, Pending] = field(default_factory=dict)
    factors: dict[str, tuple[Constant, Constant]] = field(default_factory=dict)
    truths: frozenset[str] = frozenset()
    unsigned: frozenset[str] = frozenset()
    layers: list[Layer] = field(default_factory=list)

    def constant(self, node: onnx.NodeProto, position: int) -> Constant | None:
        """Return the constant that is the node's input at `position`, None if it is left out.

        Raises:
            RefusedNode: the input is there, but is not a constant.
        """
        if position >= len(node.input) or not node.input[position]:
            return None
        if node.input[position] not in self.constants:
            raise RefusedNode(f"its input {position} is not a constant")
        return self.constants[node.input[position]]

    def tensor(self, name: str) -> Tensor:
        """Return shape and type of a value.

        Raises:
            RefusedNode: they are not known at compile time.
        """
        if name not in self.tensors:
            raise RefusedNode(f"the shape of {name} is not static")
        return self.tensors[name]


Converter: TypeAlias = "Callable[[onnx.NodeProto, str, Reader], None]"
"""Reads a node under a name."""


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the node's attributes by name."""
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
