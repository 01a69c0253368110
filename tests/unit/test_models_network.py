"""Networks are built from a seed, saved as plain files, and come back bit for bit whatever was pruned or folded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.network import (
    Architecture,
    Network,
    architecture_of,
    build,
    executable,
    fit_to_shapes,
    load_network,
    save_network,
)
from armlet.models.quantization import ActivationQuantization, ParameterQuantization, Quantization

PICTURE = (1, 12, 12)


def fnn(hidden=(12, 9), **options) -> Architecture:
    return architecture_of("fnn", {"hidden": list(hidden), **options}, (InputSpec("input", (7,)),), (5,))


def cnn(channels=(8, 12), **options) -> Architecture:
    return architecture_of(
        "cnn", {"channels": list(channels), **options}, (InputSpec("input", PICTURE),), (5,)
    )


def randomized(architecture: Architecture, seed: int = 0) -> Network:
    """A network whose norms do something: random statistics, scales and shifts."""
    network = build(architecture, seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in network.module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (layer.running_var, layer.weight.data):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network


def outputs(network: Network) -> torch.Tensor:
    inputs = torch.randn(3, *network.architecture.inputs[0].shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return network.module(inputs)


ARCHITECTURES = {
    "fnn": fnn(),
    "fnn without norm": fnn(norm="none", dropout=0.2),
    "plain": cnn(),
    "plain, strided, deep": cnn(downsample="stride", depth=2, dropout=0.1),
    "plain, deeper at the end": cnn(depth=[1, 2]),
    "residual": cnn(block="residual", depth=2),
    "residual, strided": cnn(block="residual", downsample="stride"),
    "separable": cnn(block="separable", activation="relu6"),
}
SMALLER = {
    "fnn": (fnn((12, 9)), fnn((5, 4))),
    "plain": (cnn((8, 12)), cnn((3, 7))),
    "residual": (cnn((8, 12), block="residual"), cnn((5, 6), block="residual")),
    "separable": (cnn((8, 12), block="separable"), cnn((3, 5), block="separable")),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_saved_network_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = randomized(ARCHITECTURES[name])
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.architecture == network.architecture
    assert not loaded.module.training
    assert torch.equal(outputs(loaded), outputs(network))


@pytest.mark.parametrize("name", SMALLER)
def test_a_pruned_network_comes_back_bit_for_bit_from_its_tensors_shapes(name: str, tmp_path: Path) -> None:
    declared, pruned = SMALLER[name]
    small = randomized(pruned)
    network = Network(small.module, declared)
    save_network(network, tmp_path)
    assert torch.equal(outputs(load_network(tmp_path)), outputs(small))


@pytest.mark.parametrize("name", ["fnn", "plain", "residual", "separable"])
def test_a_network_with_folded_norms_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = randomized(ARCHITECTURES[name])
    tensors = dict(network.module.state_dict())
    for path, layer in list(network.module.named_modules()):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{path}.")}
        if isinstance(layer, nn.Conv2d | nn.Linear):
            tensors[f"{path}.bias"] = torch.linspace(-1, 1, layer.weight.shape[0])
    fit_to_shapes(network.module, tensors)
    assert not any(isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) for layer in network.module.modules())
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    assert torch.equal(outputs(loaded), outputs(network))
    assert torch.equal(loaded.module.get_parameter("classifier.bias"), torch.linspace(-1, 1, 5))


def test_fitting_copies_the_tensors() -> None:
    small = randomized(fnn((5, 4)))
    module = build(fnn(), 0).module
    fit_to_shapes(module, small.module.state_dict())
    before = small.module.get_parameter("classifier.weight").detach().clone()
    module.get_parameter("classifier.weight").data.zero_()
    assert torch.equal(small.module.get_parameter("classifier.weight"), before)


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        (nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(4, 8, 3, groups=2)),  # two whole groups gone
        (nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(4, 16, 3, groups=4)),  # one input of each group gone
        (nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(3, 6, 3, groups=3)),  # depthwise with two outputs a channel
    ],
)
def test_groups_follow_the_shape(wide: nn.Conv2d, narrow: nn.Conv2d) -> None:
    fit_to_shapes(wide, narrow.state_dict())
    assert (wide.in_channels, wide.out_channels, wide.groups) == (
        narrow.in_channels,
        narrow.out_channels,
        narrow.groups,
    )
    inputs = torch.randn(2, narrow.in_channels, 5, 5)
    assert torch.equal(wide(inputs), narrow(inputs))


def test_everything_that_can_not_be_fitted_is_named_at_once() -> None:
    module = nn.ModuleDict({"conv": nn.Conv2d(2, 4, 3), "norm": nn.LayerNorm(4), "linear": nn.Linear(4, 2)})
    tensors = {
        "conv.weight": torch.zeros(4, 2, 5, 5),
        "conv.bias": torch.zeros(4),
        "norm.weight": torch.zeros(3),
        "norm.bias": torch.zeros(4),
        "gone.weight": torch.zeros(1),
    }
    with pytest.raises(UsageError) as caught:
        fit_to_shapes(module, tensors)
    assert str(caught.value).splitlines()[1:] == [
        "conv: kernel of (5, 5) where the architecture has (3, 3)",
        "norm: bias of shape (4,) beside a weight of shape (3,)",
        "linear: has no weight",
        "linear.weight: is missing",
        "linear.bias: is missing",
        "gone.weight: the network has no such tensor",
        "conv.weight: shape (4, 2, 5, 5) where (4, 2, 3, 3) is meant",
        "norm.weight: shape (3,) where (4,) is meant",
    ]


def test_outputs_that_make_no_whole_groups_are_refused() -> None:
    with pytest.raises(UsageError, match="7 outputs don't make whole groups"):
        fit_to_shapes(
            nn.Conv2d(8, 16, 1, groups=4), {"weight": torch.zeros(7, 2, 1, 1), "bias": torch.zeros(7)}
        )


def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    network = build(fnn(), 0)
    network.module.get_submodule("layer1").activation = nn.Tanh()
    with pytest.raises(UsageError, match="could not be loaded again"):
        save_network(network, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_network(randomized(cnn(), seed=4), tmp_path / folder)
    for name in ("network.json", "network.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, same, other = build(cnn(), 3), build(cnn(), 3), build(cnn(), 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(outputs(first), outputs(same))
    assert not torch.equal(outputs(first), outputs(other))


def test_a_quantization_is_saved_with_its_network_and_executed(tmp_path: Path) -> None:
    network = build(fnn((4,), norm="none"), 0)
    scales = tuple(float(s) for s in torch.linspace(0.1, 0.2, 4))
    quantization = Quantization(
        activations=(ActivationQuantization("linear", 0.25, 3),),
        parameters=(ParameterQuantization("layer1.linear.weight", scales, "int8"),),
    )
    quantized = Network(network.module, network.architecture, quantization)
    save_network(quantized, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.quantization == quantization
    inputs = torch.randn(6, 7)
    answer = executable(loaded)(inputs)
    assert torch.equal(answer, executable(quantized)(inputs))
    assert not torch.allclose(answer, network.module(inputs))
    assert executable(network) is network.module


@pytest.mark.parametrize(
    "damage", ["no file", "truncated weights", "not JSON", "no mapping", "no architecture", "schema"]
)
def test_a_folder_without_a_whole_network_is_refused(damage: str, tmp_path: Path) -> None:
    save_network(build(fnn(), 0), tmp_path)
    manifest, weights = tmp_path / "network.json", tmp_path / "network.safetensors"
    match damage:
        case "no file":
            weights.unlink()
        case "truncated weights":
            weights.write_bytes(weights.read_bytes()[:-10])
        case "not JSON":
            manifest.write_text("{")
        case "no mapping":
            manifest.write_text("[1]")
        case "no architecture":
            manifest.write_text(
                json.dumps(json.loads(manifest.read_text()) | {"architecture": {"kind": "fnn"}})
            )
        case "schema":
            manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    with pytest.raises(UsageError, match=r"holds no readable network|describes no network|has schema 99"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            architecture_of("fnm", {}, (InputSpec("input", (3,)),), (2,)),
            "unknown model family 'fnm' .did you mean 'fnn'",
        ),
        (fnn(activation="rellu"), "unknown activation 'rellu' .did you mean 'relu'"),
        (fnn(hiden=[3]), "hiden"),
        (cnn(block="plane"), "unknown block 'plane' .did you mean 'plain'"),
        (architecture_of("cnn", {}, (InputSpec("input", (16,)),), (2,)), "takes pictures"),
        (cnn((4, 4, 4, 4, 4)), "can't be halved 4 times"),
        (cnn((4, 4), depth=[1, 2, 1]), "3 depths don't fit 2 stages"),
    ],
)
def test_what_can_not_be_built_is_refused_with_the_nearest_name(
    architecture: Architecture, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build(architecture, 0)


@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "leaky_relu", "hard_swish", "silu", "gelu", "tanh", "sigmoid"]
)
def test_every_activation_of_a_recipe_can_be_built(activation: str) -> None:
    assert torch.isfinite(outputs(build(cnn(activation=activation), 0))).all()


def test_each_stage_can_have_a_depth_of_its_own() -> None:
    module = build(cnn((4, 4, 4), depth=[1, 3, 2]), 0).module
    assert [len(module.get_submodule(f"stage{n}")) - (n > 1) for n in (1, 2, 3)] == [
        1,
        3,
        2,
    ]  # less the pooling


def test_every_stage_after_the_first_halves_the_picture_whichever_way() -> None:
    for downsample in ("stride", "max_pool"):
        for block in ("plain", "residual", "separable"):
            module = build(cnn((4, 4, 4), block=block, downsample=downsample), 0).module
            seen: list[tuple[int, ...]] = []
            module.get_submodule("pool").register_forward_pre_hook(
                lambda _, inputs, seen=seen: seen.append(tuple(inputs[0].shape[2:]))
            )
            module(torch.zeros(2, *PICTURE))
            assert seen == [(3, 3)]


def test_hidden_tokens_are_whole_ones_and_only_in_training() -> None:
    spec = (InputSpec("tokens", (50,), "int32", 20),)
    options = {"width": 16, "heads": 2, "token_dropout": 0.4}
    embedding = build(architecture_of("transformer", options, spec, (2,)), 0).module.embedding
    tokens = torch.randint(20, (40, 50), dtype=torch.int32)
    assert embedding.eval()(tokens).abs().amax(dim=2).min() > 0
    hidden = embedding.train()(tokens) == 0
    assert torch.equal(hidden.all(dim=2), hidden.any(dim=2))
    assert hidden.float().mean() == pytest.approx(0.4, abs=0.05)
