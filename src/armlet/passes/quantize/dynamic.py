"""Which layers quantise their input while the program runs: linear layers and convolutions with integer weights."""

from __future__ import annotations

from dataclasses import replace

from armlet.analysis.graph import Traced, arguments, aten
from armlet.models.quantization import Quantization
from armlet.passes.quantize.joints import groups_of
from armlet.passes.quantize.simulation import weight_nodes


def with_dynamic_inputs(traced: Traced, quantization: Quantization) -> Quantization:
    """Return the quantisation of weights in which layers take inputs quantised while the program runs.

    Not so transposed convolutions, for which ONNX has no operator, dilated ones, which have no kernel, and depthwise
    ones: they read each value for a handful of products, and to quantise it is as much work.
    """
    nodes = weight_nodes(traced)

    def is_dynamic(name: str) -> bool:
        node = nodes.get(name)
        if node is None or node.target is aten.linear.default:
            return node is not None
        if node.target is aten.conv_transpose2d.input:
            return False
        depthwise = groups_of(node) > 1 and traced.program.state_dict[name].shape[1] == 1
        given = arguments(node)
        return not depthwise and (len(given) < 6 or all(extent == 1 for extent in given[5]))

    parameters = tuple(replace(p, dynamic_input=is_dynamic(p.parameter)) for p in quantization.parameters)
    return replace(quantization, parameters=parameters)


def what_computes(quantization: Quantization) -> str:
    """Return for the notes what computes on integers and what does not."""
    dynamic = sum(p.dynamic_input for p in quantization.parameters)
    # A recurrent layer has two weights.
    others = len({p.parameter.rpartition(".")[0] for p in quantization.parameters}) - dynamic
    text = f"{dynamic} layers quantise their input while they run"
    return f"{text}; {others} others have integer weights and compute in float" if others else text
