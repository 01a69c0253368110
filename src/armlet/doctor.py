"""What this machine has of all that armlet can use, and the command that installs what it lacks.

Nothing heavy is imported: packages are looked up in their installed metadata, programs are asked for a version.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from armlet import data
from armlet.bench.llvm import FITTED_WITH, find_llvm
from armlet.compile.link import install_command
from armlet.devices.base import opencl_drivers
from armlet.devices.plugin import plugin_file, qemu_version
from armlet.errors import ArmletError, MissingDependency
from armlet.store import cache_root
from armlet.units import format_bytes

_OLDEST_PYTHON = (3, 11)
_ENOUGH_DISK = 5 * 1024**3  # an environment with torch and tvm takes half of it
_EMULATOR = "qemu-aarch64"
_EXTRAS = {
    "": "everything",
    "train": "training and passes",
    "compile": "export and compilation",
    "report": "reports",
    "zig": "targets whose tool chain is zig: Android, musl",
    "cluster": "search on a cluster, which is not built yet",
    "dev": "armlet's own tests",
    "docs": "armlet's own documentation",
    "peers": "benchmarks beside other tools",
}
_OPTIONAL_EXTRAS = ("zig", "cluster", "dev", "docs", "peers")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*?)\s*(?:;\s*extra == ['\"](\w+)['\"])?$")
_CLAUSE = re.compile(r"\s*(==|>=|<)\s*([\w.]+)\s*")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that armlet uses.

    Attributes:
        name: of the program, package or data set.
        needed_for: what does not work without it.
        found: its version or state here; None when it is not there.
        install: the command that installs it, or puts it right.
        optional: armlet's main path works without it.
        is_wrong: it is there, but not as it must be; `found` says why.
    """

    name: str
    needed_for: str
    found: str | None
    install: str
    optional: bool = False
    is_wrong: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether something that armlet needs is not there, or not as it must be."""
        return not self.optional and (self.found is None or self.is_wrong)


def diagnose() -> tuple[Finding, ...]:
    """Look at this machine: Python, packages, programs, the QEMU plugin, data sets, GPU, disk."""
    return (_python(), *packages(), *programs(), *_data_sets(), _gpu(), _disk())


def _python() -> Finding:
    wrong = sys.version_info[:2] < _OLDEST_PYTHON
    wanted = ".".join(map(str, _OLDEST_PYTHON))
    return Finding(
        "Python", "everything", platform.python_version(), f"apt-get install python{wanted}", is_wrong=wrong
    )


def packages() -> list[Finding]:
    """Look for the packages that armlet names in its own metadata."""
    try:
        requirements = metadata.requires("armlet") or []
    except metadata.PackageNotFoundError:
        return [Finding("armlet", "its list of packages", None, "pip install -e '.[train,compile,report]'")]
    return [_package(*parts) for parts in map(parse_requirement, requirements)]


def parse_requirement(text: str) -> tuple[str, str, str]:
    """Split a requirement of armlet's metadata into package, versions and extra ("" for none).

    Raises:
        ValueError: it has another form than armlet's own requirements have.
    """
    match = _REQUIREMENT.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a requirement of the form NAME VERSIONS; extra == 'EXTRA'")
    return match.group(1), match.group(2), match.group(3) or ""


def _package(name: str, versions: str, extra: str) -> Finding:
    install = f"pip install '{name}{versions}'"
    needed_for, optional = _EXTRAS.get(extra, extra), extra in _OPTIONAL_EXTRAS
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, needed_for, None, install, optional)
    if satisfies(found, versions):
        return Finding(name, needed_for, found, install, optional)
    return Finding(name, needed_for, f"{found}, needs {versions}", install, optional, is_wrong=True)


def satisfies(version: str, versions: str) -> bool:
    """Say whether a version is within limits such as ">=2.13,<2.14" or "==0.1.14.post0".

    Limits compare the numbers of a release; a pin compares the whole text but for a local part ("+cpu").

    Raises:
        ValueError: a limit has another form; armlet's own requirements have none such.
    """
    public = version.partition("+")[0]
    compare: dict[str, Callable[[str], bool]] = {
        "==": lambda wanted: public == wanted,
        ">=": lambda wanted: _release(public) >= _release(wanted),
        "<": lambda wanted: _release(public) < _release(wanted),
    }
    clauses = [_clause(text) for text in versions.split(",")] if versions else []
    return all(compare[operator](wanted) for operator, wanted in clauses)


def _clause(text: str) -> tuple[str, str]:
    match = _CLAUSE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a limit of the form ==, >= or < and a version")
    return match.group(1), match.group(2)


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:  # 2.13.0 is 2.13
        numbers.pop()
    return tuple(numbers)


def programs() -> list[Finding]:
    """Look for the programs that armlet calls."""
    return [
        _gcc("gcc", "this machine"),
        _gcc("aarch64-linux-gnu-gcc", "ARM boards"),
        _gcc("arm-linux-gnueabihf-gcc", "32-bit ARM boards", optional=True),
        _qemu(_EMULATOR, "ARM boards"),
        _qemu("qemu-arm", "32-bit ARM boards", optional=True),
        _plugin(),
        _finding(
            "OpenCL",
            "programs for GPUs, checked on this machine",
            "apt-get install pocl-opencl-icd",
            _opencl,
            optional=True,
        ),
        _finding("llvm-mca", "estimated latency", f"apt-get install llvm-{FITTED_WITH}", _llvm),
    ]


def _finding(
    name: str, needed_for: str, install: str, version: Callable[[], str], *, optional: bool = False
) -> Finding:
    try:
        return Finding(name, needed_for, version(), install, optional)
    except (ArmletError, OSError, subprocess.SubprocessError):
        return Finding(name, needed_for, None, install, optional)


def _gcc(name: str, machines: str, *, optional: bool = False) -> Finding:
    def version() -> str:
        command = [name, "-dumpfullversion"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    return _finding(name, f"compiling for {machines}", install_command(name), version, optional=optional)


def _qemu(name: str, machines: str, *, optional: bool = False) -> Finding:
    def version() -> str:
        return ".".join(map(str, qemu_version(name)))

    install = "apt-get install qemu-user"
    return _finding(name, f"running programs for {machines}", install, version, optional=optional)


def _opencl() -> str:
    if not (drivers := opencl_drivers()):
        raise MissingDependency("an OpenCL driver", "programs for GPUs", "apt-get install pocl-opencl-icd")
    return ", ".join(drivers)


def _llvm() -> str:
    version = find_llvm().version
    note = "" if version.startswith(f"{FITTED_WITH}.") else f" (constants were fitted with {FITTED_WITH})"
    return version + note


def _plugin() -> Finding:
    needed_for = "exact counts and estimated latency"
    try:
        built = plugin_file(_EMULATOR).is_file()
    except MissingDependency as error:
        return Finding("QEMU plugin", needed_for, None, error.install)
    if built:
        return Finding("QEMU plugin", needed_for, "built", "")
    if shutil.which("gcc") or shutil.which("cc"):  # built on first use
        return Finding("QEMU plugin", needed_for, "built on first use", "")
    return Finding("QEMU plugin", needed_for, None, "apt-get install gcc libc6-dev")


def _data_sets() -> list[Finding]:
    folder = cache_root() / "data"
    return [
        Finding(
            kind,
            "recipes that name it; fetched when they run",
            "fetched" if data.is_fetched(kind, folder) else None,
            f"armlet data fetch {kind}",
            optional=True,
        )
        for kind in data.kinds()
    ]


def _gpu() -> Finding:
    return _finding("GPU", "faster training", "", _nvidia, optional=True)


def _nvidia() -> str:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    if not text:
        raise MissingDependency("a GPU", "faster training", "NVIDIA's driver")
    return "; ".join(text.splitlines())


def _disk() -> Finding:
    place = cache_root()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return Finding(
        "disk",
        "data sets and finished steps",
        f"{format_bytes(free)} free for the cache",
        "set ARMLET_CACHE to a folder with more room",
        is_wrong=free < _ENOUGH_DISK,
    )
