"""What other tools make of a network that armlet trained: torch-pruning, ONNX Runtime's and torchao's quantisation."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from armlet.analysis.cost import cost_of
from armlet.data.splits import Samples
from armlet.models.network import Network

Answers = Callable[[Samples], np.ndarray]
"""Asks a network: samples -> answers [N, *output shape]."""


def torch_pruning(network: Network, ratio: float) -> Network:
    """Prune by torch-pruning 1.6: L2 magnitude of whole groups, the same share of each layer, heads as a whole.

    Args:
        network: is not changed.
        ratio: share of the channels that goes.
    """
    import torch_pruning as tp

    from armlet.models.transformer import Attention

    module = copy.deepcopy(network.module)
    examples = tuple(torch.zeros(1, *spec.shape) for spec in network.architecture.inputs)
    outputs = [m for m in module.modules() if isinstance(m, torch.nn.Linear)][-1:]
    attentions = [m for m in module.modules() if isinstance(m, Attention)]
    heads = {layer: a.query.out_features // a.size for a in attentions for layer in (a.query, a.key, a.value)}
    pruner = tp.pruner.MagnitudePruner(
        module,
        examples,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=outputs,
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=not heads,  # an attention has one size of head
        head_pruning_ratio=ratio if heads else 0.0,
    )
    pruner.step()  # how many heads are left, the module sees from its weights
    return replace(network, module=module.eval())


def pruned_to(network: Network, prune: Callable[[Network, float], Network], macs: float) -> Network:
    """Return what a pruner leaves at the smallest ratio, in steps of 1/256, with at most `macs` of the MACs."""
    allowed, low, high = macs * cost_of(network).macs, 0, 256
    while high - low > 1:
        middle = (low + high) // 2
        fits = cost_of(prune(network, middle / 256)).macs <= allowed
        low, high = (low, middle) if fits else (middle, high)
    return prune(network, high / 256)


def onnxruntime_static(onnx_file: Path, calibration: Samples) -> Answers:
    """Quantise by ONNX Runtime: its own preparation, QDQ, INT8 weights a channel, INT8 activations, min-max."""
    import onnxruntime
    from onnxruntime import quantization as ort

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(zip(*calibration.inputs, strict=True))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {n: v[None] for n, v in zip(names, row, strict=True)}

    with tempfile.TemporaryDirectory() as name:
        prepared, quantized = Path(name, "prepared.onnx"), Path(name, "quantized.onnx")
        ort.shape_inference.quant_pre_process(onnx_file, prepared, skip_symbolic_shape=True)
        ort.quantize_static(
            prepared, quantized, Reader(), quant_format=ort.QuantFormat.QDQ, per_channel=True,
            activation_type=ort.QuantType.QInt8, weight_type=ort.QuantType.QInt8,
        )  # fmt: skip
        return onnx_answers(quantized)


def onnx_answers(onnx_file: Path) -> Answers:
    """Return what asks an ONNX file, with no optimisation: 8-bit kernels of CPUs without VNNI saturate."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def ask(samples: Samples) -> np.ndarray:
        rows = zip(*samples.inputs, strict=True)
        found = [session.run(None, {n: v[None] for n, v in zip(names, row, strict=True)})[0] for row in rows]
        return np.concatenate(found)

    return ask


def torchao_static(network: Network, calibration: Samples) -> Answers:
    """Quantise by torchao's PT2E flow with its quantiser for x86 CPUs: INT8 weights a channel, 8-bit activations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.pt2e import move_exported_model_to_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        inputs = tuple(map(torch.from_numpy, calibration.inputs))
        batch = torch.export.Dim("batch")
        exported = torch.export.export(
            network.module, tuple(x[:2] for x in inputs), dynamic_shapes=tuple({0: batch} for _ in inputs)
        ).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        prepared(*inputs)
        converted = convert_pt2e(prepared)
        move_exported_model_to_eval(converted)

    def ask(samples: Samples) -> np.ndarray:
        with torch.no_grad():
            parts = zip(*(torch.from_numpy(x).split(256) for x in samples.inputs), strict=True)
            return np.concatenate([converted(*part).numpy() for part in parts])

    return ask
