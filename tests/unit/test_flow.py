"""How a plan is carried out when a stage fails or is interrupted. The stages themselves are stood in for."""

import json
import shutil
import signal

import pytest

from armlet import flow
from armlet.artifacts import Epoch
from armlet.errors import StepFailed, UsageError
from armlet.plan import make_plan
from armlet.progress import Silent
from armlet.spec.load import load_target
from armlet.spec.recipe import Recipe
from armlet.store import Store

RECIPE = Recipe.model_validate(
    {"name": "t", "data": {"kind": "letter-recognition"}, "model": {"kind": "fnn"}}
)


@pytest.fixture
def plan(monkeypatch):
    monkeypatch.setattr(flow.preflight, "require", lambda _: None)
    return make_plan(RECIPE, [load_target("host")])


def run(plan, tmp_path, output: str = "build"):
    return flow.run_plan(plan, store=Store(tmp_path / "cache"), output=tmp_path / output, progress=Silent())


def fail_with(monkeypatch, stage) -> None:
    monkeypatch.setitem(flow.STAGE_FUNCTIONS, "data", stage)


def test_an_interruption_that_a_library_turns_into_an_error_is_still_one(plan, tmp_path, monkeypatch):
    def stage(_):
        error = AttributeError("half imported")
        error.__context__ = KeyboardInterrupt()  # as of an import that Ctrl-C cuts in half
        raise error

    fail_with(monkeypatch, stage)
    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path)
    assert not (tmp_path / "cache" / "failed").exists()
    assert not [p for p in (tmp_path / "cache" / "entries").rglob("*") if p.is_file()]


def test_a_step_during_which_an_interruption_was_swallowed_leaves_nothing(plan, tmp_path, monkeypatch):
    seen = []

    def stage(_):
        try:
            seen.append(1)
            signal.raise_signal(signal.SIGINT)
        except BaseException:  # noqa: BLE001, S110 - as a careless library does
            pass
        return Epoch(1, 0.0, 0.0, "accuracy", 0.0, 0.0, 0.0)

    fail_with(monkeypatch, stage)
    store = Store(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        flow.run_plan(
            plan, store=store, output=tmp_path / "b", progress=Silent(), interrupted=lambda: bool(seen)
        )
    assert not store.has(plan["data"].key)


def test_any_other_error_leaves_a_reproducer_that_fails_the_same_way(plan, tmp_path, monkeypatch):
    def stage(_):
        raise ZeroDivisionError("by nothing")

    fail_with(monkeypatch, stage)
    with pytest.raises(StepFailed, match="step data failed: ZeroDivisionError: by nothing") as caught:
        run(plan, tmp_path)
    folder = caught.value.reproducer
    assert "in stage" in (folder / "traceback.txt").read_text()
    assert json.loads((folder / "step.json").read_text())["command"] == f"armlet reproduce {folder}"
    with pytest.raises(ZeroDivisionError):
        flow.reproduce(folder, Silent())


def test_a_place_that_is_taken_is_refused_before_the_first_stage(plan, tmp_path, monkeypatch):
    def stage(_):
        raise AssertionError("work began")

    fail_with(monkeypatch, stage)
    taken = tmp_path / "build" / "t-host.armlet"
    taken.mkdir(parents=True)
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        run(plan, tmp_path)
    shutil.rmtree(taken)
    taken.symlink_to(tmp_path)
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        run(plan, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be a folder"):
        run(plan, tmp_path, "file")
