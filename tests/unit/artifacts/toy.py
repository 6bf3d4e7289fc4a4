"""A stage for tests, importable by the builder as `ladle.stages.toy` once `install` has run."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from ladle.artifacts.step import Step, StepOutput
from ladle.config import Config, execution
from ladle.stage import Stage, StageResult


class ToyConfig(Config):
    text: str = "x"
    workers: int = execution(1)


def install(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    module = types.ModuleType("ladle.stages.toy")

    def run(config: ToyConfig, inputs: dict[str, list[Path]], out: Path) -> StageResult:
        log.append(config.text)
        above = "".join((path / "sub" / "out.txt").read_text() for paths in inputs.values() for path in paths)
        (out / "sub").mkdir(exist_ok=True)
        (out / "sub" / "out.txt").write_text(above + config.text)
        (out / "log.txt").write_text(f"run {len(log)}")
        if config.text == "fails":
            raise OSError(28, "No space left on device")
        return StageResult({"letters": len(config.text)})

    monkeypatch.setattr(module, "STAGE", Stage("toy", run), raising=False)
    monkeypatch.setitem(sys.modules, "ladle.stages.toy", module)


def chain(*texts: str) -> list[Step]:
    """Steps that each read the one before."""
    steps: list[Step] = []
    for index, text in enumerate(texts):
        inputs = {"above": (StepOutput(steps[-1]),)} if steps else {}
        steps.append(
            Step(f"s{index}", "toy", ToyConfig(text=text), inputs, f"sections.s{index}", volatile=("log.txt",))
        )
    return steps
