from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ladle.artifacts import journal
from ladle.artifacts.journal import RowJournal, ShardJournal
from ladle.executors import ProcessExecutor

ITEMS = {f"item-{index}": index for index in range(6)}


def write_square(number: int, out: Path) -> None:
    with (out.parent.parent / "worked.txt").open("a") as log:
        log.write(f"{number}\n")
    out.write_text(str(number * number))


def worked(folder: Path) -> list[int]:
    log = folder.parent / "worked.txt"
    return sorted(map(int, log.read_text().split())) if log.is_file() else []


@pytest.mark.parametrize("executor", [ProcessExecutor(1), ProcessExecutor(2)])
def test_items_are_worked_once_and_returned_in_order(tmp_path, executor):
    shards = ShardJournal(tmp_path / "shards")
    paths = shards.run(ITEMS, write_square, executor)
    assert [path.read_text() for path in paths.values()] == ["0", "1", "4", "9", "16", "25"]
    shards.run(ITEMS, write_square, executor)
    assert worked(tmp_path / "shards") == list(range(6))


def test_damaged_missing_and_unacknowledged_items_are_worked_again(tmp_path):
    shards = ShardJournal(tmp_path / "shards")
    paths = shards.run(ITEMS, write_square, ProcessExecutor(1))
    paths["item-1"].write_text("damaged")
    paths["item-2"].unlink()
    (tmp_path / "shards" / "item-3.b3").unlink()
    assert shards.run(ITEMS, write_square, ProcessExecutor(1))["item-1"].read_text() == "1"
    assert worked(tmp_path / "shards") == sorted([*range(6), 1, 2, 3])


SLOW_RUN = """
import sys, time
from pathlib import Path
from ladle.artifacts.journal import RowJournal, ShardJournal
from ladle.executors import ProcessExecutor

def slow(number, out):
    with out.open("w") as file:
        for digit in str(number) * 200:
            file.write(digit); file.flush(); time.sleep(0.0002)

ShardJournal(Path(sys.argv[1])).run({f"item-{i}": i for i in range(20)}, slow, ProcessExecutor(1))
"""


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    folder = tmp_path / "shards"
    kills = 0
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(folder)])
        time.sleep(0.5 + 0.037 * attempt)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([sys.executable, "-c", SLOW_RUN, str(folder)], check=True)
    assert kills >= 1
    for index in range(20):
        assert (folder / f"item-{index}").read_text() == str(index) * 200


ROWS = [{"id": "a", "text": "ä\u2028\n"}, {"id": "b", "text": ""}, {"id": "c", "text": "x" * 50}]


def append(path: Path, *rows: dict[str, str]) -> None:
    with RowJournal(path).appending() as append_row:
        for row in rows:
            append_row(row)


@pytest.mark.parametrize("lost", range(1, 160, 13))
def test_a_row_that_a_crash_cut_short_is_left_out_and_can_be_appended_again(tmp_path, lost):
    path = tmp_path / "rows.jsonl"
    append(path, *ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    kept = list(RowJournal(path).rows())
    assert kept == ROWS[: len(kept)]
    assert len(kept) == whole[:-lost].count(b"\n") + (lost == 1)  # the last line may end without its line break
    append(path, *ROWS[len(kept) :])
    assert list(RowJournal(path).rows()) == ROWS


def test_a_damaged_row_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    append(path, *ROWS)
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"B"'))
    assert list(RowJournal(path).rows()) == [ROWS[0], ROWS[2]]


def test_a_journal_that_was_never_written_has_no_rows(tmp_path):
    assert list(RowJournal(tmp_path / "none").rows()) == []


def test_rows_are_on_disk_a_second_after_they_are_appended(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FLUSH_EVERY_SECONDS", 0)
    path = tmp_path / "rows.jsonl"
    with RowJournal(path).appending() as append_row:
        append_row(ROWS[0])
        assert list(RowJournal(path).rows()) == ROWS[:1]


def test_a_script_without_a_main_guard_hears_what_it_lacks(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("from ladle.executors import ProcessExecutor\nlist(ProcessExecutor(2).map(abs, [1, 2]))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "put its calls of Ladle under `if __name__ == '__main__':`" in done.stderr
