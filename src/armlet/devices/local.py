"""This machine as a board: programs run as processes of their own, in a temporary folder."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from armlet.devices.board import Board, DeviceFailed, Finished, Workplace


class LocalBoard(Board):
    """This machine.

    Args:
        timeout_s: longest run of a program.
    """

    def __init__(self, timeout_s: float = 600.0) -> None:
        self.name = "host"
        self._timeout_s = timeout_s

    def open(self) -> Workplace:
        """See `Board.open`."""
        return _LocalPlace(self._timeout_s)


class _LocalPlace(Workplace):
    def __init__(self, timeout_s: float) -> None:
        self._temporary = TemporaryDirectory(prefix="armlet-")
        self._folder, self._timeout_s = Path(self._temporary.name), timeout_s

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        (self._folder / name).write_bytes(content)
        if executable:
            (self._folder / name).chmod(0o755)

    def get(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            raise DeviceFailed(f"there is no file {name} in {self._folder}") from None

    def execute(self, arguments: Sequence[str]) -> Finished:
        try:
            done = subprocess.run(
                list(arguments), cwd=self._folder, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                capture_output=True, timeout=self._timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise DeviceFailed(f"{arguments[0]} ran longer than {self._timeout_s:g} s") from None
        except OSError as error:
            raise DeviceFailed(f"{arguments[0]} can't be started: {error.strerror}") from None
        return Finished(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def close(self) -> None:
        self._temporary.cleanup()
