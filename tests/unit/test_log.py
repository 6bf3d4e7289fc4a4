from __future__ import annotations

import logging
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
