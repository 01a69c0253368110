"""Machines that programs are carried to and run on: what every route to one has in common.

A route opens a `Workplace`, an empty folder on the machine: files are put there, a program is run in it, files are read
back, and at the end the folder is gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from armlet.errors import ArmletError


class DeviceFailed(ArmletError):
    """A device can't be reached, refused something, or went away; says what to do, and what is left there."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command on a device ended.

    Attributes:
        code: its exit code; above 128 or negative where a signal ended it.
    """

    code: int
    stdout: bytes
    stderr: str

    @property
    def is_illegal_instruction(self) -> bool:
        """Whether it used an instruction that the CPU lacks: SIGILL, as Python and as shells say it."""
        return self.code in (-4, 128 + 4)


class Workplace(ABC):
    """A folder of its own on a device, which is removed at the end of a `with`."""

    @abstractmethod
    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Write a file of the folder.

        Raises:
            DeviceFailed: the device is full, or went away.
        """

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Read a file of the folder.

        Raises:
            DeviceFailed: there is none, or the device went away.
        """

    @abstractmethod
    def execute(self, arguments: Sequence[str]) -> Finished:
        """Run `arguments` in the folder: a program of the device, or `./name` of the folder.

        Raises:
            DeviceFailed: it ran longer than the route's time limit, or the device went away.
        """

    @abstractmethod
    def close(self) -> None:
        """Remove the folder with all that is in it.

        Raises:
            DeviceFailed: it can't be; says where it is.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DeviceFailed as left:
            if error is None:
                raise
            if isinstance(error, DeviceFailed):  # the first error is the one that explains
                raise DeviceFailed(f"{error}; {left}") from None


class Board(ABC):
    """A machine, and the way to it.

    Attributes:
        name: as the user gave it, such as `ssh://pi@board.local`.
    """

    name: str

    @abstractmethod
    def open(self) -> Workplace:
        """Make an empty folder on the machine.

        Raises:
            DeviceFailed: the machine can't be reached, or lets nothing be written.
        """
