"""Which layers quantise their input while the program runs: linear layers, whose weights are integers."""

from __future__ import annotations

from dataclasses import replace

from armlet.analysis.graph import Traced, aten
from armlet.models.quantization import Quantization
from armlet.passes.quantize.simulation import weight_nodes


def with_dynamic_inputs(traced: Traced, quantization: Quantization) -> Quantization:
    """Return the quantisation of weights in which linear layers take inputs quantised while the program runs."""
    nodes = weight_nodes(traced)

    def is_linear(name: str) -> bool:
        return name in nodes and nodes[name].target is aten.linear.default

    parameters = tuple(replace(p, dynamic_input=is_linear(p.parameter)) for p in quantization.parameters)
    return replace(quantization, parameters=parameters)


def what_computes(quantization: Quantization) -> str:
    """Return for the notes what computes on integers and what does not."""
    dynamic = sum(p.dynamic_input for p in quantization.parameters)
    # A recurrent layer has two weights.
    others = len({p.parameter.rpartition(".")[0] for p in quantization.parameters}) - dynamic
    text = f"{dynamic} linear layers quantise their input while they run"
    return f"{text}; {others} others have integer weights and compute in float" if others else text
