"""Runs one node by ONNX's own reference implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.reader import RefusedNode
from armlet.compile.frontend.values import Array

if TYPE_CHECKING:
    import onnx


def evaluate(node: onnx.NodeProto, operands: list[Array], opset: int) -> Array:
    """Return what a node gives.

    Args:
        node: with one output.
        operands: for each of its inputs that has a name.
        opset: version of the operators that it follows.

    Raises:
        RefusedNode: it does not give one tensor.
    """
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(node, opsets={"": opset})
    # One value may be several of the inputs.
    results = evaluator.run(None, dict(zip([n for n in node.input if n], operands, strict=True)))
    if len(node.output) != 1 or not isinstance(results[0], np.ndarray | np.generic):
        raise RefusedNode("a constant node must have one tensor as its output")
    return np.asarray(results[0])
