"""Ways to a file are tried in order, content is verified, and a failure leaves nothing half-written."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from armlet import digest
from armlet.data.sources import (
    DebianPackage,
    Source,
    SourceFile,
    Unavailable,
    Upstream,
    fetch_files,
    gunzip,
    problems,
    unchanged,
)
from armlet.errors import CorruptedFile, MissingDependency, UsageError
from armlet.progress import Silent

CONTENTS = {"first": b"one", "second": b"two" * 1000}


@dataclass
class Shelf:
    """A way that reads from a table, and remembers what it was asked."""

    contents: dict[str, bytes]
    what: str = "shelf"
    asked: list[str] = field(default_factory=list)

    def read(self, name: str, scratch: Path) -> bytes:
        self.asked.append(name)
        if name not in self.contents:
            raise Unavailable(f"{name} is not on the {self.what}")
        return self.contents[name]


def source(*ways) -> Source:
    files = tuple(SourceFile(name, digest.of_bytes(content)) for name, content in CONTENTS.items())
    return Source("things", "public domain", files, ways, "apt-get install things")


@pytest.fixture(autouse=True)
def no_local_folder(monkeypatch):
    monkeypatch.delenv("ARMLET_DATA_DIR", raising=False)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_fetched_once_and_then_kept(tmp_path):
    shelf = Shelf(CONTENTS)
    fetch_files(source(shelf), tmp_path / "new", Silent())
    fetch_files(source(shelf), tmp_path / "new", Silent())
    assert shelf.asked == ["first", "second"]
    assert {name: (tmp_path / "new" / name).read_bytes() for name in listing(tmp_path / "new")} == CONTENTS
    assert problems(source(shelf), tmp_path / "new") == []


def test_the_next_way_is_tried_when_one_does_not_work(tmp_path):
    half, whole = Shelf({"first": b"one"}, "half"), Shelf(CONTENTS, "whole")
    fetch_files(source(half, whole), tmp_path, Silent())
    assert whole.asked == ["second"]
    assert listing(tmp_path) == ["first", "second"]


def test_when_no_way_works_the_error_lists_each_with_its_reason(tmp_path):
    with pytest.raises(MissingDependency) as caught:
        fetch_files(source(Shelf({}, "attic"), Shelf({}, "cellar")), tmp_path, Silent())
    assert str(caught.value) == (
        "missing: data set things (tried local folder: ARMLET_DATA_DIR is not set; attic: first is not on the attic; "
        "cellar: first is not on the cellar), needed for training and evaluation; "
        "install with: apt-get install things"
    )
    assert listing(tmp_path) == []


def test_wrong_content_is_named_and_not_kept(tmp_path):
    with pytest.raises(CorruptedFile) as caught:
        fetch_files(source(Shelf({**CONTENTS, "second": b"twp"}), Shelf(CONTENTS)), tmp_path, Silent())
    assert caught.value.file == tmp_path / "second"
    assert digest.of_bytes(b"twp") in str(caught.value)
    assert "came from the shelf; nothing of it was kept" in str(caught.value)
    assert listing(tmp_path) == ["first"]


def test_a_place_that_can_hold_no_data_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UsageError, match=r"file/things: can't be used for data: Not a directory .ARMLET_CACHE"
    ):
        fetch_files(source(Shelf(CONTENTS)), tmp_path / "file" / "things", Silent())
    (tmp_path / "first").mkdir()
    with pytest.raises(UsageError, match="can't be used for data: Is a directory"):
        fetch_files(source(Shelf(CONTENTS)), tmp_path, Silent())


def test_a_file_that_was_damaged_after_the_fetch_is_named(tmp_path):
    fetch_files(source(Shelf(CONTENTS)), tmp_path, Silent())
    (tmp_path / "second").write_bytes(CONTENTS["second"][:-1])
    with pytest.raises(CorruptedFile, match="second"):
        fetch_files(source(Shelf(CONTENTS)), tmp_path, Silent())
    (tmp_path / "first").unlink()
    assert [(p.file.name, p.message[:12]) for p in problems(source(), tmp_path)] == [
        ("first", "no such file"),
        ("second", "is corrupted"),
    ]


def test_an_interrupted_fetch_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_files(source(Shelf(CONTENTS)), tmp_path, Silent())
    assert listing(tmp_path) == []


def test_what_a_killed_fetch_left_goes_with_the_next_one(tmp_path):
    folder = tmp_path / "things"
    code = (
        "import os, signal, sys, pathlib\n"
        "from armlet.data.sources import *\n"
        "class Killer:\n"
        "    what = 'killer'\n"
        "    def read(self, name, scratch):\n"
        "        (scratch / 'half').write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "from armlet.progress import Silent\n"
        "source = Source('things', '', (SourceFile('first', ''),), (Killer(),), '')\n"
        "fetch_files(source, pathlib.Path(sys.argv[1]), Silent())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name[:7] for path in folder.iterdir()] == [".fetch-"]
    fetch_files(source(Shelf(CONTENTS)), folder, Silent())
    assert listing(folder) == ["first", "second"]
    (folder / ".fetch-after-the-last-file").mkdir()
    fetch_files(source(Shelf({})), folder, Silent())
    assert listing(folder) == ["first", "second"]


def test_a_running_fetch_is_waited_for_and_its_files_are_used(tmp_path):
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Shelf):
        def read(self, name: str, scratch: Path) -> bytes:
            entered.set()
            assert go_on.wait(10)
            assert scratch.is_dir()
            return super().read(name, scratch)

    first = threading.Thread(target=fetch_files, args=(source(Slow(CONTENTS)), tmp_path / "things", Silent()))
    unused = Shelf(CONTENTS)
    second = threading.Thread(target=fetch_files, args=(source(unused), tmp_path / "things", Silent()))
    first.start()
    assert entered.wait(10)
    second.start()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert unused.asked == []
    assert listing(tmp_path / "things") == ["first", "second"]


def local_folder(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "local" / "things"
    folder.mkdir(parents=True)
    monkeypatch.setenv("ARMLET_DATA_DIR", str(folder.parent))
    return folder


def test_the_local_folder_wins_plain_or_packed(tmp_path, monkeypatch):
    folder, shelf = local_folder(tmp_path, monkeypatch), Shelf(CONTENTS)
    (folder / "first").write_bytes(CONTENTS["first"])
    (folder / "second.gz").write_bytes(gzip.compress(CONTENTS["second"]))
    fetch_files(source(shelf), tmp_path / "new", Silent())
    assert shelf.asked == []
    assert problems(source(), tmp_path / "new") == []


def test_a_local_folder_that_lacks_a_file_is_an_error_and_not_passed_over(tmp_path, monkeypatch):
    folder = local_folder(tmp_path, monkeypatch)
    (folder / "first").write_bytes(CONTENTS["first"])
    with pytest.raises(UsageError, match=f"{folder / 'second'}: no such file"):
        fetch_files(source(Shelf(CONTENTS)), tmp_path / "new", Silent())


def test_a_damaged_local_archive_is_named(tmp_path, monkeypatch):
    folder = local_folder(tmp_path, monkeypatch)
    (folder / "first.gz").write_bytes(gzip.compress(CONTENTS["first"])[:-9])
    with pytest.raises(UsageError, match=f"{folder / 'first.gz'}: is corrupted: not whole gzip data"):
        fetch_files(source(), tmp_path / "new", Silent())


def test_the_local_folder_itself_can_be_filled(tmp_path, monkeypatch):
    folder = local_folder(tmp_path, monkeypatch)
    fetch_files(source(Shelf(CONTENTS)), folder, Silent())
    assert problems(source(), folder) == []


def fake_program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_debian_package_is_downloaded_and_unpacked_without_root(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    fake_program(programs, "apt-get", 'test "$1 $2" = "download things" && echo archive > things_1.0_all.deb')
    fake_program(
        programs, "dpkg", 'test "$2" = things_1.0_all.deb && mkdir -p "$3/opt" && echo hello > "$3/opt/first"'
    )
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    way = DebianPackage("things", "opt/{name}", unchanged)
    assert way.read("first", tmp_path) == b"hello\n"
    with pytest.raises(Unavailable, match="it has no opt/second"):
        way.read("second", tmp_path)


def test_a_program_that_fails_or_is_missing_makes_the_way_unavailable(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    way = DebianPackage("things", "opt/{name}", gunzip)
    with pytest.raises(Unavailable, match="apt-get is not on this machine"):
        way.read("first", tmp_path)
    fake_program(tmp_path, "apt-get", "echo 'E: Unable to locate package things' >&2; exit 100")
    with pytest.raises(Unavailable, match="apt-get download things: E: Unable to locate package things"):
        way.read("first", tmp_path)


def test_a_download_is_decoded_and_its_failures_name_the_address(tmp_path):
    (tmp_path / "first.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "second.gz").write_bytes(b"<html>not found</html>")
    way = Upstream(f"{tmp_path.as_uri()}/{{name}}.gz", gunzip)
    assert way.read("first", tmp_path) == b"one"
    with pytest.raises(UsageError, match=r"second\.gz: is corrupted: not whole gzip data"):
        way.read("second", tmp_path)
    with pytest.raises(Unavailable, match=r"third\.gz: <urlopen error"):
        way.read("third", tmp_path)


def test_asking_for_digests_loads_neither_numpy_nor_torch():
    code = "import sys, armlet.data as d; d.digests('fashion-mnist'); print(set(sys.modules) & {'numpy'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
