import copy
import json
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from armlet.compile.kernels.epilogue import FloatClamp, Requantize, width
from armlet.compile.kernels.loops import vector_of
from armlet.compile.opencl.windows import TILES
from armlet.errors import UsageError
from armlet.plan import STAGES, make_plan
from armlet.spec.load import load_recipe, load_target, shipped_targets
from armlet.spec.passes import PruneChannels
from armlet.spec.recipe import Recipe
from armlet.spec.widths import settled

BASE = {
    "name": "tiny",
    "data": {"kind": "fashion-mnist"},
    "model": {"kind": "cnn", "channels": [8, 16]},
    "train": {"epochs": 3},
    "passes": [{"kind": "prune_channels", "ratio": 0.25}, {"kind": "distill"}, {"kind": "quantize_static"}],
    "budgets": {"accuracy": 0.9},
}


def keys(recipe: dict, *targets: str) -> dict[str, str]:
    plan = make_plan(
        Recipe.model_validate(recipe), [load_target(name) for name in targets or ("raspberry-pi-4",)]
    )
    return {step.name: step.key for step in plan.steps}


def costs_on(target: str, networks: list[str]) -> set[str]:
    return {f"program_cost/{target}/{network}" for network in networks}


def changed(path: tuple, value: object) -> dict:
    recipe = copy.deepcopy(BASE)
    here = recipe
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    return recipe


@pytest.mark.parametrize(
    ("path", "value", "first"),
    [
        (("seed",), 1, "train"),
        (("data", "validation"), 0.1, "train"),
        (("data", "limit"), 100, "train"),
        (("model", "channels"), [8, 24], "train"),
        (("model", "block"), "residual", "train"),
        (("train", "epochs"), 4, "train"),
        (("train", "learning_rate"), 0.002, "train"),
        (("passes", 0, "ratio"), 0.5, "pass 1 prune_channels"),
        (("passes", 1, "temperature"), 2.0, "pass 2 distill"),
        (("passes", 2, "observer"), "percentile", "pass 3 quantize_static"),
        (("budgets", "accuracy"), 0.8, "check/raspberry-pi-4"),
    ],
)
def test_a_changed_field_changes_the_key_of_its_step_and_of_all_that_follow_and_no_other(path, value, first):
    before, after = keys(BASE), keys(changed(path, value))
    assert before.keys() == after.keys()
    names = list(before)
    differing = {name for name in names if before[name] != after[name]}
    linear = ["train", "pass 1 prune_channels", "pass 2 distill", "pass 3 quantize_static", "export"]
    if first in linear:
        unchanged = linear[: linear.index(first)]
        expected = set(names) - {"data", *unchanged} - costs_on("raspberry-pi-4", unchanged)
    else:
        expected = {"check/raspberry-pi-4", "bundle/raspberry-pi-4"}
    assert differing == expected


def test_the_name_of_the_recipe_changes_only_what_carries_it():
    before, after = keys(BASE), keys(changed(("name",), "other"))
    assert before["export"] == after["export"]
    assert before["compile/host"] != after["compile/host"]


def test_what_kernels_are_chosen_for_changes_every_program_and_passes_that_cost_programs():
    budget = {"kind": "prune_channels", "latency": "1 ms", "target": "raspberry-pi-4"}
    for passes, networks in (
        (
            BASE["passes"],
            {"data", "train", "pass 1 prune_channels", "pass 2 distill", "pass 3 quantize_static"},
        ),
        ([budget], {"data", "train"}),
    ):
        recipe = BASE | {"passes": passes}
        before, after = keys(recipe), keys(recipe | {"optimize": "size"})
        same = {name for name in before if before[name] == after[name]}
        assert same == networks | ({"export"} if passes is BASE["passes"] else set())


def test_the_precision_changes_the_programs_of_boards_and_not_the_one_that_is_scored():
    recipe = BASE | {"passes": BASE["passes"][:1]}
    before, after = (keys(given, "raspberry-pi-5") for given in (recipe, recipe | {"precision": "float16"}))
    changed_steps = {name for name in before if before[name] != after[name]}
    board = {f"{stage}/raspberry-pi-5" for stage in ("compile", "measure", "check", "bundle")}
    assert changed_steps == board | {"program_cost/raspberry-pi-5/train"}


def test_the_threads_change_every_program_and_no_network():
    before, after = (keys(given, "raspberry-pi-4") for given in (BASE, BASE | {"threads": 2}))
    same = {name for name in before if before[name] == after[name]}
    networks = {"data", "train", "export", *(name for name in before if name.startswith("pass "))}
    assert same == networks


@pytest.mark.parametrize("target", ["host", "raspberry-pi-4", "android-armv7"])
def test_a_target_that_does_not_compute_in_the_precision_is_refused_before_any_work(target):
    with pytest.raises(UsageError, match=f"precision: target {target} has no arithmetic on float16"):
        keys(BASE | {"passes": [], "precision": "float16"}, target, "raspberry-pi-5")


