from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time

import pytest

from ladle import log


@pytest.mark.parametrize(("level", "is_shown"), [(logging.WARNING, False), (logging.ERROR, True)])
def test_what_deepspeed_prints_stays_out_of_a_commands_results(capsys, level, is_shown):
    deepspeed = logging.getLogger("DeepSpeed")
    printer = logging.StreamHandler(sys.stdout)  # as DeepSpeed sets it up when imported
    deepspeed.addHandler(printer)
    log.configure()
    deepspeed.log(level, "no GPU here")
    deepspeed.removeHandler(printer)
    said = capsys.readouterr()
    assert said.out == ""
    assert ("no GPU here" in said.err) == is_shown


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets, and a line of progress for each report."""
    now = [0.0]
    monkeypatch.setattr(log, "PLAIN_LINE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_progress_in_a_log_is_lines_with_count_rate_note_and_time_left(capsys, clock):
    log.configure()
    with log.progress(4000, "packing", "rows") as bar:
        for clock[0] in (10.0, 20.0):
            bar.advance(1000)
        bar.say("loss 1.5")
    first, second, *_, last = capsys.readouterr().err.splitlines()
    assert first.endswith("packing: 1,000/4,000 rows, 100.0/s")
    assert second.endswith("packing: 2,000/4,000 rows, 100.0/s, 20 s left")
    assert last.endswith("packing: 2,000/4,000 rows, 100.0/s, loss 1.5, 20 s left")


def test_the_time_left_follows_neither_the_first_finisher_nor_what_an_earlier_run_finished(capsys, clock):
    """400 samples of which the first ends after 44 s and then two a second, 243 s in all; and a resumed training."""
    log.configure()
    with log.progress(400, "sampling", "samples") as bar:
        for sample in range(400):
            clock[0] = 44.0 + sample / 2
            bar.advance(1)
    lines = capsys.readouterr().err.splitlines()[:400]
    left = [(number, int(line.split(", ")[-1].split()[0])) for number, line in enumerate(lines) if "s left" in line]
    assert left[0][0] == 20  # a twentieth of them first
    assert all(abs(seconds - (399 - number) / 2) <= 1 for number, seconds in left)
    with log.progress(1000, "training", "steps") as bar:
        bar.advance(900)
        for _ in range(6):
            clock[0] += 10.0
            bar.advance(1)
    assert capsys.readouterr().err.splitlines()[-1].endswith("training: 906/1,000 steps, 0.100/s, 940 s left")


def test_work_that_reports_nothing_shows_that_it_lives(capsys, monkeypatch):
    monkeypatch.setattr(log, "SILENT_AT_MOST_SECONDS", 0.05)
    log.configure()
    with log.progress(400, "sampling", "samples"):
        time.sleep(0.3)
    said = capsys.readouterr().err
    time.sleep(0.2)
    assert said.count("sampling: 0/400 samples, 0.000/s") >= 2
    assert capsys.readouterr().err == ""


def test_work_for_a_build_reports_to_a_file_that_is_gone_when_it_is_over(tmp_path, monkeypatch, clock):
    monkeypatch.setenv(log.REPORTS_TO, str(tmp_path / ".step"))
    monkeypatch.setenv(log.IS_SHOWN, "1")
    monkeypatch.setattr(log, "REPORT_EVERY_SECONDS", 0.0)
    with log.progress(40, "training", "steps") as bar:
        for clock[0] in (10.0, 20.0):
            bar.advance(10)
        bar.say("loss 1.500", [3.0, 2.0, 1.5])
        report = json.loads((tmp_path / f".step.{os.getpid()}.progress").read_text())
    line = "training: 20/40 steps, 1.0/s, loss 1.500, 20 s left"
    assert report == f"{'█' * 10}{'░' * 10} {line} █▃▁"
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_collected_once_each_and_still_shown(capsys):
    log.configure()
    with log.collected_warnings() as said:
        for _ in range(2):
            log.get_logger("ladle.data.mix").warning("%d of 100 prompts are too long", 94)
        log.get_logger("ladle.data.mix").info("reading")
    log.get_logger("ladle.data.mix").warning("later")
    assert said == ["94 of 100 prompts are too long"]
    assert capsys.readouterr().err.count("94 of 100 prompts are too long") == 2


def test_warnings_are_shown_where_nobody_configured_the_log(tmp_path):
    code = (
        "from ladle import log\n"
        "with log.collected_warnings():\n    log.get_logger('ladle.x').warning('50 of 50 completions were cut')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "50 of 50 completions were cut\n"
