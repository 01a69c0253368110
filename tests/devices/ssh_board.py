"""A board behind real ssh that is none: OpenSSH's server on loopback, whose shell runs Arm programs under QEMU."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNPACKED = Path(__file__).parents[2] / ".venv" / "openssh"  # by scripts/test
SERVER = shutil.which("sshd", path=f"/usr/sbin:/usr/local/sbin:{_UNPACKED}/usr/sbin")

_CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08
"""

# What the board's shell does with each command. Faults are asked for by files in the board's folder.
_SHELL = r"""#!/bin/bash
cd "$(dirname "$0")"
export TMPDIR=$PWD/tmp PATH=$PWD/bin:$PATH
command=$SSH_ORIGINAL_COMMAND
echo "$command" >> log
case $command in *--time*)
  if [ -e drop-once ]; then rm drop-once; kill -9 $PPID; sleep 9; fi
  [ ! -e drop ] || { kill -9 $PPID; sleep 9; }
  [ ! -e slow ] || command=${command//.\/run/slow}
esac
[ ! -e full ] || ulimit -f 1
exec bash -c "${command//.\/run/qemu-aarch64 -cpu cortex-a72 .\/run}"
"""


@dataclass(frozen=True)
class FakeBoard:
    """Where the board is, and its folder."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """As a user would write it."""
        return f"ssh://board:{self.port}?folder={self.folder}/tmp&config={self.folder}/config"

    @property
    def left(self) -> list[Path]:
        """What programs left on it."""
        return list((self.folder / "tmp").iterdir())

    @property
    def log(self) -> str:
        """Commands that it was given."""
        return (self.folder / "log").read_text()


def _key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _write_files(folder: Path, port: int) -> None:
    for name in ("tmp", "bin"):
        (folder / name).mkdir()
    _write_script(folder / "shell", _SHELL)
    _write_script(folder / "bin" / "uname", '#!/bin/sh\n[ "$1" = -m ] && echo aarch64 || echo "Linux 6.1"\n')
    _write_script(
        folder / "bin" / "cat",
        f'#!/bin/sh\n[ "$1" = /proc/cpuinfo ] && exec /bin/cat {folder}/cpuinfo\nexec /bin/cat "$@"\n',
    )
    _write_script(folder / "bin" / "slow", "#!/bin/sh\nexec sleep 60\n")
    (folder / "cpuinfo").write_text(_CPUINFO)
    for name in ("host_key", "user_key"):
        _key(folder / name)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nAuthorizedKeysFile {folder}/authorized_keys\nForceCommand {folder}/shell\n"
    )
    (folder / "config").write_text(
        f"Host board\n  HostName 127.0.0.1\n  User {getpass.getuser()}\n  IdentityFile {folder}/user_key\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[FakeBoard]:
    """Serve a board from an empty folder."""
    assert SERVER is not None, "install openssh-server"
    port = _free_port()
    _write_files(folder, port)
    Path("/run/sshd").mkdir(exist_ok=True)  # where a server that is started by root locks itself in
    libraries = ":".join(str(path) for path in _UNPACKED.glob("usr/lib/*-linux-gnu*"))
    server = subprocess.Popen(
        [SERVER, "-D", "-e", "-f", str(folder / "sshd_config")],
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, server.stderr.read().decode() if server.stderr else ""
            time.sleep(0.1)
        yield FakeBoard(folder, port)
    finally:
        server.kill()
        server.wait()
