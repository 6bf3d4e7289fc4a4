"""What the kto stage leaves when it is killed after its training has ended, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import DatasetDict, load_from_disk
from pydantic import ValidationError
from transformers import TrainingArguments

from ladle.errors import UserError
from ladle.kto import reference
from ladle.kto.config import KtoConfig, KtoReferenceConfig
from ladle.kto.loss import use_kto_forward
from ladle.kto.pairs import make_plan
from ladle.stages import kto
from ladle.training import run as run_module
from ladle.training.loop import Training
from ladle.training.order import StepOrder
from ladle.training.parallel import World
from tests.distributed.kto_job import make_config, make_inputs, run_reference
from tests.tiny_models import make_model, make_tokenizer
from tests.unit.kto.samples import PAD_ID, few_shot_examples, plan_of


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


def test_a_reference_pass_killed_where_prompts_are_shared_resumes_where_they_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "TOKENS_PER_ITEM", 2048)
    apart, model = few_shot_examples(100), make_model("llama", len(make_tokenizer())).eval()
    use_kto_forward(model)
    world, plan = World(0, 1, torch.device("cpu")), plan_of(apart)
    passes, make_bin = reference.ReferencePass(model, True, PAD_ID, 1024), reference.make_bin
    whole = passes.run(apart, plan, tmp_path / "whole", world)

    def die_later(*arguments: Any) -> Any:
        if len(list((tmp_path / "killed").glob("0*.npy"))) == 2:
            raise KeyboardInterrupt
        return make_bin(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reference, "make_bin", die_later)
        with pytest.raises(KeyboardInterrupt):
            passes.run(apart.sharing(), plan, tmp_path / "killed", world)
    resumed = passes.run(apart, plan, tmp_path / "killed", world)
    np.testing.assert_allclose(resumed.logp_N, whole.logp_N, atol=1e-4)
    np.testing.assert_allclose(resumed.kl_logp_PN, whole.kl_logp_PN, atol=1e-4)


def test_the_reference_takes_the_rows_of_the_training_s_order_where_no_seed_of_data_is_set():
    trainer = {"per_device_train_batch_size": 4, "max_steps": 1, "data_seed": None}
    config = KtoReferenceConfig.of(KtoConfig.model_validate({"trainer": trainer}), 1)
    taken = StepOrder(10, 4, 1, TrainingArguments(report_to="none").seed, rows_are_shuffled=False).rows(1)
    assert sorted(make_plan(config, np.arange(10), is_training=True).used_rows(0)) == sorted(taken)


def test_rounds_left_out_are_refused_where_steps_count_the_epochs():
    with pytest.raises(ValidationError, match="sets max_steps and dataloader_drop_last"):
        KtoConfig.model_validate({"trainer": {"max_steps": 6, "dataloader_drop_last": True}})
