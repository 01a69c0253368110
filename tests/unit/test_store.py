import json
import os
import threading
import time

import pytest

from armlet.errors import CorruptedFile
from armlet.store import ENTRY_FILE, Store

KEY = "ab" + "0" * 62


def put(store: Store, text: str = "hello") -> None:
    with store.create(KEY, "train") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)


def test_a_finished_entry_is_found_with_its_files(tmp_path):
    store = Store(tmp_path)
    assert store.find(KEY) is None
    put(store)
    assert (store.find(KEY) / "part" / "a.txt").read_text() == "hello"
    assert store.has(KEY)


def test_an_interrupted_entry_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.create(KEY, "train") as folder:  # noqa: PT012
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert not store.has(KEY)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("damage", ["change", "remove", "listing"])
def test_a_damaged_entry_is_refused_and_the_file_is_named(tmp_path, damage):
    store = Store(tmp_path)
    put(store)
    victim = store.folder(KEY) / "part" / "a.txt"
    if damage == "change":
        victim.write_text("hellO")
    elif damage == "remove":
        victim.unlink()
    else:
        victim = store.folder(KEY) / ENTRY_FILE
        victim.write_text("{")
    with pytest.raises(CorruptedFile, match="is missing" if damage == "remove" else "is corrupted") as caught:
        store.find(KEY)
    assert caught.value.file == victim
    assert caught.value.exit_code == 2
    assert str(victim) in str(caught.value)


def test_an_entry_records_its_stage_and_key(tmp_path):
    store = Store(tmp_path)
    put(store)
    entry = json.loads((store.folder(KEY) / ENTRY_FILE).read_text())
    assert (entry["key"], entry["stage"], list(entry["files"])) == (KEY, "train", ["part/a.txt"])


def test_what_a_killed_run_left_is_removed_after_a_day_unless_its_step_still_runs(tmp_path):
    store = Store(tmp_path)
    keys = {name: digit * 64 for name, digit in (("dead", "c"), ("alive", "d"), ("fresh", "e"))}
    left = {}
    for name, key in keys.items():
        left[name] = store.folder(key).parent / f".{key}-abc123"
        (left[name] / "part").mkdir(parents=True)
        if name != "fresh":
            two_days_ago = time.time() - 2 * 24 * 3600
            os.utime(left[name], (two_days_ago, two_days_ago))
    with store.lock(keys["dead"]):
        pass  # its lock file stays
    with store.lock(keys["alive"]):
        put(store)
    assert {name for name, folder in left.items() if folder.exists()} == {"alive", "fresh"}


def test_a_lock_admits_one_at_a_time(tmp_path):
    store = Store(tmp_path)
    entered = threading.Event()

    def other() -> None:
        with store.lock(KEY):
            entered.set()

    thread = threading.Thread(target=other)
    with store.lock(KEY):
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    thread.join()


def test_work_outlives_an_interruption_until_it_is_cleared(tmp_path):
    store = Store(tmp_path)
    (store.work(KEY) / "epoch").write_text("3")
    assert (Store(tmp_path).work(KEY) / "epoch").read_text() == "3"
    store.clear_work(KEY)
    assert list(store.work(KEY).iterdir()) == []
