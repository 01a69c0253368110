"""The content-addressed store: one folder per finished step, named by its cache key, checked by digests when read.

Layout below the root: `entries/<2>/<key>/` finished steps, each with `entry.json`; `work/<key>/` what a step keeps
to resume after an interruption; `locks/` one lock file per key; `failed/` reproducers.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armlet import digest
from armlet.errors import CorruptedFile, UsageError

ENTRY_FILE = "entry.json"
_DEAD_AFTER_S = 24 * 3600


def require_folder(folder: Path, what: str) -> None:
    """Make a folder if it is missing, before any work.

    Args:
        folder: to write into.
        what: it is, for the message.

    Raises:
        UsageError: it can't be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} ({what}) can't be a folder: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} ({what}) can't be written")


def cache_root() -> Path:
    """Return the folder for everything that can be made again: `$ARMLET_CACHE`, or the user's cache folder."""
    given = os.environ.get("ARMLET_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "armlet"


class Store:
    """Finished steps on disk.

    Args:
        root: folder of the store, made when first written to; `cache_root()` when None.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_root()).absolute()

    def folder(self, key: str) -> Path:
        """Return where the entry of `key` is or would be."""
        return self.root / "entries" / key[:2] / key

    def has(self, key: str) -> bool:
        """Say whether the step is finished, without checking its files."""
        return (self.folder(key) / ENTRY_FILE).is_file()

    def find(self, key: str) -> Path | None:
        """Return the folder of a finished step, every file checked against its digest; None if not finished.

        Raises:
            CorruptedFile: a file is missing or its content is not what was stored.
        """
        folder = self.folder(key)
        if not self.has(key):
            return None
        check_files(
            folder, folder / ENTRY_FILE, hint=f"rm -r {folder}, then run again: the step is done anew"
        )
        return folder

    @contextmanager
    def create(self, key: str, stage: str) -> Iterator[Path]:
        """Yield an empty folder that becomes the entry of `key` when the block ends well, else is removed."""
        target = self.folder(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._clear_dead()
        new = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=target.parent))
        new.chmod(0o755)
        try:
            yield new
            entry = {"key": key, "stage": stage, "files": digest.of_folder(new)}
            (new / ENTRY_FILE).write_text(json.dumps(entry, indent=1), encoding="utf-8")
            if (
                target.exists()
            ):  # an unfinished or foreign folder: what is being written is complete and checked
                shutil.rmtree(target)
            new.rename(target)
        finally:
            if new.exists():
                shutil.rmtree(new)

    def _clear_dead(self) -> None:
        """Remove what killed runs left: unfinished folders older than a day whose key nobody holds the lock of."""
        for folder in self.root.glob("entries/*/.*-*"):
            try:
                old = time.time() - folder.stat().st_mtime > _DEAD_AFTER_S
            except FileNotFoundError:  # another run has just finished or removed it
                continue
            if old and not self._is_locked(folder.name[1:].partition("-")[0]):
                shutil.rmtree(folder, ignore_errors=True)

    def _is_locked(self, key: str) -> bool:
        from filelock import FileLock, Timeout

        path = self.root / "locks" / f"{key}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the lock of `key`, so that two runs don't do the same step at once."""
        from filelock import FileLock

        path = self.root / "locks" / f"{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def work(self, key: str) -> Path:
        """Return the folder in which the step of `key` keeps what it needs to resume."""
        folder = self.root / "work" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clear_work(self, key: str) -> None:
        """Remove what a finished step kept for resuming."""
        shutil.rmtree(self.root / "work" / key, ignore_errors=True)


def check_files(folder: Path, listing: Path, hint: str) -> None:
    """Check the files of `folder` against the `files` table of the JSON file `listing`; `hint` says what mends it.

    Raises:
        CorruptedFile: the listing can't be read, or a file is missing or differs.
    """
    try:
        expected = dict[str, str](json.loads(listing.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptedFile(
            listing, "a readable listing", digest.of_file(listing) if listing.is_file() else "", hint
        ) from None
    for name, sha in expected.items():
        path = folder / name
        found = digest.of_file(path) if path.is_file() else ""
        if found != sha:
            raise CorruptedFile(path, sha, found, hint)
