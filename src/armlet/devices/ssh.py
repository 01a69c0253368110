"""Boards that are reached by ssh, through the user's own OpenSSH: its configuration, keys, agent and known hosts.

`ssh://[user@]host[:port][?folder=DIR&config=FILE]`: `folder` is where programs may be run, for boards whose `/tmp` is
mounted noexec; `config` takes the place of `~/.ssh/config`.
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from armlet.devices.board import Board, DeviceFailed, Finished, Workplace
from armlet.errors import MissingDependency, UsageError

FORM = "ssh://[user@]host[:port][?folder=DIR&config=FILE]"
_CONNECTION_LOST = (
    255  # what ssh exits with where it, and not the remote command, failed (ssh(1), EXIT STATUS)
)
_TIMED_OUT = (
    124,
    128 + 15,
)  # of timeout(1) where it ended the command: coreutils and toybox; BusyBox, by SIGTERM
_GRACE_S = 5.0  # for the answer of a board that ended a program in time
_TRIES = 3
_ADVICE = (
    ("identification has changed", "another board, or set up anew: compare fingerprints, then ssh-keygen -R {host}"),
    ("host key verification failed", "connect once by hand, compare the fingerprint, and accept the key: ssh {login}"),
    ("permission denied", "log in by a key that needs no password here: ssh-copy-id {login}"),
    ("could not resolve", "check the name of the host"),
    ("connection refused", "start an ssh server there, or check the port"),
    ("timed out", "check that the board is on, and on this network"),
)  # fmt: skip
"""What to do, by what ssh says; the first four are not worth another try."""
_FINAL = tuple(said for said, _ in _ADVICE[:4])


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where a board is, as its URL says."""

    host: str
    user: str | None
    port: int | None
    folder: str
    config: str | None

    @property
    def login(self) -> str:
        """As a person would write it: `-p 2222 pi@board`."""
        at = f"{self.user}@{self.host}" if self.user else self.host
        return f"-p {self.port} {at}" if self.port else at

    @property
    def known_as(self) -> str:
        """Its name in the file of known hosts, quoted for a shell."""
        return shlex.quote(f"[{self.host}]:{self.port}") if self.port else self.host


def parse_ssh(url: str) -> SshAddress:
    """Read an ssh URL.

    Raises:
        UsageError: it is none; says the form.
    """
    try:
        parts = urlsplit(url)
        options = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: {error}; write {FORM}") from None
    unknown = sorted(set(options) - {"folder", "config"})
    # A host that begins with a dash would be an option of ssh.
    if not parts.hostname or parts.hostname.startswith("-") or parts.path not in ("", "/") or parts.password:
        raise UsageError(f"{url} is no address of a board; write {FORM}")
    if unknown or any(len(values) > 1 for values in options.values()):
        raise UsageError(f"{url}: unknown or repeated option {', '.join(unknown or options)}; write {FORM}")
    folder = options.get("folder", ["/tmp"])[0]
    if not PurePosixPath(folder).is_absolute():
        raise UsageError(f"{url}: folder={folder}: give an absolute path")
    user = unquote(parts.username) if parts.username else None
    at = parts.netloc.lower().rindex(
        parts.hostname
    )  # urlsplit makes it lower case, which no alias of ssh's may be
    return SshAddress(
        parts.netloc[at : at + len(parts.hostname)], user, port, folder, options.get("config", [None])[0]
    )


