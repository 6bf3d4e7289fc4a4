from __future__ import annotations

import logging
import re
import sys

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


def test_progress_in_a_log_is_lines_with_count_rate_note_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(log, "PLAIN_LINE_EVERY_SECONDS", 0.0)
    log.configure()
    with log.progress(4000, "packing", "rows") as bar:
        bar.advance(1000)
        bar.say("loss 1.5")
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.search(r"packing: 1,000/4,000 rows, [\d.,]+/s, \d+ s left$", first)
    assert re.search(r"packing: 1,000/4,000 rows, [\d.,]+/s, loss 1.5, \d+ s left$", last)
