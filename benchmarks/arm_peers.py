"""Other runtimes' aarch64 programs under the emulator: a Python of the board with their wheels, counted by our plugin.

Needs qemu-user, apt-get on Debian or Ubuntu, pip, and on the first use a network: some 80 MB go into the cache. Nothing
is installed on this machine: packages of the other architecture are unpacked, into a folder of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from armlet.devices.base import BlockCounts
from armlet.devices.emulator import Emulator, read_counts
from armlet.devices.plugin import build_plugin
from armlet.spec.target import Target
from armlet.store import cache_root

PYTHON = "3.11"
PACKAGES = (f"python{PYTHON}", "libstdc++6", "libgomp1")
WHEELS = ("numpy==2.4.6", "onnxruntime==1.32.0", "ai-edge-litert==2.3.0", "ncnn==1.0.20261020")
GUEST = Path(__file__).parent / "arm_guest.py"
_PARTS = {"cortex-a72": ("0xd08", ""), "cortex-a76": ("0xd0b", " fphp asimdhp asimddp atomics")}
"""What /proc/cpuinfo says of a core: its number (Arm's MIDR_EL1 of each core), and features beside those of Armv8.0."""


def python_root() -> Path:
    """Return the folder with the board's Python and the runtimes, made on the first use."""
    root = cache_root() / "arm-python"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
            _unpack_debian(Path(scratch))
            _unpack_wheels(Path(scratch))
            (Path(scratch) / "root").rename(root)
    return root


def python_program() -> Path:
    """Return the board's Python."""
    return python_root() / "usr" / "bin" / f"python{PYTHON}"


def _unpack_debian(scratch: Path) -> None:
    """Unpack the packages and what they need below `scratch`/root, by an apt that knows of no other machine."""
    state = scratch / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "Dir::State": state, "Dir::State::status": state / "status", "Dir::Cache": state / "cache",
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*apt, "update"])
    _run([*apt, "-y", "--no-install-recommends", "--download-only", "install", *PACKAGES])
    (scratch / "root").mkdir()
    for archive in sorted((state / "cache" / "archives").glob("*.deb")):
        _run(["dpkg", "-x", str(archive), str(scratch / "root")])


def _unpack_wheels(scratch: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    _run([
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *platforms,
        f"--python-version={PYTHON}", "-d", str(scratch / "wheels"), *WHEELS,
    ])  # fmt: skip
    for wheel in (scratch / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "root" / "opt" / "site")


def count(runtime: str, model: Path, sample: np.ndarray, target: Target) -> tuple[BlockCounts, np.ndarray]:
    """Count one inference after a warm-up in another runtime; return the counts and its answer.

    Args:
        runtime: a function of `arm_guest`.
        model: in the form that the runtime reads.
        sample: [1, ...].
        target: an AArch64 board with an emulator.

    Raises:
        RuntimeError: the runtime can't read or run it, with its last words.
    """
    root, emulator = python_root(), Emulator(target)
    cpu = target.core.llvm_cpu
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "in.npy", sample)
        plugin = f"{build_plugin('qemu-aarch64')},out={folder / 'counts'}"
        command = ["qemu-aarch64", "-cpu", cpu, "-seed", "0", "-plugin", plugin]
        command += ["-L", str(_machine(folder, root, cpu)), str(python_program())]
        command += [str(GUEST), runtime, str(model), str(folder)]
        environment = {
            "PYTHONPATH": str(root / "opt/site"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"ended with {done.returncode}: {(done.stderr.strip() or '-').splitlines()[-1]}"
            )
        text = (folder / "counts").read_text(encoding="ascii")
        blocks = read_counts(text, python_program())
        return BlockCounts(blocks, False, emulator.description), np.load(folder / "out.npy")


def _machine(folder: Path, root: Path, cpu: str) -> Path:
    """Return `root` with this core's /proc/cpuinfo: without it a runtime reads the host's, and may crash."""
    part, features = _PARTS[cpu]
    machine = folder / "root"
    machine.mkdir()
    for entry in root.iterdir():
        (machine / entry.name).symlink_to(entry)
    (machine / "proc").mkdir()
    (machine / "proc" / "cpuinfo").write_text(
        f"processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid{features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n",
        encoding="ascii",
    )
    cpus = machine / "sys" / "devices" / "system" / "cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present"):
        (cpus / name).write_text("0\n", encoding="ascii")
    return machine


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
