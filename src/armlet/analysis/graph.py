"""The operator graph of a torch module, from torch.export, on which every analysis and rewrite of networks rests.

The graph is the one before decomposition: `aten.conv2d`, `aten.linear`, `aten.batch_norm`; but attention in one
operator is taken apart. Its batch dimension is free, and node names depend on nothing but the module, so that they can
be stored and found again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.fx import GraphModule, Node

from armlet.artifacts import InputSpec
from armlet.errors import UnsupportedOperator
from armlet.models.attention import Decomposed

aten = torch.ops.aten

_SMALLEST_BATCH = 2
"""torch.export takes a batch of 0 or 1 for a constant."""


@dataclass(frozen=True, slots=True)
class Traced:
    """A module's graph. Parameters and buffers are placeholder nodes of it, before the inputs."""

    program: torch.export.ExportedProgram

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes that compute something, in the order of execution."""
        return tuple(node for node in self.program.graph.nodes if node.op == "call_function")

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The nodes of the module's inputs, named as the network's inputs are."""
        names = self.program.graph_signature.user_inputs
        return tuple(node for node in self.program.graph.nodes if node.name in names)

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
        # The exporter's module refuses eval() and train(), which callers may use on any module.
        runnable = GraphModule(module, graph)
        return observing(runnable, names) if (names := tuple(observed)) else runnable


def observing(module: GraphModule, names: Sequence[str]) -> GraphModule:
    """Return a module that gives the values of these names of a graph, in this order, and shares its parameters."""
    graph, copies = torch.fx.Graph(), dict[Node, Node]()
    graph.graph_copy(module.graph, copies)
    nodes = nodes_by_name(module.graph)
    graph.output(tuple(copies[nodes[name]] for name in names))
    graph.eliminate_dead_code()
    return GraphModule(module, graph)


def example_inputs(
    inputs: Sequence[InputSpec], n: int, device: torch.device | None = None
) -> tuple[Tensor, ...]:
    """Return `n` samples that a network takes: zeros, and the largest integers, such as a whole length."""
    return tuple(
        torch.zeros(n, *spec.shape, device=device)
        if spec.dtype == "float32"
        else torch.full((n, *spec.shape), (spec.n_values or 1) - 1, dtype=torch.int32, device=device)
        for spec in inputs
    )


def trace(module: torch.nn.Module, inputs: Sequence[InputSpec]) -> Traced:
    """Export a module with a free batch size; dropout, which does nothing then, and what nothing reads are left out.

    Args:
        module: in eval mode; not changed.
        inputs: what it takes; the graph's inputs get these names, whatever the module's forward calls them.

    Raises:
        ValueError: the module is in training mode.
        UnsupportedOperator: torch.export can't follow the module, or it needs a fixed batch size.
    """
    if module.training:
        raise ValueError("only a module in eval mode can be traced")
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad(), Decomposed(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised inside torch, about torch
            program = torch.export.export(
                module,
                example_inputs(inputs, _SMALLEST_BATCH, device),
                dynamic_shapes=tuple({0: batch} for _ in inputs),
            )
    except (TorchDynamoException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if "data-dependent" in reason:
            reason = f"what it does next depends on values, and must not ({reason})"
        raise UnsupportedOperator(f"torch.export can't follow {type(module).__name__}: {reason}") from error
    graph = program.graph
    for node in graph.find_nodes(op="call_function", target=aten.dropout.default):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    graph.eliminate_dead_code()
    for specification, node in zip(program.graph_signature.output_specs, _results(program), strict=True):
        specification.arg.name = node.name
    _name_inputs(program, inputs)
    program.graph_module.recompile()
    return Traced(program)


def _name_inputs(program: torch.export.ExportedProgram, inputs: Sequence[InputSpec]) -> None:
    """Name the graph's inputs after the network's."""
    signature = program.graph_signature
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    specifications = [
        s for s in signature.input_specs if s.kind == torch.export.graph_signature.InputKind.USER_INPUT
    ]
    for specification, spec in zip(specifications, inputs, strict=True):
        node = placeholders[specification.arg.name]
        node.name = node.target = specification.arg.name = spec.name


def value_name(node: Node) -> str:
    """Return the name by which a node's value is known: the node's own, or that of the network's input."""
    return str(node.target) if node.op == "placeholder" else node.name


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
