"""Settings and fixtures that all tests share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

# One thread each: several test processes share the machine, and sums must not depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("armlet", deadline=None)
hypothesis.settings.load_profile("armlet")

ROOT = Path(__file__).parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Weights that a test or its fixtures leave to chance are the same in every run and in every order."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this test session, shared by its processes; only data sets come from the user's cache."""
    from armlet.store import cache_root

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "armlet-cache"
    folder.mkdir(exist_ok=True)
    for shared in ("data", "tools"):
        (cache_root() / shared).mkdir(parents=True, exist_ok=True)
        if not (folder / shared).exists():
            with contextlib.suppress(FileExistsError):  # another process of this session was faster
                (folder / shared).symlink_to(cache_root() / shared)
    return folder


@pytest.fixture(scope="session")
def armlet(cache: Path):
    """The command line as a user runs it, in a process of its own."""

    def run(
        *arguments: str | Path, cwd: Path = ROOT, cache: Path = cache
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "armlet", *map(str, arguments)],
            cwd=cwd,
            env=os.environ | {"ARMLET_CACHE": str(cache), "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