class SshBoard(Board):
    """A board at the other end of ssh.

    Args:
        url: as `FORM` says.
        timeout_s: longest run of one command, connecting included.

    Raises:
        UsageError: the URL is wrong.
        MissingDependency: there is no ssh here.
    """

    def __init__(self, url: str, timeout_s: float = 600.0) -> None:
        self.name, self.address, self.timeout_s = url.partition("?")[0], parse_ssh(url), timeout_s
        if shutil.which("ssh") is None:
            raise MissingDependency("ssh", f"the board {url}", "apt-get install openssh-client")

    def open(self) -> Workplace:
        """See `Board.open`."""
        done = self.command(f"mktemp -d {shlex.quote(self.address.folder)}/armlet.XXXXXX")
        folder = done.stdout.decode(errors="replace").strip()
        if done.code or not folder.startswith("/"):
            raise DeviceFailed(
                f"{self.name}: no folder can be made in {self.address.folder}: {done.stderr.strip()}"
                " (another one: ?folder=DIR)"
            )
        return _SshPlace(self, folder)

    def command(self, text: str, stdin: bytes = b"") -> Finished:
        """Run a shell command on the board, once more where the connection failed.

        Every command that armlet runs may be run twice: the same files are written, a program runs again.

        Raises:
            DeviceFailed: no connection, or it ran too long.
        """
        for attempt in range(1, _TRIES + 1):
            done = self._try(text, stdin)
            if done.code != _CONNECTION_LOST:
                return done
            said = done.stderr.lower()
            if attempt == _TRIES or any(words in said for words in _FINAL):
                break
            time.sleep(attempt)
        advice = next((todo for words, todo in _ADVICE if words in said), "")
        hint = f" ({advice.format(login=self.address.login, host=self.address.known_as)})" if advice else ""
        reason = done.stderr.strip().replace("\r", "").splitlines()[-1:] or ["ssh says nothing"]
        raise DeviceFailed(f"{self.name}: no connection: {reason[0]}{hint}")

    def _try(self, text: str, stdin: bytes) -> Finished:
        address = self.address
        connect_s = max(1, min(20, int(self.timeout_s)))
        options = [
            "BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={connect_s}",
            "ServerAliveInterval=5", "ServerAliveCountMax=4",
            # What the configuration has for people: a board gets no agent, no tunnels and no command but armlet's.
            "ForwardAgent=no", "ClearAllForwardings=yes", "RemoteCommand=none",
        ]  # fmt: skip
        command = ["ssh", "-T", *(word for option in options for word in ("-o", option))]
        if address.config:
            command += ["-F", address.config]
        if address.port:
            command += ["-p", str(address.port)]
        if address.user:
            command += ["-l", address.user]
        command += ["--", address.host, text]
        try:
            done = subprocess.run(
                command, input=stdin, capture_output=True, timeout=self.timeout_s + _GRACE_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise DeviceFailed(f"{self.name}: no answer within {self.timeout_s:g} s to: {text}") from None
        return Finished(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


class _SshPlace(Workplace):
    def __init__(self, board: SshBoard, folder: str) -> None:
        self._board, self._folder = board, folder

    def put(self, name: str, content: bytes, *, executable: bool = False) -> None:
        path = shlex.quote(f"{self._folder}/{name}")
        then = f" && chmod 755 {path}" if executable else ""
        done = self._board.command(f"cat > {path}{then}", content)
        if done.code:
            raise DeviceFailed(
                f"{self._board.name}: {name} ({len(content)} bytes) can't be written to {self._folder}:"
                f" {done.stderr.strip()}"
            )

    def get(self, name: str) -> bytes:
        done = self._board.command(f"cat {shlex.quote(f'{self._folder}/{name}')}")
        if done.code:
            raise DeviceFailed(f"{self._board.name}: {name} can't be read: {done.stderr.strip()}")
        return done.stdout

    def execute(self, arguments: Sequence[str]) -> Finished:
        command, limit = shlex.join(arguments), math.ceil(self._board.timeout_s)
        # A program goes on when the connection ends, so that the board itself must end it.
        done = self._board.command(
            f"cd {shlex.quote(self._folder)} && if command -v timeout > /dev/null; then timeout {limit} {command};"
            f" else {command}; fi"
        )
        if done.code in _TIMED_OUT:
            raise DeviceFailed(f"{self._board.name}: {arguments[0]} ran longer than {limit} s")
        return done

    def close(self) -> None:
        try:
            done = self._board.command(f"rm -rf {shlex.quote(self._folder)}")
        except DeviceFailed:
            raise DeviceFailed(f"{self._folder} is left on the board") from None
        if done.code:
            raise DeviceFailed(f"{self._folder} is left on the board: {done.stderr.strip()}")
