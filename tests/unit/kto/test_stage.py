"""What the kto stage leaves when it is killed after its training has ended, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import DatasetDict, load_from_disk

from ladle.errors import UserError
from ladle.kto import reference
from ladle.stages import kto
from ladle.training import run as run_module
from ladle.training.loop import Training
from tests.distributed.kto_job import make_config, make_inputs, run_reference


def test_a_training_that_ended_is_not_done_again(tmp_path, monkeypatch):
    inputs = make_inputs(tmp_path, "qwen3", 24)
    config = make_config(max_steps=2, save_steps=1)
    inputs["reference"] = [run_reference(config, inputs, tmp_path / "reference")]
    out = tmp_path / "out"
    out.mkdir()

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def train(*_: Any) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "leave_models_only", die)
        with pytest.raises(KeyboardInterrupt):
            kto.run(config, inputs, out)
    weights = (out / "model" / "model.safetensors").read_bytes()
    assert list(out.glob("checkpoints/*/optimizer.pt"))
    monkeypatch.setattr(Training, "run", train)
    result = kto.run(config, inputs, out)
    assert (result.counters["steps"], result.timings) == (2, {})
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    assert not list(out.glob("checkpoints/*/optimizer.pt"))


def test_one_label_is_refused_before_the_reference_pass(tmp_path, monkeypatch):
    inputs = make_inputs(tmp_path, "qwen3", 24)
    data = load_from_disk(inputs["preference"][0] / "preference")
    data["train"] = data["train"].filter(lambda row: row["label"])
    assert isinstance(data, DatasetDict)
    data.save_to_disk(tmp_path / "one-label" / "preference")
    inputs["preference"] = [tmp_path / "one-label"]

    def load(*_: Any) -> None:
        raise AssertionError("loaded the reference")

    with monkeypatch.context() as patch:
        patch.setattr(reference, "load_policy", load)
        with pytest.raises(UserError, match="every example is labelled True"):
            run_reference(make_config(max_steps=2), inputs, tmp_path / "refused")
    run_reference(make_config(max_steps=2, allow_single_label=True), inputs, tmp_path / "allowed")