STREAMED = {
    "name": "demand",
    "data": {"kind": "electricity-demand"},
    "model": {"kind": "lstm", "hidden": [8]},
    "train": {"epochs": 3},
    "stream": {"frames": 1},
    "budgets": {"mape": 0.1},
}


def test_what_a_program_for_a_gpu_can_not_be_is_refused_before_any_work():
    recipe = Recipe.model_validate(BASE | {"package": "packed", "threads": 2})
    with pytest.raises(UsageError) as caught:
        make_plan(recipe, [load_target("android-opencl")])
    said = str(caught.value)
    assert "passes.2: target android-opencl: quantize_static makes integers" in said
    assert "package: target android-opencl: constants of OpenCL programs are not packed" in said
    assert "threads: target android-opencl: threads share the work of the core" in said
    streaming = {
        "name": "tiny", "data": {"kind": "electricity-demand"}, "model": {"kind": "lstm", "hidden": [8]},
        "stream": {"frames": 1},
    }  # fmt: skip
    with pytest.raises(UsageError, match="stream: target android-opencl: OpenCL programs take no streams"):
        make_plan(Recipe.model_validate(streaming), [load_target("android-opencl")])


def test_what_runs_on_a_gpu_depends_on_the_drivers_that_are_here(monkeypatch, tmp_path):
    recipe = BASE | {"passes": BASE["passes"][:2]}
    monkeypatch.setenv("OCL_ICD_VENDORS", str(tmp_path))
    before = keys(recipe, "android-opencl")
    (tmp_path / "pocl.icd").write_text("libpocl.so.2")
    after = keys(recipe, "android-opencl")
    different = {name for name in before if before[name] != after[name]}
    assert "measure/android-opencl" in different
    assert {"compile/android-opencl", "evaluate", "compile/host"}.isdisjoint(different)


def test_packed_constants_change_the_kernels_of_programs_that_are_not_packed_themselves():
    """Their weights do not grow either: the one for streams, and those whose cost is told or asked for."""
    budget = {"kind": "prune_channels", "latency": "1 ms", "target": "raspberry-pi-4"}
    before, after = (keys(BASE | {"passes": [budget], "package": p}) for p in ("plain", "packed"))
    assert {name for name in before if before[name] == after[name]} == {"data", "train"}
    before, after = (keys(STREAMED | {"package": p}) for p in ("plain", "packed"))
    assert {name for name in before if before[name] == after[name]} == {
        *("data", "train", "export", "export_stream"),
    }


@pytest.mark.parametrize(
    ("program", "stage"), [("aarch64-linux-gnu-gcc", "compile_stream"), ("qemu-aarch64", "measure_stream")]
)
def test_another_tool_chain_or_emulator_makes_the_program_for_streams_anew(program, stage, monkeypatch):
    monkeypatch.setattr(sys.modules["armlet.plan"], "program_version", lambda name: f"{name} 1")
    one = keys(STREAMED)
    monkeypatch.setattr(
        sys.modules["armlet.plan"], "program_version", lambda name: f"{name} {2 if name == program else 1}"
    )
    assert one[f"{stage}/raspberry-pi-4"] != keys(STREAMED)[f"{stage}/raspberry-pi-4"]


def test_the_order_of_keys_in_the_file_does_not_matter(tmp_path):
    yaml = YAML()
    forward, backward = tmp_path / "a.yaml", tmp_path / "b.yaml"
    yaml.dump(BASE, forward)
    yaml.dump(dict(reversed(BASE.items())), backward)
    target = load_target("raspberry-pi-4")
    assert make_plan(load_recipe(forward), [target]).steps == make_plan(load_recipe(backward), [target]).steps


def test_another_target_shares_everything_up_to_export():
    one, two = keys(BASE, "raspberry-pi-4"), keys(BASE, "raspberry-pi-4", "raspberry-pi-5")
    assert {name: two[name] for name in one} == one
    assert set(two) - set(one) == {
        *(f"{stage}/raspberry-pi-5" for stage in ("compile", "measure", "check", "bundle")),
        *costs_on("raspberry-pi-5", ["train", "pass 1 prune_channels", "pass 2 distill"]),
    }


def test_a_changed_target_changes_only_its_own_steps():
    target = load_target("raspberry-pi-4")
    faster = target.model_copy(update={"core": target.core.model_copy(update={"clock_mhz": 2000.0})})
    recipe = Recipe.model_validate(BASE)
    before, after = (
        {s.name: s.key for s in make_plan(recipe, [t]).steps if "raspberry" not in s.name}
        for t in (target, faster)
    )
    assert before == after
    assert (
        make_plan(recipe, [target])["measure/raspberry-pi-4"].key
        != make_plan(recipe, [faster])["measure/raspberry-pi-4"].key
    )


