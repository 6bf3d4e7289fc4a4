"""Ladle's KTO step against TRL's on the same batch and pairs, and both against float64.

The losses are means of a few sums of float32 log-probabilities, whose rounding is about 1e-7 of their size: 1e-6 on a
loss of about 0.5. Gradients of two float32 computations of different order agree to about 1e-5 (relative L2); what
counts is that Ladle's are at most as far from a float64 computation as TRL's own.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from trl.trainer.kto_config import KTOConfig

from ladle.kto.config import KtoConfig
from ladle.kto.loss import kto_loss
from ladle.kto.task import KtoData
from ladle.training.loop import Training
from tests.parity.kto.trl_side import WEIGHTS, gradient_of, make_ladle, preference_rows, run_trl
from tests.tiny_models import make_model, make_tokenizer

ONE_STEP = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 1, "seed": 3}


def of_trl(trainer: Any) -> tuple[float, torch.Tensor]:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    loss.backward()
    return loss.item(), gradient_of(trainer.model)


def of_ladle(training: Training) -> tuple[float, torch.Tensor]:
    training.model.train()
    losses = [one_pass() for one_pass in training.task.passes(training, next(training.task.steps(training, 1)))]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), gradient_of(training.model)


def in_float64(
    policy: Any, reference: PreTrainedModel, data: KtoData, nll_weight: float = 0.0
) -> tuple[float, torch.Tensor]:
    """Return loss and gradient from full logits, one sequence at a time, all in float64."""
    for model in (policy.get_base_model() if hasattr(policy, "peft_config") else policy, reference):
        if model.config.model_type == "deepseek_v3":
            model.set_experts_implementation("eager")  # the grouped product has no float64
    policy, reference = policy.double(), reference.double()
    examples, partners = data.examples, data.plan.partners(0)

    def logps_of(model: Any, prompt: int, completion: int) -> torch.Tensor:
        prompt_ids, ids = examples.prompt(prompt), examples.completion(completion, prompt)
        tokens = torch.tensor([[*prompt_ids.tolist(), *ids.tolist()]])
        logp_NV = model(input_ids=tokens).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
        return logp_NV.gather(1, tokens[0, len(prompt_ids) :, None])

    def ratio(prompt: int, completion: int) -> torch.Tensor:
        own, theirs = (logps_of(model, prompt, completion).sum() for model in (policy, reference))
        return own - theirs.detach()

    rows = range(len(examples))
    with torch.no_grad():
        z0 = torch.stack([ratio(row, int(partners[row])) for row in rows]).mean().clamp(min=0)
    ratios = torch.stack([ratio(row, row) for row in rows])
    loss = kto_loss(ratios, torch.tensor(examples.is_desirable), z0, WEIGHTS).mean()
    if nll_weight:
        nlls = [-logps_of(policy, row, row).mean() for row in rows if examples.is_desirable[row]]
        loss = loss + nll_weight * torch.stack(nlls).mean()
    loss.backward()
    return loss.item(), gradient_of(policy)


def test_defaults_are_trls():
    theirs = {field.name: field.default for field in dataclasses.fields(KTOConfig)}
    ours = KtoConfig(trainer={"weight_decay": 0.1})  # type: ignore[arg-type]
    for name in ("beta", "desirable_weight", "undesirable_weight", "max_length", "loss_type"):
        assert getattr(ours, name) == theirs[name], name
    assert ours.trainer.get("learning_rate") == theirs["learning_rate"]
    assert ours.trainer.get("weight_decay") == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("all_true", [False, True], ids=["mixed", "single label"])
@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_loss_and_gradients_equal_trls_and_are_no_farther_from_float64(shape, all_true, peft, tmp_path: Path):
    rows = preference_rows(8, all_true)
    reference = make_model(shape, len(make_tokenizer()))
    ours = make_ladle(copy.deepcopy(reference), rows, tmp_path / "ladle", peft, **ONE_STEP)
    theirs = run_trl(copy.deepcopy(reference), rows, tmp_path / "trl", peft, gradient_checkpointing=False, **ONE_STEP)
    exact: Any = copy.deepcopy(ours.model)
    state = _moved_state(theirs.model)
    for model in (theirs.model, ours.model, exact):
        model.load_state_dict(state)
    their_loss, their_gradient = of_trl(theirs)
    our_loss, our_gradient = of_ladle(ours)
    true_loss, true_gradient = in_float64(exact.eval(), reference, ours.task.data)

    assert our_loss == pytest.approx(their_loss, abs=1e-6)
    assert our_loss == pytest.approx(true_loss, abs=1e-6)
    assert true_gradient.norm() > 1e-3
    our_error, their_error = (
        ((gradient - true_gradient).norm() / true_gradient.norm()).item() for gradient in (our_gradient, their_gradient)
    )
    assert our_error <= max(their_error, 1e-6)  # both are a few 1e-7, where one order of sums is as good as another
    assert our_error <= 1e-5


def test_the_nll_of_desirable_completions_equals_a_float64_computation(tmp_path: Path):
    """In a step of two microbatches, whose completions are repacked."""
    reference, rows = make_model("qwen3", len(make_tokenizer())), preference_rows(8)
    settings = ONE_STEP | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    policy = copy.deepcopy(reference)
    ours = make_ladle(policy, rows, tmp_path, False, "step", 128, nll_weight=0.5, **settings)
    ours.model.load_state_dict(_moved_state(ours.model))
    exact = copy.deepcopy(ours.model)
    loss, gradient = of_ladle(ours)
    expected, true_gradient = in_float64(exact.eval(), reference, ours.task.data, 0.5)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert (gradient - true_gradient).norm() / true_gradient.norm() < 1e-6


def _moved_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: value + 0.01 * torch.randn_like(value) if name in trained else value
        for name, value in model.state_dict().items()
    }
