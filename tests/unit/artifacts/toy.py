"""A stage for tests, which `install` gives a log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ladle.artifacts.step import Step, StepOutput
from ladle.config import Config, execution
from ladle.log import get_logger
from ladle.stage import Inputs, Stage, StageResult


class ToyConfig(Config):
    text: str = "x"
    workers: int = execution(1)


_LOG: list[str] = []


def install(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    """Have the runs of the stage noted in `log`."""
    monkeypatch.setattr(sys.modules[__name__], "_LOG", log)


def run(config: ToyConfig, inputs: Inputs, out: Path) -> StageResult:
    _LOG.append(config.text)
    above = "".join((path / "sub" / "out.txt").read_text() for paths in inputs.values() for path in paths)
    (out / "sub").mkdir(exist_ok=True)
    (out / "sub" / "out.txt").write_text(above + config.text)
    (out / "log.txt").write_text(f"run {len(_LOG)}")
    if config.text == "fails":
        raise OSError(28, "No space left on device")
    if config.text == "warns":
        get_logger("ladle.toy").warning("94 of 100 prompts are too long")
    return StageResult({"letters": len(config.text)})


STAGE = Stage("toy", run, volatile=("log.txt",))


def chain(*texts: str) -> list[Step]:
    """Steps that each read the one before."""
    steps: list[Step] = []
    for index, text in enumerate(texts):
        inputs = {"above": (StepOutput(steps[-1]),)} if steps else {}
        steps.append(Step(f"s{index}", STAGE, ToyConfig(text=text), inputs, f"sections.s{index}"))
    return steps
