"""The memory estimate against real steps of tiny models, counted by the same counter, and against arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.kto.config import KtoConfig
from ladle.kto.data import Bin
from ladle.kto.loss import use_kto_forward
from ladle.models.load import save_model
from ladle.training.adapter import add_adapter, load_start
from ladle.training.config import PretrainConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.memory import LiveBytes, MemoryEstimate, estimate_training
from tests.tiny_models import SHAPES, make_model, make_tokenizer

ROWS, LENGTH = 2, 96


def estimate(
    name: str, loss: str = "cross_entropy", rows: int = ROWS, model: dict[str, Any] | None = None, **changes: Any
) -> MemoryEstimate:
    """Return the estimate for a shape; arguments of `trainer` and keys of the section are both named by `changes`."""
    kind = KtoConfig if loss == "kto" else PretrainConfig
    section = {key: changes.pop(key) for key in list(changes) if key in kind.model_fields}
    config = kind.model_validate(section | {"trainer": {"per_device_train_batch_size": ROWS} | changes})
    return estimate_training(config, SHAPES[name] | {"vocab_size": 2_000} | (model or {}), LENGTH, rows)


def real_peak(name: str, checkpointing: bool, loss_name: str) -> int:
    """Run two true steps and return the most bytes alive at once, weights aside."""
    torch.manual_seed(0)
    fields = SHAPES[name] | {"vocab_size": 2_000}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, 2_000, (ROWS, LENGTH))
    if loss_name == "kto":
        use_kto_forward(model)
        predicts = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)[:, :-1].flatten()
        one_bin = Bin(ids, None, predicts, ids[:, 1:].flatten(), [LENGTH - 1] * ROWS)

        def loss() -> torch.Tensor:
            return model(bin=one_bin, objective=lambda logp_b, _: torch.sigmoid(-logp_b))[0]
    else:
        use_linear_cross_entropy(model)
        model.set_attn_implementation("packed_sdpa")
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
    found = estimate(name, loss, gradient_checkpointing=checkpointing)
    assert found.total - found.weights == pytest.approx(real_peak(name, checkpointing, loss), rel=0.02)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_tied_head_and_a_second_microbatch_add_to_the_gradient_that_is_there(accumulation):
    """At a vocabulary beside which the rest is little: the peak holds two gradients of it, not three."""
    large = {"vocab_size": 200_000}
    found = estimate("qwen3", model=large, rows=1, optim="sgd", per_device_train_batch_size=accumulation)
    embedding = 4 * 200_000 * SHAPES["qwen3"]["hidden_size"]
    gradients = 1 + accumulation
    assert found.gradients + found.activations == pytest.approx(gradients * embedding, rel=0.4)


def test_weights_gradients_and_state_are_those_of_arithmetic():
    found = estimate("llama")
    assert found.weights == pytest.approx(4 * found.parameters, rel=1e-3)  # and a few buffers
    assert found.gradients == 4 * found.parameters
    assert found.optimizer == pytest.approx(8 * found.parameters, rel=1e-3)  # and a step count each


def test_adafactor_keeps_next_to_nothing_and_its_step_takes_float32_copies_of_the_largest_matrix():
    pure = {"dtype": "bfloat16", "pure_bf16": True}
    found = estimate("llama", model={"vocab_size": 200_000}, rows=1, optim="adafactor", **pure)
    largest = 4 * 200_000 * SHAPES["llama"]["hidden_size"]
    assert found.optimizer < 0.05 * found.weights
    assert found.activations > 3 * largest  # the gradient, its square and the update, in float32


def test_accumulating_keeps_the_gradients_through_the_next_pass():
    once, more = estimate("qwen3"), estimate("qwen3", gradient_accumulation_steps=2)
    assert once.total < more.total <= once.total + once.gradients


def test_held_out_rows_count_where_the_model_computes_all_their_logits():
    """Eight rows to evaluate on, two to train on: their logits are the peak."""
    capped = {"model_type": "gemma2", "final_logit_softcapping": 5.0, "vocab_size": 20_000}
    once, more = (estimate("qwen3", model=capped, eval_strategy=when) for when in ("no", "steps"))
    assert more.total - more.optimizer - more.weights > 2 * 8 * LENGTH * 20_000 * 4 > once.activations


@pytest.mark.parametrize("loss", ["cross_entropy", "kto"])
def test_a_gpu_holds_more_logits_at_once(loss):
    """All tokens of this row, where a CPU takes 167 of them at a time, or for a long completion 335."""
    kind = KtoConfig if loss == "kto" else PretrainConfig
    model, length = SHAPES["llama"] | {"vocab_size": 200_000}, 512
    once, more = (
        estimate_training(kind.model_validate({}), model, length, 1, on_gpu=on_gpu) for on_gpu in (False, True)
    )
    most = (2**26 if loss == "kto" else 2**25) // 200_000
    assert more.total - once.total == pytest.approx((length - 1 - most) * 200_000 * 4, rel=0.02)


def test_an_adapter_has_gradients_and_state_of_its_own_weights_alone():
    pytest.importorskip("peft")
    whole, adapter = estimate("llama", "kto"), estimate("llama", "kto", peft={"r": 2})
    assert adapter.gradients < 0.1 * whole.gradients
    assert adapter.optimizer == pytest.approx(2 * adapter.gradients, rel=0.01)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized_weights_take_what_bitsandbytes_holds(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    sections = {"peft": {"r": 4}, "quantization": {bits: True}, "dtype": "bfloat16"}
    config = KtoConfig.model_validate(sections)
    tokenizer = make_tokenizer()
    save_model(make_model("llama_64", len(tokenizer)), tokenizer, tmp_path)
    start = load_start(tmp_path, config.quantization, config.weights_dtype, "sdpa", torch.device("cpu"))
    held = 0
    for weight in add_adapter(start, config, 0).parameters():
        held += weight.nbytes
        if (state := getattr(weight, "quant_state", None)) is not None:
            held += state.absmax.nbytes
    found = estimate("llama_64", "kto", model={"vocab_size": len(tokenizer)}, **sections)
    assert found.weights == pytest.approx(held, rel=0.01)


def test_offloaded_state_is_not_on_the_gpu():
    config = PretrainConfig.model_validate({"dtype": "bfloat16", "distributed": "fsdp", "offload_to_cpu": True})
    found = estimate_training(config, SHAPES["llama"] | {"vocab_size": 2_000}, LENGTH, ROWS, on_gpu=True)
    assert found.weights == found.gradients == found.optimizer == 0
    assert found.communication > 0


def test_zero2_splits_gradients_and_optimizer():
    alone = estimate("llama", dtype="bfloat16", pure_bf16=True)
    split = estimate("llama", dtype="bfloat16", distributed="zero2", processes=8)
    assert split.gradients == alone.gradients // 8
    assert split.optimizer == 12 * alone.parameters // 8  # float32 weights and two moments


LAYER_OF_OPENSEEK = 1280 * (10 * 192 + 512 + 64 + 10 * 128) + 512 * (10 * 256 + 1) + 2 * 1280  # attention, norms
LAYER_OF_OPENSEEK += 1280 * (64 + (64 + 2) * 3 * 896)  # router, experts and shared experts
LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
}  # fmt: skip


@pytest.mark.parametrize("name", ["llama 8B", "openseek"])
def test_fsdp2_among_eight_processes_holds_an_eighth_and_a_layer(name, repository):
    """The estimate runs FSDP2 itself in a group of pretended processes; its figures are those of arithmetic."""
    model, layer = LLAMA_8B, 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336 + 2)
    if name == "openseek":
        model = yaml.safe_load((repository / "recipes/openseek/init.yaml").read_text())["architecture"]
        model, layer = model | {"vocab_size": 151_851}, LAYER_OF_OPENSEEK
    trainer = {"per_device_train_batch_size": 1, "gradient_checkpointing": True}
    config = {"dtype": "bfloat16", "distributed": "fsdp", "processes": 8, "trainer": trainer}
    found = estimate_training(PretrainConfig.model_validate(config), model, 512, 1)
    share = 4 * found.parameters / 8
    assert found.weights == pytest.approx(share, rel=1e-4)  # a dimension that eight does not divide is padded
    assert found.gradients == pytest.approx(share, rel=1e-4)
    assert found.optimizer == pytest.approx(2 * share, rel=1e-4)
    assert found.communication == 2 * layer
    # beside it: the embedding and the head in bfloat16, whole
    outside = (1 if model.get("tie_word_embeddings") else 2) * model["vocab_size"] * model["hidden_size"]
    assert found.activations > 2 * outside
