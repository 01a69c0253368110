from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from armlet import doctor
from armlet.bench import llvm
from armlet.doctor import Finding, diagnose, parse_requirement, satisfies


def finding(name: str) -> Finding:
    (found,) = (f for f in diagnose() if f.name == name)
    return found


def with_requirements(monkeypatch: pytest.MonkeyPatch, requirements: list[str], **installed: str) -> None:
    """Let armlet require these, and let only those be installed."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name.replace("-", "_")]

    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("numpy>=2.0", ("numpy", ">=2.0", "")),
        ('torch<2.14,>=2.13; extra == "train"', ("torch", "<2.14,>=2.13", "train")),
        ("ray[default]>=2.40; extra == 'cluster'", ("ray", ">=2.40", "cluster")),
        (
            "apache-tvm-ffi==0.1.14.post0 ; extra == 'compile'",
            ("apache-tvm-ffi", "==0.1.14.post0", "compile"),
        ),
        ("typer", ("typer", "", "")),
    ],
)
def test_requirements_are_read(text: str, parts: tuple[str, str, str]) -> None:
    assert parse_requirement(text) == parts


def test_a_requirement_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a requirement of the form"):
        parse_requirement("numpy>=2; python_version < '3.12' and extra == 'x'")


@pytest.mark.parametrize(
    ("version", "versions", "holds"),
    [
        ("2.13.0+cpu", ">=2.13,<2.14", True),
        ("2.14.0", ">=2.13,<2.14", False),
        ("2.9.1", ">=2.13", False),
        ("2.13", ">=2.13.0", True),
        ("0.1.14.post0", "==0.1.14.post0", True),
        ("0.1.14.post1", "==0.1.14.post0", False),
        ("0.27.0.post1", ">=0.27,<0.28", True),
        ("7", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, versions: str, holds: bool) -> None:
    assert satisfies(version, versions) is holds


@pytest.mark.parametrize("versions", ["<=2.13", "~=2.13", "!=2.13", ">=2.13,!=2.13.1", ">2.13", "==2.*"])
def test_a_limit_of_another_form_is_refused_and_not_passed_over(versions: str) -> None:
    with pytest.raises(ValueError, match="is not a limit of the form"):
        satisfies("2.13.0", versions)


def test_a_wrong_pin_is_missing_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    requirement = 'apache-tvm-ffi==0.1.14.post0; extra == "compile"'
    with_requirements(monkeypatch, [requirement], apache_tvm_ffi="0.2.1")

    found = finding("apache-tvm-ffi")

    assert found.is_missing
    assert found.found == "0.2.1, needs ==0.1.14.post0"
    assert found.install == "pip install 'apache-tvm-ffi==0.1.14.post0'"


def test_a_missing_package_is_told_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_requirements(
        monkeypatch,
        [
            'torch<2.14,>=2.13; extra == "train"',
            'optuna>=4.0; extra == "cluster"',
            'torchao>=0.18; extra == "peers"',
        ],
    )

    assert finding("torch") == Finding(
        "torch", "training and passes", None, "pip install 'torch<2.14,>=2.13'"
    )
    assert finding("torch").is_missing
    assert not finding("optuna").is_missing  # search on several machines is optional
    assert not finding("torchao").is_missing  # and so are other tools to compare with


def test_missing_programs_name_their_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(llvm, "_tools", lambda mc, mca: None)
    expected = {
        "gcc": "apt-get install gcc libc6-dev",
        "aarch64-linux-gnu-gcc": "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        "qemu-aarch64": "apt-get install qemu-user",
        "QEMU plugin": "apt-get install qemu-user",
        "llvm-mca": "apt-get install llvm-19",
    }
    for_32_bits = {
        "arm-linux-gnueabihf-gcc": "apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
        "qemu-arm": "apt-get install qemu-user",
    }
    found = {f.name: f for f in diagnose()}

    assert {name: found[name].install for name in expected | for_32_bits} == expected | for_32_bits
    assert all(found[name].is_missing for name in expected)
    assert all(found[name].found is None and found[name].optional for name in for_32_bits)
    assert not found["GPU"].is_missing


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARMLET_CACHE", str(tmp_path / "not" / "made" / "yet"))
    assert finding("disk").found is not None
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(doctor, "_ENOUGH_DISK", 1 << 60)
    assert finding("disk").is_missing


def test_data_sets_that_are_not_fetched_are_not_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARMLET_CACHE", str(tmp_path))

    found = finding("fashion-mnist")

    assert (found.found, found.is_missing) == (None, False)
    assert found.install == "armlet data fetch fashion-mnist"


def test_looking_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'tvm', 'onnx', 'matplotlib', 'numpy'}"
    code = f"import sys; from armlet.doctor import diagnose; diagnose(); print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
