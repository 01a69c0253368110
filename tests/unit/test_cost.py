"""Cost on paper agrees with counting by hand."""

from __future__ import annotations

from torch import nn

from armlet.analysis.cost import cost_of
from armlet.artifacts import Cost, InputSpec
from armlet.models.network import Architecture, Network, architecture_of, build
from armlet.models.quantization import ParameterQuantization, Quantization


def test_a_perceptron_costs_its_matrices() -> None:
    network = build(
        architecture_of("fnn", {"hidden": [5], "norm": "none"}, (InputSpec("input", (7,)),), (3,)), 0
    )
    n_parameters = 7 * 5 + 5 + 5 * 3 + 3
    assert cost_of(network) == Cost(7 * 5 + 5 * 3, n_parameters, 4 * n_parameters, 4 * n_parameters + 4)


def test_a_convolution_costs_its_kernel_at_every_place() -> None:
    network = build(architecture_of("cnn", {"channels": [4, 6]}, (InputSpec("input", (2, 8, 8)),), (3,)), 0)
    macs = 8 * 8 * 4 * 2 * 9 + 4 * 4 * 6 * 4 * 9 + 6 * 3
    norms = 2 * 4 + 2 * 6
    assert cost_of(network).macs == macs
    assert cost_of(network).parameters == 4 * 2 * 9 + 6 * 4 * 9 + 6 * 3 + 3 + norms


def test_a_depthwise_convolution_costs_one_kernel_a_channel() -> None:
    network = build(
        architecture_of(
            "cnn", {"channels": [4], "block": "separable"}, (InputSpec("input", (1, 8, 8)),), (3,)
        ),
        0,
    )
    assert cost_of(network).macs == 64 * (4 * 9 + 4 * 9 + 4 * 4) + 4 * 3


def test_a_quantized_weight_counts_one_byte_and_its_bias_four() -> None:
    network = build(
        architecture_of("fnn", {"hidden": [5], "norm": "none"}, (InputSpec("input", (7,)),), (3,)), 0
    )
    quantization = Quantization(
        (),
        (
            ParameterQuantization("layer1.linear.weight", (1.0,) * 5, "int8"),
            ParameterQuantization("layer1.linear.bias", (1.0,) * 5, "int32"),
        ),
    )
    quantized = Network(network.module, network.architecture, quantization)
    assert cost_of(quantized).weight_bytes == 35 + 4 * 5 + 4 * (15 + 3)
    assert cost_of(quantized).macs == cost_of(network).macs


def test_attention_that_torch_fuses_is_counted_too():
    module = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    architecture = Architecture("module", "{}", (InputSpec("input", (5, 8)),), (5, 8))
    products = 2 * 2 * 5 * 5 * 4  # queries with keys, shares with values, of two heads
    assert cost_of(Network(module, architecture)).macs == 5 * (4 * 8 * 8 + 2 * 8 * 16) + products
