"""What a user sees when something is wrong: one clear error and the documented exit code."""

import json
import os
import subprocess
import sys

import pytest

from armlet.spec.load import shipped_targets

RECIPE = """\
name: tiny
data: {kind: letter-recognition, limit: 600, test_limit: 200}
model: {kind: fnn, hidden: [16]}
train: {epochs: 2}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def test_a_bad_recipe_ends_with_2_and_names_file_line_and_key(armlet, recipe):
    recipe.write_text(RECIPE.replace("hidden", "hiden"))
    done = armlet("run", recipe)
    assert done.returncode == 2
    assert f"{recipe}:3: model.hiden: unknown key (did you mean 'hidden'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_target_ends_with_2_and_the_nearest_name(armlet, recipe):
    done = armlet("plan", recipe, "--target", "raspbery-pi-4")
    assert done.returncode == 2
    assert "did you mean 'raspberry-pi-4'?" in done.stderr


def test_an_unknown_data_set_ends_with_2_and_the_nearest_name(armlet):
    done = armlet("data", "fetch", "leter-recognition")
    assert done.returncode == 2
    assert "did you mean 'letter-recognition'?" in done.stderr


@pytest.mark.parametrize("arguments", [["run"], ["--nonsense"], ["rnu"], ["run", "x.yaml", "--epochs", "3"]])
def test_bad_usage_ends_with_2(armlet, arguments):
    done = armlet(*arguments)
    assert done.returncode == 2
    assert "Usage" in done.stderr


def test_a_missing_program_ends_with_3_and_the_command_that_installs_it(armlet, recipe, tmp_path):
    target = tmp_path / "board.yaml"
    target.write_text(
        "name: board\ntriple: aarch64-linux-gnu\ncore: {llvm_cpu: cortex-a72}\n"
        "toolchain: {cc: no-such-compiler, ar: no-such-ar}\nemulator: {cpu: cortex-a72}\n"
    )
    done = armlet("run", recipe, "--target", target, "-o", tmp_path / "build")
    assert done.returncode == 3
    assert "missing: no-such-compiler, no-such-ar, needed for programs for board" in done.stderr
    assert "train" not in done.stderr, "work began before the machine was looked at"


def test_an_unknown_core_ends_with_2_before_any_work(armlet, recipe, tmp_path):
    target = tmp_path / "board.yaml"
    target.write_text(
        "name: board\ntriple: aarch64-linux-gnu\ncore: {llvm_cpu: cortex-a722}\n"
        "toolchain: {cc: aarch64-linux-gnu-gcc, ar: aarch64-linux-gnu-ar}\nemulator: {cpu: cortex-a72}\n"
    )
    done = armlet("run", recipe, "--target", target, "-o", tmp_path / "build", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert (
        "core.llvm_cpu: target board: LLVM has no core 'cortex-a722' (did you mean 'cortex-a72'?"
        in done.stderr
    )
    assert not (tmp_path / "cache" / "entries").exists(), "work began before the names were looked at"


def test_a_data_set_that_is_only_half_there_is_verified_and_ends_with_2(armlet, tmp_path):
    assert armlet("data", "verify", cache=tmp_path).stdout == "no data set is fetched; armlet data fetch\n"
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"half")
    done = armlet("data", "verify", cache=tmp_path)
    assert done.returncode == 2
    assert f"{folder / 't10k-labels-idx1-ubyte'}: is corrupted" in done.stderr
    assert f"{folder / 'train-labels-idx1-ubyte'}: no such file" in done.stderr
    assert "letter-recognition" not in done.stderr


def test_an_output_that_can_not_be_written_ends_with_2_before_any_work(armlet, recipe, tmp_path):
    taken = tmp_path / "build" / "tiny-host.armlet"
    taken.mkdir(parents=True)
    (taken / "mine.txt").write_text("mine")
    for output, message in ((recipe, "can't be a folder"), (taken.parent, "exists and is not a bundle")):
        done = armlet("run", recipe, "-o", output, cache=tmp_path / "cache")
        assert done.returncode == 2
        assert message in done.stderr
        assert "train" not in done.stderr, "work began"
    assert (taken / "mine.txt").read_text() == "mine"


def test_a_cache_that_can_not_be_a_folder_ends_with_2(armlet, recipe, tmp_path):
    done = armlet("run", recipe, "-o", tmp_path / "build", cache=recipe)
    assert done.returncode == 2
    assert f"{recipe} (the cache, ARMLET_CACHE) can't be a folder" in done.stderr


@pytest.mark.parametrize("text", ["[]", "{}", "not json", '{"recipe": 1, "targets": 2}'])
def test_a_folder_that_is_no_reproducer_ends_with_2(armlet, tmp_path, text):
    (tmp_path / "step.json").write_text(text)
    done = armlet("reproduce", tmp_path)
    assert done.returncode == 2
    assert "is not a reproducer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_not_taken_for_a_failed_budget(cache):
    process = subprocess.Popen(
        [sys.executable, "-m", "armlet", "targets", "list", "--json"],
        stdout=subprocess.PIPE,
        env=os.environ | {"ARMLET_CACHE": str(cache)},
    )
    process.stdout.close()
    assert process.wait() == 141


def test_a_terminal_without_the_signs_of_a_table_ends_nothing(armlet, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert armlet("doctor").returncode in (0, 3)


def test_a_folder_that_is_no_bundle_ends_with_2(armlet, tmp_path):
    for verb in ("check", "inspect"):
        done = armlet(verb, tmp_path)
        assert done.returncode == 2
        assert "is not a bundle" in done.stderr


def test_a_plan_names_every_step_and_says_what_is_cached(armlet, recipe, tmp_path):
    done = armlet("plan", recipe, "--target", "raspberry-pi-4", "--json", cache=tmp_path / "empty")
    assert done.returncode == 0
    steps = json.loads(done.stdout)
    assert [step["name"] for step in steps] == [
        "data", "train", "export", "compile/host", "compile/raspberry-pi-4", "evaluate",
        "measure/raspberry-pi-4", "check/raspberry-pi-4", "bundle/raspberry-pi-4",
    ]  # fmt: skip
    assert not any(step["cached"] for step in steps)


def test_the_version_is_printed(armlet):
    done = armlet("--version")
    assert (done.returncode, done.stdout) == (0, "armlet 0.1.0\n")


def test_targets_and_data_sets_are_listed_as_json(armlet):
    assert {t["name"] for t in json.loads(armlet("targets", "list", "--json").stdout)} == {
        "android-arm64", "android-arm64-dotprod", "android-armv7", "android-opencl", "arm64-linux", "arm64-linux-musl",
        "aws-graviton3", "galaxy-s24", "host", "host-opencl", "iphone-15", "jetson-orin-nano", "pixel-4", "pixel-8",
        "pixel-8-little", "raspberry-pi-2", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2",
        "rk3588", "rk3588-little", "x86-64-vnni",
    }  # fmt: skip
    listed = json.loads(armlet("data", "list", "--json").stdout)
    assert {entry["kind"] for entry in listed} == {
        "electricity-demand", "fashion-mnist", "japanese-vowels", "letter-recognition", "movie-sentences",
        "shuttle", "smartwatch-exercises",
    }  # fmt: skip
    assert all(entry["licence"] and all(len(sha) == 64 for sha in entry["sha256"]) for entry in listed)


@pytest.mark.parametrize("verb", ["ablate", "analyze", "export"])
def test_every_verb_with_an_output_looks_at_it_before_any_work(verb, armlet, recipe, tmp_path):
    done = armlet(verb, recipe, "-o", recipe, cache=tmp_path / "cache")
    assert done.returncode == 2
    assert f"{recipe} (--output) can't be a folder" in done.stderr
    assert not (tmp_path / "cache" / "entries").exists()


def test_a_data_set_that_can_not_be_had_does_not_hide_the_others(armlet, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    done = armlet("data", "fetch", "shuttle", "japanese-vowels", cache=tmp_path / "cache")
    assert done.returncode == 3
    for name in ("shuttle", "japanese-vowels"):
        assert (done.stdout + done.stderr).count(f"missing: data set {name}") == 1


def test_a_target_is_validated(armlet, tmp_path):
    done = armlet("targets", "validate", "raspberry-pi-4")
    assert done.returncode == 0, done.stderr
    assert "are run on the emulated board; latency is estimated" in done.stdout

    text = shipped_targets()["raspberry-pi-4"].read_text()
    for old, new, message in (
        ("llvm_cpu: cortex-a72", "llvm_cpu: cortex-a7200", "cortex-a7200"),
        ("emulator: {cpu: cortex-a72}", "emulator: {cpu: cortex-a7200}", "has no core 'cortex-a7200'"),
        ("features: [neon]", "features: [neno]", "features"),
    ):
        file = tmp_path / "raspberry-pi-4.yaml"
        file.write_text(text.replace(old, new))
        wrong = armlet("targets", "validate", file)
        assert wrong.returncode == 2
        assert message in wrong.stderr
