"""The memory estimate against real steps of tiny models, counted by the same counter, and against arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.kto.data import Bin
from ladle.kto.loss import use_kto_forward
from ladle.training.attention import use_fused_attention
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.memory import LiveBytes, TrainingShape, estimate_training
from tests.tiny_models import SHAPES

ROWS, LENGTH = 2, 96


def shape(name: str, **changes) -> TrainingShape:
    config = SHAPES[name] | {"vocab_size": 2_000}
    return replace(TrainingShape(config, "float32", ROWS, LENGTH), **changes)


def real_peak(wanted: TrainingShape) -> int:
    """Run two true steps and return the most bytes alive at once, weights aside."""
    torch.manual_seed(0)
    fields = dict(wanted.config)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model.train()
    if wanted.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 2_000, (ROWS, LENGTH))
    if wanted.loss == "kto":
        use_kto_forward(model)
        predicts = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)[:, :-1].flatten()
        one_bin = Bin(ids, None, predicts, ids[:, 1:].flatten(), [LENGTH - 1] * ROWS, list(range(ROWS)))

        def loss() -> torch.Tensor:
            return model(bin=one_bin, objective=lambda logp_b, _: torch.sigmoid(-logp_b))[0]
    else:
        use_linear_cross_entropy(model)
        use_fused_attention(model)
        positions = torch.arange(LENGTH // 2).repeat(ROWS, 2)  # two documents a row, so that there is a mask

        def loss() -> torch.Tensor:
            return model(input_ids=ids, position_ids=positions, labels=ids, num_items_in_batch=ids.numel()).loss

    with LiveBytes((*model.parameters(), *model.buffers())) as live:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return live.peak


@pytest.mark.parametrize("loss", ["cross_entropy", "kto"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "llama", "deepseek_v3"])
def test_tensors_without_data_take_what_real_ones_do(name, checkpointing, loss):
    """Within 2 %: a real router's experts get unequal shares, and masks do not choose every token."""
    wanted = shape(name, gradient_checkpointing=checkpointing, loss=loss)
    estimate = estimate_training(wanted)
    assert estimate.total - estimate.weights == pytest.approx(real_peak(wanted), rel=0.02)


@pytest.mark.parametrize("accumulates", [False, True])
def test_a_tied_head_and_a_second_microbatch_add_to_the_gradient_that_is_there(accumulates):
    """At a vocabulary beside which the rest is little: the peak holds two gradients of it, not three."""
    config = SHAPES["qwen3"] | {"vocab_size": 100_000}
    estimate = estimate_training(TrainingShape(config, "float32", 1, 8, optimizer="sgd", accumulates=accumulates))
    embedding = 4 * 100_000 * config["hidden_size"]
    gradients = 3 if accumulates else 2
    assert estimate.gradients + estimate.activations == pytest.approx(gradients * embedding, rel=0.4)


def test_weights_gradients_and_state_are_those_of_arithmetic():
    estimate = estimate_training(shape("llama"))
    assert estimate.weights == pytest.approx(4 * estimate.parameters, rel=1e-3)  # and a few buffers
    assert estimate.gradients == 4 * estimate.parameters
    assert estimate.optimizer == pytest.approx(8 * estimate.parameters, rel=1e-3)  # and a step count each


def test_adafactor_keeps_next_to_nothing_and_its_step_takes_float32_copies_of_the_largest_matrix():
    long = shape("llama", optimizer="adafactor", dtype="bfloat16", batch_size=1, sequence_length=2)
    long = replace(long, config=long.config | {"vocab_size": 200_000})
    estimate = estimate_training(long)
    largest = 4 * 200_000 * long.config["hidden_size"]
    assert estimate.optimizer < 0.05 * estimate.weights
    assert estimate.activations > 3 * largest  # the gradient, its square and the update, in float32


def test_accumulating_keeps_the_gradients_through_the_next_pass():
    once, more = estimate_training(shape("qwen3")), estimate_training(shape("qwen3", accumulates=True))
    assert once.total < more.total <= once.total + once.gradients


def test_an_adapter_has_gradients_and_state_of_its_own_weights_alone():
    pytest.importorskip("peft")
    whole = estimate_training(shape("llama", loss="kto"))
    adapter = estimate_training(shape("llama", loss="kto", adapter={"r": 2, "target_modules": "all-linear"}))
    assert adapter.gradients < 0.1 * whole.gradients
    assert adapter.optimizer == pytest.approx(2 * adapter.gradients, rel=0.01)


def test_zero2_splits_gradients_and_optimizer():
    alone = estimate_training(shape("llama", dtype="bfloat16"))
    split = estimate_training(shape("llama", dtype="bfloat16", distributed="zero2", processes=8))
    assert split.gradients == alone.gradients // 8
    assert split.optimizer == 12 * alone.parameters // 8  # float32 weights and two moments
