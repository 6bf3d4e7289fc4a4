"""What the probe finds of tiny models is what a plain forward pass of each document alone shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ladle.errors import UserError
from ladle.kto.loss import prepare_policy, switch_randomness_off
from ladle.models.before import small_copy
from ladle.models.probe import (
    can_share,
    find_routers,
    hidden_states,
    is_deterministic,
    probe,
    require_positions,
    require_text_decoder,
)
from ladle.training.balance import SequenceAuxLoss
from ladle.training.cross_entropy import loss_of_rows
from tests.tiny_models import SHAPES

SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1,
}  # fmt: skip
GPT = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "num_dense_layers": 1,
}  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    **SHAPES,
    "gpt2": GPT,
    "bloom": {"vocab_size": 320, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    "falcon": {name: value for name, value in SIZES.items() if name != "head_dim"},
    "opt": SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    **{name: SIZES for name in ("llama", "gemma3_text", "mamba", "phi", "olmo2")},
    **{
        name: SIZES | EXPERTS
        for name in (
            "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "jamba", "afmoe", "qwen3_next", "gpt_oss", "minimax",
            "ernie4_5_moe", "minimax_m2",
        )
    },
}  # fmt: skip


def make(model_type: str, **changes: Any) -> PreTrainedModel:
    """A model with weights large enough that a leak shows."""
    torch.manual_seed(0)
    fields = FIELDS.get(model_type, SIZES) | {"model_type": model_type} | changes
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.1)
    return model


LENGTHS = [23, 9, 31, 1]


def packed_rows(num_rows: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 320, (num_rows, sum(LENGTHS)), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(num_rows, -1)
    return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, -100)}


def nats_alone(model: PreTrainedModel, rows: dict[str, torch.Tensor]) -> float:
    """The mean loss of each document by itself, from transformers' plain forward."""
    losses = []
    for row in rows["input_ids"]:
        for ids in row.split(LENGTHS):
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            losses += F.cross_entropy(logits, ids[1:], reduction="none").tolist()
    return sum(losses) / len(losses)


MEET = ("opt", "falcon", "jamba", "afmoe", "gpt_oss", "minimax", "mamba", "bloom")
APART = (
    "llama", "qwen3", "deepseek_v3", "gpt2", "gemma3_text", "mixtral", "qwen3_moe", "olmo2", "ernie4_5_moe", "phi"
)  # fmt: skip


@pytest.mark.parametrize("model_type", [*MEET, *APART])
@torch.no_grad()
def test_the_loss_of_packed_rows_is_that_of_their_documents_alone(model_type):
    model, rows = make(model_type), packed_rows()
    traits = probe(model)
    assert (traits.why_apart is not None) == (model_type in MEET), traits
    loss_sum, count = loss_of_rows(model, traits, rows)
    assert abs(loss_sum.item() / count.item() - nats_alone(model, rows)) < 3e-6


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3", "afmoe", "opt"])
def test_packed_bins_under_short_windows_are_probed_too(model_type):
    """A mask that is made only where a window is shorter than the row is not there for the probe's own length."""
    windows = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}
    model = make(model_type, **({} if model_type == "opt" else windows))
    model.set_attn_implementation("document_sdpa")
    rows = packed_rows(1)
    inputs = [rows["input_ids"], rows["input_ids"].clone()]
    inputs[1][:, : LENGTHS[0]] = 7
    hidden = [
        model.get_decoder()(input_ids=ids, position_ids=rows["position_ids"], use_cache=False).last_hidden_state
        for ids in inputs
    ]
    hidden = [states[:, LENGTHS[0] :] for states in hidden]
    meet = not torch.allclose(hidden[0], hidden[1], atol=1e-4)
    assert (probe(model, 1).why_apart is not None) == meet


