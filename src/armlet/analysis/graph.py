"""The operator graph of a torch module, from torch.export, on which every analysis and rewrite of networks rests.

The graph is the one before decomposition: `aten.conv2d`, `aten.linear`, `aten.batch_norm`. Its batch dimension is
free, and node names depend on nothing but the module, so that they can be stored and found again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule, Node

from armlet.errors import UnsupportedOperator

aten = torch.ops.aten

INPUT = "input"
"""Name of the value that a network takes, whatever its module's forward calls it."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A module's graph. Parameters and buffers are placeholder nodes of it, before the input."""

    program: torch.export.ExportedProgram

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes that compute something, in the order of execution."""
        return tuple(node for node in self.program.graph.nodes if node.op == "call_function")

    @property
    def input(self) -> Node:
        """The node of the module's input."""
        (name,) = self.program.graph_signature.user_inputs
        found: Node = next(node for node in self.program.graph.nodes if node.name == name)
        return found

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The nodes whose values the module returns."""
        return _results(self.program)

    def tensor_name(self, node: object) -> str | None:
        """Return the name of the parameter or buffer that a node stands for, None if it stands for none."""
        if not isinstance(node, Node):
            return None
        signature = self.program.graph_signature
        name: str | None = signature.inputs_to_parameters.get(node.name)
        return name or signature.inputs_to_buffers.get(node.name)

    def runnable(self, observed: Iterable[str] = ()) -> GraphModule:
        """Return the graph as a module of its own that shares no graph with this one.

        Args:
            observed: names of values; when given, the module returns a tuple of their values in this order instead.
        """
        module = self.program.module(check_guards=False)
        graph = module.graph
        if names := tuple(observed):
            nodes = nodes_by_name(graph)
            graph.output_node().args = (tuple(nodes[name] for name in names),)
            graph.set_codegen(torch.fx.graph.CodeGen())
            graph.eliminate_dead_code()
        # The exporter's module refuses eval() and train(), which callers may use on any module.
        return GraphModule(module, graph)


def trace(module: torch.nn.Module, input_shape: tuple[int, ...]) -> Traced:
    """Export a module with one input of a free batch size; dropout, which does nothing in eval mode, is left out.

    Args:
        module: in eval mode; not changed.
        input_shape: without the batch.

    Raises:
        ValueError: the module is in training mode.
        UnsupportedOperator: torch.export can't follow the module, or it needs a fixed batch size.
    """
    if module.training:
        raise ValueError("only a module in eval mode can be traced")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    # A batch of 2: torch.export takes 0 and 1 for constants.
    example = torch.zeros(2, *input_shape, device=device)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised inside torch, about torch
            program = torch.export.export(
                module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
    except (TorchDynamoException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedOperator(f"torch.export can't follow {type(module).__name__}: {reason}") from error
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=aten.dropout.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    for specification, node in zip(program.graph_signature.output_specs, _results(program), strict=True):
        specification.arg.name = node.name
    program.graph_module.recompile()
    return Traced(program)


def value_name(node: Node) -> str:
    """Return the name by which a node's value is known: the node's, and `input` for the network's input."""
    return INPUT if node.op == "placeholder" else node.name


def nodes_by_name(graph: torch.fx.Graph) -> dict[str, Node]:
    """Return the nodes of a `Traced.runnable` graph by the names of their values."""
    return {value_name(node): node for node in graph.nodes if node.op in ("placeholder", "call_function")}


def arguments(node: Node) -> tuple[Any, ...]:
    """Return what a node is called with, in the operator's order; trailing defaults are left out."""
    return node.args


def module_name(node: Node) -> str:
    """Return the dotted name of the module that a node was called in, empty for the network itself."""
    stack = node.meta.get("nn_module_stack")
    return next(reversed(stack.values()))[0] if stack else ""


def layer_name(node: Node) -> str:
    """Return what a person knows a node by: its module's name if that is a leaf's, and the node's name."""
    name = module_name(node)
    return f"{name} ({node.name})" if name else node.name


def operator_name(node: Node) -> str:
    """Return the operator that a node calls, such as `silu`."""
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def shape_of(node: Node) -> tuple[int | torch.SymInt, ...]:
    """Return the shape of a node's value; the batch is symbolic."""
    return tuple(node.meta["val"].shape)


def _results(program: torch.export.ExportedProgram) -> tuple[Node, ...]:
    return tuple(program.graph.output_node().args[0])