def test_what_the_target_resolves_to_on_this_machine_is_part_of_the_key(monkeypatch):
    before = keys(BASE, "host")
    monkeypatch.setattr("armlet.spec.target.Target.resolved_cpu", "another-core")
    after = keys(BASE, "host")
    assert {name for name in before if before[name] != after[name]} >= {"compile/host", "measure/host"}
    assert before["export"] == after["export"]


def test_a_time_measured_on_another_cpu_is_not_taken_for_this_ones(monkeypatch):
    before = keys(BASE, "host", "raspberry-pi-4")
    monkeypatch.setattr(sys.modules["armlet.plan"], "cpu_name", lambda: "Another CPU")
    after = keys(BASE, "host", "raspberry-pi-4")
    assert {name for name in before if before[name] != after[name]} == {
        "measure/host", "check/host", "bundle/host",
    }  # fmt: skip


def test_another_llvm_changes_what_is_estimated(monkeypatch):
    before = keys(BASE)
    monkeypatch.setattr(sys.modules["armlet.plan"], "_llvm_version", lambda: "99.1.0")
    after = keys(BASE)
    assert {name for name in before if before[name] != after[name]} == {
        *(f"{stage}/raspberry-pi-4" for stage in ("measure", "check", "bundle")),
        *costs_on("raspberry-pi-4", ["train", "pass 1 prune_channels", "pass 2 distill"]),
    }


def test_the_bundle_names_its_profile_so_another_profile_makes_another_bundle():
    recipe, targets = Recipe.model_validate(BASE), [load_target("raspberry-pi-4")]
    full, smoke = ({s.name: s.key for s in make_plan(recipe, targets, p).steps} for p in ("full", "smoke"))
    assert {name for name in full if full[name] != smoke[name]} == {"bundle/raspberry-pi-4"}


def test_two_different_targets_of_one_name_are_refused():
    target = load_target("raspberry-pi-4")
    other = target.model_copy(update={"description": "mine"})
    recipe = Recipe.model_validate(BASE)
    assert make_plan(recipe, [target, target]).targets == (target,)
    with pytest.raises(UsageError, match="two different targets are named 'raspberry-pi-4'"):
        make_plan(recipe, [target, other])
    with pytest.raises(UsageError, match="must run on this machine itself"):
        make_plan(recipe, [target.model_copy(update={"name": "host"})])


@pytest.mark.parametrize("name", ["main", "runner", "string", "m"])
def test_a_recipe_whose_files_would_hide_others_is_refused_before_any_work(name):
    with pytest.raises(UsageError, match="can't be a program's name"):
        make_plan(Recipe.model_validate(changed(("name",), name)), [load_target("host")])


def test_every_step_needs_only_earlier_steps():
    plan = make_plan(Recipe.model_validate(BASE), [load_target(t) for t in ("host", "raspberry-pi-4")])
    seen: set[str] = set()
    for step in plan.steps:
        assert set(step.needs) <= seen
        seen.add(step.name)


def test_every_source_named_for_a_key_exists():
    from armlet.plan import _PACKAGE

    missing = [s for stage in STAGES.values() for s in stage.sources if not (_PACKAGE / s).exists()]
    assert missing == []