@pytest.mark.parametrize(
    "model_type", ["llama", "deepseek_v3", "phi", "gpt2", "qwen3", "gemma3_text", "bloom", "mamba"]
)
@torch.no_grad()
def test_the_beginning_of_a_row_is_shared_by_models_whose_documents_then_are_as_by_themselves(model_type):
    windows = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 0}
    model = make(model_type, **(windows if model_type == "qwen3" else {}))
    prepare_policy(model)
    can_be = model_type in ("llama", "deepseek_v3", "phi", "gpt2")
    assert can_share(model) == can_be
    if can_be:
        head, ends = torch.arange(5, 45), (torch.arange(50, 80), torch.arange(90, 110))
        positions = [torch.arange(40), *(torch.arange(40, 40 + len(end)) for end in ends)]
        row, places = torch.cat([head, *ends])[None], torch.cat(positions)[None]
        together = hidden_states(model, input_ids=row, position_ids=places, num_shared=40)[0, 40:].split([30, 20])
        for end, shared in zip(ends, together, strict=True):
            alone = hidden_states(model, input_ids=torch.cat([head, end])[None])[0, 40:]
            torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_what_is_no_causal_text_model_is_refused():
    with pytest.raises(UserError, match="BertLMHeadModel is not causal"):
        probe(make("bert"))
    for model_type, why in (("llama4_text", "no way to the hidden states"), ("modernbert-decoder", "no way")):
        with pytest.raises(UserError, match=why):
            require_text_decoder(make(model_type))
        with pytest.raises(UserError, match=why):
            small_copy(json.dumps(SIZES | {"model_type": model_type}))
    with pytest.raises(UserError, match="gemma3 takes more than text"):
        small_copy(json.dumps({"model_type": "gemma3"}))


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe", "olmoe", "qwen3_moe"])
def test_the_routers_loss_that_a_config_asks_for_is_added(model_type):
    model = make(model_type, output_router_logits=True, router_aux_loss_coef=0.5)
    ids = torch.randint(2, 320, (2, 24))
    expected = model(input_ids=ids, labels=ids, use_cache=False).loss
    traits = probe(model)
    assert traits.router_weight == 0.5
    loss_sum, count = loss_of_rows(model, traits, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss_sum / count, expected, rtol=1e-5, atol=0)
    with pytest.raises(UserError, match="KTO has none"):
        prepare_policy(model)


def test_a_routers_loss_that_nobody_computes_is_refused():
    with pytest.raises(UserError, match="LlamaForCausalLM computes none"):
        probe(make("llama", output_router_logits=True))


@pytest.mark.parametrize(
    ("model_type", "noise"),
    [
        ("gpt2", {"resid_pdrop": 0.3, "attn_pdrop": 0.3, "embd_pdrop": 0.3}),
        ("qwen3", {"attention_dropout": 0.3}),
        ("opt", {"dropout": 0.3, "attention_dropout": 0.3}),
        ("mixtral", {"router_jitter_noise": 0.3}),
    ],
)
def test_a_policy_has_neither_dropout_nor_router_noise(model_type, noise):
    model = make(model_type, **noise).train()
    assert not is_deterministic(model)
    switch_randomness_off(model)
    assert is_deterministic(model)


def test_dropout_that_gradient_checkpointing_needs_training_mode_for_is_refused():
    with pytest.raises(UserError, match="two equal passes of OPTForCausalLM differ"):
        prepare_policy(make("opt", dropout=0.3), checkpointing=True)
    model = make("qwen3", attention_dropout=0.3)
    prepare_policy(model, checkpointing=True)
    assert [module.training for module in model.modules()].count(True) >= 2


@pytest.mark.parametrize(
    ("model_type", "number"), [("deepseek_v3", 2), ("ernie4_5_moe", 1), ("minimax_m2", 2), ("mixtral", 0)]
)
def test_routers_are_known_by_what_they_decide(model_type, number):
    model = make(model_type).train()
    routers = find_routers(model)
    assert len(routers) == number
    loss = SequenceAuxLoss(routers, 1.0)
    loss.forget()
    model.get_decoder()(input_ids=torch.randint(2, 320, (2, 16)), use_cache=False)
    assert (float(loss.take(2)) >= 0.9 * number) if number else loss.take(2) == 0


def test_a_document_behind_learned_positions_is_refused(caplog):
    with pytest.raises(UserError, match="a document has 100 tokens and GPT2LMHeadModel positions for 64"):
        require_positions(make("gpt2", n_positions=64), 100)
    require_positions(make("gpt2", n_positions=64), 64)
    with caplog.at_level("WARNING", logger="ladle"):
        require_positions(make("llama", max_position_embeddings=64), 100)
    assert "was not trained for more" in caplog.text


LARGE = {
    "deepseek_v3": {"vocab_size": 129_280},
    "llama": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "gemma3_text": {"num_hidden_layers": 26},
    "gpt2": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "mixtral": {},
    "jamba": {},
    "opt": {"hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@pytest.mark.parametrize("model_type", LARGE)
def test_a_small_copy_of_a_large_model_does_what_it_does(model_type):
    model = small_copy(json.dumps(LARGE[model_type] | {"model_type": model_type}))
    assert model.num_parameters() < 1_000_000
    assert (probe(model).why_apart is not None) == (model_type in MEET)


def test_documents_that_change_how_the_others_positions_are_encoded_are_warned_of(caplog):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = make("llama", rope_parameters=rope, max_position_embeddings=32)
    require_positions(model, 32)
    assert "share its batch" not in caplog.text
    require_positions(model, 33)
    assert "a document of more than 32 tokens changes how positions are encoded in what" in caplog.text
