"""A network as an ONNX file: batch of one, static shapes, QDQ nodes when quantised.

Input -> Output: torch graph -> ONNX, in these steps:
1. torch's exporter translates the graph, in which quantised activations already stand between quantize and
   dequantize operators;
2. quantised weights and biases become integer initializers behind a DequantizeLinear each, found by their name, and a
   Reshape where groups of inputs have scales of their own; layers whose input is quantised while the program runs
   become integer operators;
3. nodes and values are named after the layers, and what depends on the machine is removed, so that the same network
   gives the same bytes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as ir_passes
import torch

from armlet.analysis.graph import example_inputs
from armlet.errors import UnsupportedOperator
from armlet.export.dynamic import initializer, store_dynamic
from armlet.export.recurrent import keep_factors, translations
from armlet.models.attention import Decomposed
from armlet.models.network import Network, executable
from armlet.models.quantization import ParameterQuantization, quantized_values

OPSET = 18
OUTPUT_NAME = "output"


def to_onnx(network: Network) -> ir.Model:
    """Translate a network.

    Raises:
        UnsupportedOperator: the exporter has no translation, or a quantised parameter did not survive it.
    """
    module = executable(_without_dynamic(network))
    quantization = network.quantization
    given = {} if quantization is None else _told_apart(module, quantization.parameters)
    example = example_inputs(network.architecture.inputs, 1)
    with _quiet(), torch.no_grad(), Decomposed():
        try:
            program = torch.export.export(module, example)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                custom_translation_table=translations(),
            )
            if exported is None:
                raise UnsupportedOperator("the exporter returned nothing")
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UnsupportedOperator(f"the network has no ONNX form: {reason}") from error
    model: ir.Model = exported.model
    if quantization is not None:
        for parameter in quantization.parameters:
            values = network.module.get_parameter(parameter.parameter).detach().numpy()
            _store_as_integers(model.graph, parameter, values, given[parameter.parameter])
            if parameter.dynamic_input:
                store_dynamic(model.graph, parameter, quantized_values(values, parameter))
    keep_factors(model.graph, network.module)
    for value, spec in zip(model.graph.inputs, network.architecture.inputs, strict=True):
        value.name = spec.name
    _name(model.graph, {name for name, part in network.module.named_modules() if not any(part.children())})
    _tidy(model)
    return model


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write a model with its weights inside; the same model gives the same bytes."""
    proto = ir.to_proto(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _without_dynamic(network: Network) -> Network:
    """Return the network whose activations stay float: what quantises them is put into its graph afterwards."""
    if network.quantization is None:
        return network
    parameters = tuple(replace(p, dynamic_input=False) for p in network.quantization.parameters)
    return replace(network, quantization=replace(network.quantization, parameters=parameters))


def _told_apart(
    module: torch.nn.Module, parameters: tuple[ParameterQuantization, ...]
) -> dict[str, np.ndarray]:
    """Change quantised parameters so that no two are equal, which the exporter would make one; zeros stay.

    Returns:
        What the exporter is given for each of them, by name.
    """
    found, given = dict(module.named_parameters()), {}
    quantized = {parameter.parameter for parameter in parameters}
    taken = {_content(value) for name, value in found.items() if name not in quantized}
    for name in sorted(quantized):
        value, step = found[name].data, 0
        while value.any() and _content(value) in taken:
            step += 1
            value = found[name].data.clone()
            value.view(-1)[0] += step
        found[name].data = value
        taken.add(_content(value))
        given[name] = value.numpy()
    return given


def _content(value: torch.Tensor) -> tuple[tuple[int, ...], bytes]:
    return tuple(value.shape), value.detach().numpy().tobytes()


def _store_as_integers(
    graph: ir.Graph, parameter: ParameterQuantization, values: np.ndarray, given: np.ndarray
) -> None:
    """Put an integer initializer and a DequantizeLinear in the place of a float initializer.

    Args:
        graph: in which they are put.
        parameter: how it is quantised.
        values: of the float parameter.
        given: what the exporter got in their place.
    """
    name = parameter.parameter
    integers, expected = quantized_values(values, parameter), given
    value, axis, stored = graph.initializers.get(name), parameter.axis, integers
    turned = value is None and values.ndim == 2
    if turned:
        # A linear layer on more than two dimensions becomes a product with the weight transposed, under another name.
        value, axis, stored, expected = _holding(graph, expected.T), 1, integers.T, expected.T
    if value is None and values.ndim == 1 and not integers.any():
        return  # the exporter leaves out a bias of zeros
    if value is None or value.const_value is None:
        raise UnsupportedOperator(
            f"the exporter rewrote {name}, so that it can't be stored as {parameter.dtype}"
        )
    if not np.array_equal(value.const_value.numpy(), expected):
        raise UnsupportedOperator(f"the exporter changed the values of {name}")
    if parameter.group:
        axis, stored = 0, integers.reshape(-1, parameter.group)
    inputs = [
        initializer(graph, f"{name}.quantized", np.ascontiguousarray(stored)),
        initializer(graph, f"{name}.scale", np.array(parameter.scales, np.float32)),
        initializer(graph, f"{name}.zero_point", np.zeros(len(parameter.scales), integers.dtype)),
    ]
    nodes = [ir.node("DequantizeLinear", inputs, {"axis": axis}, name=f"{name}.dequantize")]
    if parameter.group:
        nodes += _ungrouped(graph, name, nodes[0].outputs[0], values.shape, turned=turned)
    result = nodes[-1].outputs[0]
    result.type, result.shape = value.type, value.shape
    users = list(value.uses())
    graph.insert_before(min((u.node for u in users), key=list(graph).index), nodes)
    for use in users:
        use.node.replace_input_with(use.idx, result)
    del graph.initializers[str(value.name)]
    result.name = name


def _ungrouped(
    graph: ir.Graph, name: str, groups: ir.Value, shape: tuple[int, ...], *, turned: bool
) -> list[ir.Node]:
    """Return the nodes that make a weight [O, K], or [K, O] where it is `turned`, of its groups [O × K / g, g].

    A DequantizeLinear with blocks of scales would need operators of version 21.
    """
    rows = initializer(graph, f"{name}.shape", np.array(shape, np.int64))
    reshape = ir.node("Reshape", [groups, rows], name=f"{name}.reshape")
    reshape.outputs[0].name = f"{name}.rows"
    if not turned:
        return [reshape]
    return [reshape, ir.node("Transpose", reshape.outputs, {"perm": [1, 0]}, name=f"{name}.transpose")]


def _holding(graph: ir.Graph, values: np.ndarray) -> ir.Value | None:
    """Return an initializer with these values, None if there is none."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if (
            tensor is not None
            and tuple(tensor.shape.numpy()) == values.shape
            and np.array_equal(tensor.numpy(), values)
        ):
            return value
    return None


def _name(graph: ir.Graph, leaves: Set[str]) -> None:
    """Name nodes after the module they come from, and a node's value after the node.

    Args:
        graph: with the exporter's metadata.
        leaves: names of the modules that have no modules in them.
    """
    taken = {name for value in graph.initializers for name in (value, value.removesuffix(".quantized"))}
    answers = [
        OUTPUT_NAME if len(graph.outputs) == 1 else f"{OUTPUT_NAME}_{i}" for i in range(len(graph.outputs))
    ]
    taken |= {*answers, *(value.name or "" for value in graph.inputs)}
    # A layer's name is that of the node that has its weight, not of one that moves values for it.
    owners = {owner for node in graph if (owner := _owner(node))}
    for node in graph:
        result = node.outputs[0]
        if result.name in taken:
            continue  # a dequantised weight
        name = _readable(node, leaves - owners)
        name = name if name not in taken else f"{name}.{result.name}"
        taken.add(name)
        node.name = result.name = name
    for value, answer in zip(graph.outputs, answers, strict=True):
        value.name = answer


def _readable(node: ir.Node, leaves: Set[str]) -> str:
    source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else ""
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return f"{source}.quantize"
    if node.op_type == "DequantizeLinear":
        return f"{(source or '').removesuffix('.quantize')}.dequantize"
    if owner := _owner(node):
        return owner
    # Names of the modules around the operator from the outside in, then of the operator itself.
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    module = scopes[-2] if len(scopes) > 1 else ""
    own = node.outputs[0].name or node.op_type.lower()
    if module in leaves:
        return str(module)
    return f"{module}.{own}" if module else own


def _owner(node: ir.Node) -> str:
    """Return the module whose weight a node has, empty if it has none."""
    # The exporter fuses a float layer with its normalisation; the layer's name is the one to keep.
    names = [value.name or "" for value in node.inputs[1:] if value is not None]
    return next((name.removesuffix(".weight") for name in names if name.endswith(".weight")), "")


def _tidy(model: ir.Model) -> None:
    """Remove what is unused and what tells of the machine: source lines, stack traces, versions."""
    ir_passes.RemoveUnusedNodesPass()(model)
    ir_passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    in_order = sorted(graph.initializers.values(), key=lambda value: value.name or "")
    graph.initializers.clear()
    for value in in_order:
        if value.const_value is not None:
            # Parameters of torch keep their module alive and are slow to write.
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        graph.register_initializer(value)
    model.producer_name, model.producer_version = "armlet", ""
    graph.name = "network"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about optional packages and its own deprecations from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