def test_planning_loads_neither_torch_nor_tvm(tmp_path):
    path = tmp_path / "recipe.yaml"
    YAML().dump(BASE, path)
    script = (
        "import sys, json; from armlet import api; api.plan(sys.argv[1], ['raspberry-pi-4']);"
        "print(json.dumps([m for m in ('torch','tvm','onnx','matplotlib') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_further_teachers_are_trained_once_and_only_for_the_passes_that_learn_from_them():
    taught = changed(("passes", 1, "teachers"), 3)
    taught["passes"][0]["finetune"] = {"distill": {"teachers": 2}}
    steps = {
        s.name: s for s in make_plan(Recipe.model_validate(taught), [load_target("raspberry-pi-4")]).steps
    }
    assert [name for name in steps if name.startswith("teacher")] == ["teacher 2", "teacher 3"]
    assert steps["pass 1 prune_channels"].needs == ("train", "teacher 2")
    assert steps["pass 2 distill"].needs == ("pass 1 prune_channels", "train", "teacher 2", "teacher 3")
    assert steps["pass 3 quantize_static"].needs == ("pass 2 distill", "train")
    before, after = keys(taught), keys(taught | {"train": {"epochs": 4}})
    assert before["teacher 2"] != before["teacher 3"]
    assert before["teacher 2"] != after["teacher 2"]
    assert before["train"] == keys(BASE)["train"]


def test_further_teachers_are_trained_for_quantised_training_too():
    passes = [{"kind": "quantize_aware", "alpha": "50 %", "teachers": 3}]
    plan = make_plan(Recipe.model_validate(BASE | {"passes": passes}), [load_target("raspberry-pi-4")])
    assert plan["pass 1 quantize_aware"].needs == ("train", "teacher 2", "teacher 3")


@pytest.mark.parametrize("kind", ["prune_channels", "quantize_static"])
def test_a_pass_that_costs_programs_depends_on_their_target_and_on_what_makes_them(
    kind, tmp_path, monkeypatch
):
    text = shipped_targets()["raspberry-pi-4"].read_text()
    board = tmp_path / "board.yaml"
    board.write_text(text.replace("name: raspberry-pi-4", "name: board"))
    options = {"kind": kind, "latency": "1 ms", "target": str(board)}
    recipe = BASE | {"passes": [options]}
    step = f"pass 1 {kind}"
    before = keys(recipe, "host")
    (planned,) = make_plan(Recipe.model_validate(recipe), [load_target("host")]).pass_steps
    assert (planned.target, planned.costs_on) == (None, load_target(str(board)))
    assert keys(BASE | {"passes": [options | {"latency": "2 ms"}]}, "host")[step] != before[step]
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["armlet.plan"], "_llvm_version", lambda: "99.1.0")
        assert keys(recipe, "host")[step] != before[step]
    board.write_text(board.read_text().replace("clock_mhz: 1800", "clock_mhz: 900"))
    after = keys(recipe, "host")
    assert after[step] != before[step]
    assert after["train"] == before["train"]


@pytest.mark.parametrize(
    ("passes", "change", "target", "expected"),
    [
        ([], {}, "raspberry-pi-4", 4),
        ([{"kind": "distill"}], {}, "raspberry-pi-4", 4),
        ([{"kind": "quantize_static"}], {}, "raspberry-pi-4", 8),
        ([{"kind": "quantize_static", "mode": "dynamic"}], {}, "raspberry-pi-4", 8),
        ([{"kind": "quantize_static", "mode": "weight_only"}], {}, "raspberry-pi-4", 4),
        ([{"kind": "distill"}, {"kind": "quantize_aware"}], {}, "android-armv7", 8),
        ([], {"precision": "float16"}, "raspberry-pi-5", 8),
        ([], {}, "x86-64-vnni", 16),
        ([{"kind": "quantize_static"}], {}, "x86-64-vnni", 32),
    ],
)
def test_widths_fill_the_vectors_that_the_finished_network_is_computed_in(passes, change, target, expected):
    options = {"kind": "prune_channels", "ratio": "50 %", "round_to": "vector", "target": target}
    recipe = Recipe.model_validate(BASE | change | {"passes": [options, *passes]})
    found = settled(recipe, 0)
    assert isinstance(found, PruneChannels)
    assert found.round_to == expected
    step = make_plan(recipe, [load_target(target)]).pass_steps[0]
    assert step.costs_on is None  # nothing is compiled for it
    by_hand = recipe.passes[0].model_copy(update={"round_to": expected})
    same = recipe.model_copy(update={"passes": (by_hand, *recipe.passes[1:])})
    assert make_plan(same, [load_target(target)]).pass_steps[0].key == step.key


def test_widths_for_an_unknown_target_are_refused_by_the_plan():
    options = {"kind": "prune_channels", "ratio": "50 %", "round_to": "vector", "target": "raspberry-pi-9"}
    with pytest.raises(UsageError, match="raspberry-pi-9"):
        keys(BASE | {"passes": [options]})


@pytest.mark.parametrize("name", sorted(shipped_targets()))
def test_kernels_compute_as_many_channels_at_a_time_as_widths_are_multiples_of(name):
    target = load_target(name)
    if target.gpu is not None:
        assert target.lanes("float32") == target.lanes("float16") == TILES[0]
        return
    for build in target.builds:
        assert width(Requantize(8, 0, -128, 127), vector_of(build)) == target.lanes("int8")
        assert width(FloatClamp(None, None), vector_of(build)) == target.lanes("float32")
        if build.computes_float16:
            assert width(FloatClamp(None, None), vector_of(build, "float16")) == target.lanes("float16")


def test_a_target_that_nothing_runs_is_compiled_and_the_plan_says_that_it_is_not_measured():
    plan = make_plan(Recipe.model_validate(BASE), [load_target("iphone-15")])
    assert plan["measure/iphone-15"].what == "not measured: no device"
    of_gpu = make_plan(Recipe.model_validate(BASE | {"passes": []}), [load_target("host-opencl")])
    assert of_gpu["measure/host-opencl"].what == "run on this machine's OpenCL device"
    assert plan["compile/iphone-15"].needs == ("export",)
    assert plan["evaluate"].needs[0] == "compile/host"
