"""Which way leads to a device: reads what a user writes after `--device`."""

from __future__ import annotations

from armlet.devices.board import Board
from armlet.errors import UsageError

HOST, EMULATOR = "host", "emulator"
FORMS = "host, emulator, ssh://[user@]host[:port]"


def open_board(device: str, timeout_s: float) -> Board:
    """Return the board that a user names; nothing is asked of it yet.

    Args:
        device: one of `FORMS`, but for the emulator, which runs no clock that means anything.
        timeout_s: longest wait for one command.

    Raises:
        UsageError: there is no such way to a device.
        MissingDependency: the program that leads there is not installed.
    """
    if device == HOST:
        from armlet.devices.local import LocalBoard

        return LocalBoard(timeout_s)
    if device.startswith("ssh://"):
        from armlet.devices.ssh import SshBoard

        return SshBoard(device, timeout_s)
    raise UsageError(f"--device {device}: there is no such device; one of {FORMS}")
