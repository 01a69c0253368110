"""What it means to be a pass: every registered one is held to this, on every kind of small network."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tests.passes.conftest import NETWORKS

from armlet.analysis.cost import cost_of
from armlet.artifact_json import from_json, to_json
from armlet.artifacts import PassRecord
from armlet.export import export_onnx
from armlet.models.network import Network, executable, load_network, save_network
from armlet.passes import (
    PASSES,
    PassContractBroken,
    PostconditionFailed,
    PreconditionFailed,
    manager,
    run_pass,
)
from armlet.passes.base import PassResult
from armlet.passes.manager import fingerprint
from armlet.registry import Registry
from armlet.spec.passes import PassSpec, QuantizeStatic

TRAIN = {"epochs": 1, "batch_size": 64}

# One entry for each pass: options that change a network, and options that must not, where there are any.
OPTIONS = {
    "prune_channels": {"ratio": 0.4, "finetune": TRAIN},
    "remove_dead_units": {"calibration_samples": 96},
    "factorize": {"ratio": 0.7, "finetune": TRAIN},
    "prune_weights": {"sparsity": 0.6, "finetune": TRAIN},
    "cluster_weights": {"values": 16, "finetune": TRAIN},
    "distill": {"train": TRAIN},
    "quantize_static": {"calibration_samples": 48},
    "quantize_aware": {"train": TRAIN},
}
NO_OPS = {
    "prune_channels": {"ratio": 0.0, "finetune": TRAIN},
    "factorize": {"energy": 1.0, "finetune": TRAIN},
    "prune_weights": {"sparsity": 0.0, "finetune": TRAIN},
}


# Between them: convolutions of all kinds, a residual sum, pooling, linear layers, relu and relu6.
ON_EACH_NETWORK = pytest.mark.parametrize("network", ["residual", "separable", "fnn"], indirect=True)


def spec(kind: str, options: dict[str, object]) -> PassSpec:
    return TypeAdapter(PassSpec).validate_python({"kind": kind, **options})


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Network:
    """A small network with one channel that is always the same, so that there is something to do for each pass."""
    network = NETWORKS[request.param]()
    norms = {"residual": "stage1.block1.branch.norm1", "separable": "stem.norm", "fnn": "layer1.norm"}
    norm = network.module.get_submodule(norms[request.param])
    with torch.no_grad():
        norm.weight[1], norm.bias[1] = 0.0, -1.0
    return network


@pytest.fixture(params=OPTIONS)
def options(request: pytest.FixtureRequest) -> PassSpec:
    return spec(request.param, OPTIONS[request.param])


def outputs(network: Network, splits) -> np.ndarray:
    with torch.no_grad():
        return executable(network)(torch.from_numpy(splits.test.inputs[0])).numpy()


def test_every_registered_pass_is_in_this_suite():
    assert set(PASSES) == set(OPTIONS)


@ON_EACH_NETWORK
def test_a_pass_changes_the_network_but_not_the_one_given(options, network, context, splits):
    before = copy.deepcopy(network)
    result, record = run_pass(options, network, context(network))
    assert fingerprint(network) == fingerprint(before)
    np.testing.assert_array_equal(outputs(network, splits), outputs(before, splits))
    assert record.changed
    assert fingerprint(result) != fingerprint(before)
    assert record.kind == options.kind
    # The result shares no memory with the network given: changing one leaves the other.
    with torch.no_grad():
        for tensor in result.module.state_dict().values():
            tensor.zero_()
    assert fingerprint(network) == fingerprint(before)


@ON_EACH_NETWORK
def test_the_same_seed_gives_the_same_bytes(options, network, context):
    first, _ = run_pass(options, network, context(network))
    torch.manual_seed(12345)  # what the process drew before must not matter
    second, _ = run_pass(options, network, context(network))
    assert fingerprint(first) == fingerprint(second)


@ON_EACH_NETWORK
def test_the_record_says_what_the_costs_are_and_none_rises(options, network, context):
    result, record = run_pass(options, network, context(network))
    assert record.before == cost_of(network)
    assert record.after == cost_of(result)
    assert record.after.macs <= record.before.macs
    assert record.after.weight_bytes <= record.before.weight_bytes
    assert record.score_before.n_samples == record.score_after.n_samples == 96
    assert from_json(PassRecord, to_json(record)) == record


@ON_EACH_NETWORK
def test_the_result_can_be_saved_loaded_and_exported(options, network, context, splits, tmp_path):
    result, _ = run_pass(options, network, context(network))
    save_network(result, tmp_path / "saved")
    loaded = load_network(tmp_path / "saved")
    assert fingerprint(loaded) == fingerprint(result)
    np.testing.assert_array_equal(outputs(loaded, splits), outputs(result, splits))
    exported = export_onnx(loaded, splits.validation, tmp_path / "exported")
    assert exported.n_verified == 64
    assert exported.max_abs_difference <= exported.tolerance


@pytest.mark.parametrize("kind", NO_OPS)
@ON_EACH_NETWORK
def test_nothing_to_do_is_nothing_done(kind, network, context):
    result, record = run_pass(spec(kind, NO_OPS[kind]), network, context(network))
    assert not record.changed
    assert fingerprint(result) == fingerprint(network)
    assert record.history == ()


def test_the_options_survive_json(options):
    assert TypeAdapter(PassSpec).validate_json(options.model_dump_json()) == options


def test_no_pass_takes_a_quantized_network(options, tiny_network, context):
    network = tiny_network()
    quantized, _ = run_pass(spec("quantize_static", OPTIONS["quantize_static"]), network, context(network))
    with pytest.raises(PreconditionFailed, match="needs a float network"):
        run_pass(options, quantized, context(network))


def test_no_pass_learns_of_samples_that_are_not_finite(options, tiny_network, context):
    network = tiny_network()
    given = context(network)
    inputs = tuple(array.copy() for array in given.splits.train.inputs)
    inputs[0][5] = np.nan
    splits = replace(given.splits, train=replace(given.splits.train, inputs=inputs))
    with pytest.raises(PreconditionFailed, match=r"are not finite: 1 of .* the first is number 5"):
        run_pass(options, network, replace(given, splits=splits))


# The manager, with passes that break the contract on purpose.


class Broken:
    """A pass that does nothing, but for what a test makes it do."""

    never_raises = ("parameters",)

    def __init__(self, act=lambda network, context: network, lacks=lambda before, after: ()):
        self.act, self.lacks = act, lacks

    def requires(self, network, context):
        return ()

    def run(self, network, context):
        return PassResult(self.act(network, context))

    def ensures(self, before, after):
        return self.lacks(before, after)


@pytest.fixture
def run_broken(monkeypatch, tiny_network, context):
    def run(**behaviour):
        passes = Registry("pass")
        passes.register("quantize_static")(lambda options: Broken(**behaviour))
        monkeypatch.setattr(manager, "PASSES", passes)
        network = tiny_network()
        return run_pass(QuantizeStatic(kind="quantize_static"), network, context(network))

    return run


def test_drawing_from_the_process_wide_generator_is_found(run_broken):
    def act(network, context):
        torch.rand(1)
        return network

    with pytest.raises(PassContractBroken, match="left torch's random state changed"):
        run_broken(act=act)


def test_leaving_grad_mode_off_is_found(run_broken):
    def act(network, context):
        torch.set_grad_enabled(False)
        return network

    try:
        with pytest.raises(PassContractBroken, match="left torch's grad mode changed"):
            run_broken(act=act)
    finally:
        torch.set_grad_enabled(True)


def test_changing_the_network_through_the_teacher_is_found(run_broken):
    def act(network, context):
        with torch.no_grad():
            next(context.teacher.module.parameters()).zero_()
        return network

    with pytest.raises(PassContractBroken, match="changed the network that it was given"):
        run_broken(act=act)


def test_what_is_ensured_is_checked_on_the_result(run_broken):
    def act(network, context):
        with torch.no_grad():
            next(network.module.parameters()).zero_()
        return network

    def lacks(before, after):
        return ("weights are gone",) if not next(after.module.parameters()).any() else ()

    with pytest.raises(PostconditionFailed, match="weights are gone"):
        run_broken(act=act, lacks=lacks)


def test_an_output_that_is_not_finite_is_found(run_broken):
    def act(network, context):
        with torch.no_grad():
            next(network.module.parameters()).fill_(torch.nan)
        return network

    with pytest.raises(PostconditionFailed, match="output is not finite"):
        run_broken(act=act)


def test_a_rising_cost_is_found(run_broken):
    def act(network, context):
        network.module.register_parameter("more", torch.nn.Parameter(torch.zeros(100)))
        return network

    with pytest.raises(PostconditionFailed, match="parameters rose from"):
        run_broken(act=act)
