from dataclasses import replace

import pytest

from armlet import preflight
from armlet.compile import link
from armlet.doctor import Finding
from armlet.errors import MissingDependency, UsageError
from armlet.plan import make_plan
from armlet.spec.load import load_target
from armlet.spec.recipe import Recipe

RECIPE = Recipe.model_validate(
    {"name": "t", "data": {"kind": "letter-recognition"}, "model": {"kind": "fnn"}}
)


@pytest.fixture
def steps():
    return make_plan(RECIPE, [load_target("raspberry-pi-4")]).steps


def test_a_machine_with_everything_passes(steps):
    preflight.require(steps)


def test_everything_that_lacks_is_named_at_once_with_one_command_for_each_manager(steps, monkeypatch):
    lacking = [
        Finding("torch", "training", None, "pip install 'torch>=2'"),
        Finding(
            "apache-tvm-ffi",
            "compiling",
            "0.2, needs ==0.1",
            "pip install 'apache-tvm-ffi==0.1'",
            is_wrong=True,
        ),
        Finding("pytest", "armlet's own tests", None, "pip install pytest", optional=True),
    ]
    monkeypatch.setattr(preflight, "packages", lambda: lacking)
    monkeypatch.setattr(preflight, "programs", lambda: [])
    monkeypatch.setattr(link.shutil, "which", lambda tool: None if "aarch64" in tool else f"/usr/bin/{tool}")
    with pytest.raises(MissingDependency) as caught:
        preflight.require(steps)
    assert str(caught.value) == (
        "missing: torch, apache-tvm-ffi (0.2, needs ==0.1), aarch64-linux-gnu-gcc, aarch64-linux-gnu-ar,"
        " needed for training, compiling, programs for raspberry-pi-4; install with:"
        " pip install 'torch>=2' 'apache-tvm-ffi==0.1' &&"
        " apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross binutils-aarch64-linux-gnu"
    )


def test_only_what_estimates_a_latency_asks_for_a_plugin_and_llvm(monkeypatch):
    names = ("qemu-aarch64", "qemu-arm", "QEMU plugin", "llvm-mca")
    monkeypatch.setattr(
        preflight,
        "programs",
        lambda: [Finding(n, n, None, "apt-get install x", optional=True) for n in names],
    )
    for board, lacking in (
        ("raspberry-pi-2", "missing: qemu-arm,"),
        ("raspberry-pi-4", "missing: qemu-aarch64, QEMU plugin, llvm-mca,"),
    ):
        with pytest.raises(MissingDependency) as caught:
            preflight.require(make_plan(RECIPE, [load_target(board)]).steps)
        assert str(caught.value).startswith(lacking)


def test_a_target_that_zig_compiles_for_asks_for_its_package(monkeypatch):
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency) as caught:
        preflight.require(make_plan(RECIPE, [load_target("android-arm64")]).steps)
    assert str(caught.value) == (
        "missing: ziglang, needed for programs for android-arm64; install with: pip install 'ziglang>=0.17,<0.18'"
    )


def test_what_no_step_uses_is_not_asked_for(steps, monkeypatch):
    monkeypatch.setattr(
        preflight, "packages", lambda: [Finding("torch", "training", None, "pip install torch")]
    )
    preflight.require(step for step in steps if step.stage in ("check", "measure"))


LATENCY = {"latency": "1 ms", "target": "raspberry-pi-4"}


@pytest.mark.parametrize(
    "options", [{"kind": "prune_channels"}, {"kind": "quantize_static"}], ids=lambda o: o["kind"]
)
def test_a_pass_that_costs_programs_asks_for_what_they_need(options, monkeypatch):
    """The run itself is for this machine: the board is the pass's alone."""
    recipe = RECIPE.model_validate(RECIPE.model_dump(mode="json") | {"passes": [options | LATENCY]})
    steps = make_plan(recipe, [load_target("host")]).steps
    preflight.require(steps)
    monkeypatch.setattr(link.shutil, "which", lambda tool: None if "aarch64" in tool else f"/usr/bin/{tool}")
    with pytest.raises(MissingDependency, match=r"aarch64-linux-gnu-gcc.*programs for raspberry-pi-4"):
        preflight.require(steps)
    preflight.require(step for step in steps if step.stage != "pass")


@pytest.mark.parametrize(
    ("part", "key", "wrong", "right"),
    [
        ("core", "llvm_cpu", "cortex-a722", "cortex-a72"),
        ("core", "cost_model", "neoverse-n11", "neoverse-n1"),
        ("emulator", "cpu", "cortex-a722", "cortex-a72"),
    ],
)
def test_an_unknown_core_is_refused_with_the_nearest(part, key, wrong, right):
    board = load_target("raspberry-pi-4")
    changed = board.model_copy(update={part: getattr(board, part).model_copy(update={key: wrong})})
    with pytest.raises(UsageError, match=rf"{part}\.{key}: .*'{wrong}' \(did you mean '{right}'"):
        preflight.require(make_plan(RECIPE, [changed]).steps)


def test_a_target_for_another_machine_without_an_emulator_is_refused():
    foreign = load_target("raspberry-pi-4").model_copy(
        update={"emulator": None, "triple": "riscv64-linux-gnu"}
    )
    with pytest.raises(UsageError, match="raspberry-pi-4 is for riscv64-linux-gnu and this machine is"):
        preflight.require(make_plan(RECIPE, [foreign]).steps)
    steps = make_plan(RECIPE, [load_target("host")]).steps
    of_a_pass = tuple(replace(s, costs_on=foreign) if s.stage == "train" else s for s in steps)
    with pytest.raises(UsageError, match="raspberry-pi-4 is for riscv64-linux-gnu and this machine is"):
        preflight.require(of_a_pass)


@pytest.mark.parametrize("kind", ["prune_channels", "quantize_static"])
@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("arm64-linux", "the target has no core.cost_model, core.clock_mhz, calibration"),
        ("aws-graviton3", "the target has no calibration"),
        ("iphone-15", "it is compiled for only"),
        ("host-opencl", "no time of a GPU's program is said without the GPU"),
    ],
)
def test_a_latency_on_a_target_of_which_none_is_known_is_refused_before_training(kind, target, why):
    passes = [{"kind": kind, "latency": "1 ms", "target": target}]
    recipe = RECIPE.model_validate(RECIPE.model_dump(mode="json") | {"passes": passes})
    with pytest.raises(UsageError) as caught:
        preflight.require(make_plan(recipe, [load_target("host")]).steps)
    assert str(caught.value).startswith(
        f"passes.0.latency: what a network takes on {target} can't be said: {why}"
    )
