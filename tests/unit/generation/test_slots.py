"""Which models the slots fit, and that the others are completed too: by `generate`, with the same random numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ladle.generation.request import Request
from ladle.generation.transformers_backend import TransformersGenerator, find_fault
from tests.tiny_models import make_model, make_tokenizer

SIZES = {
    **{"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "initializer_range": 0.1},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160},
    **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1},
}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    **{
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
IN_SLOTS = {
    "mistral": {"sliding_window": 16},
    "phimoe": EXPERTS | {"sliding_window": 16},  # a window that stands in the mask alone
    "gemma3_text": LAYERS | {"head_dim": 8, "sliding_window": 16},
    "llama4_text": EXPERTS | {"head_dim": 8, "intermediate_size_mlp": 64, "attention_chunk_size": 16},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.1},
}
ALONE = {
    "nemotron": ({"head_dim": 8}, "a mask or a cache of its own"),
    "stablelm": ({}, "a mask or a cache of its own"),
    "bloom": ({"n_head": 4}, "0 of its 2 layers attend through"),
    "gemma2": (LAYERS | {"head_dim": 8, "sliding_window": 16}, "caps scores"),
    "gpt_oss": (LAYERS | EXPERTS | {"head_dim": 8, "sliding_window": 16}, "sinks"),
    "qwen3_next": (LINEAR, "1 of its 2 layers attend through"),
}
PROMPTS = [[7], [5, 9], list(range(2, 42)), list(range(40, 2, -1)), list(range(90, 108))]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def _model(model_type: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES | fields)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _requests(**fields: Any) -> list[Request]:
    return [Request(str(n), ids, n, 1 if n == 1 else 24, **fields) for n, ids in enumerate(PROMPTS)]


def _tokens(generator: TransformersGenerator, requests: list[Request]) -> dict[str, list[int] | None]:
    return {sample.id: sample.token_ids for sample in generator.generate(requests)}


def _by_generate(model: Any, tokenizer: Any, requests: list[Request] | None = None) -> dict[str, list[int]]:
    found = {}
    for request in requests or _requests():
        row = model.generate(
            torch.tensor([request.prompt_ids]), do_sample=False, max_new_tokens=request.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=1,
        )  # fmt: skip
        found[request.id] = row[0, len(request.prompt_ids) :].tolist()
    return found


@pytest.mark.parametrize("model_type", IN_SLOTS)
def test_windows_and_chunks_of_any_architecture_hold_in_the_slots(model_type, tokenizer):
    model = _model(model_type, **IN_SLOTS[model_type])
    generator = TransformersGenerator(model, tokenizer, batch_size=3)
    assert generator.fault is None
    assert _tokens(generator, _requests(temperature=0)) == _by_generate(model, tokenizer)


@pytest.mark.parametrize("model_type", [*IN_SLOTS, "deepseek_v3", "qwen3"])
def test_what_the_prompts_of_a_task_begin_with_is_run_once(model_type, tokenizer):
    model = _model(model_type, **IN_SLOTS[model_type]) if model_type in IN_SLOTS else make_model(model_type)
    examples = {"one": list(range(20, 60)), "other": list(range(99, 60, -1)), "short": [7, 8, 9]}
    requests = [
        Request(f"{task}/{item}", [*shared, *range(100 + item, 104 + 2 * item)], item, 12, temperature=0)
        for task, shared in examples.items()
        for item in range(4)
    ]
    generator = TransformersGenerator(model, tokenizer, batch_size=5)
    lengths: list[int] = []
    model.get_decoder().register_forward_hook(
        lambda module, args, kwargs, output: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = _tokens(generator, requests)
    assert sorted(length for length in lengths if length > 12) == [39, 40]
    assert found == _by_generate(model, tokenizer, requests)


@pytest.mark.parametrize("model_type", ALONE)
def test_what_the_slots_do_not_fit_is_completed_one_by_one_and_said(model_type, tokenizer, caplog):
    fields, reason = ALONE[model_type]
    model = _model(model_type, **fields)
    generator = TransformersGenerator(model, tokenizer, batch_size=3)
    assert _tokens(generator, _requests(temperature=0)) == _by_generate(model, tokenizer)
    assert reason in caplog.text
    assert "5 completions one at a time" in caplog.text


def test_both_ways_draw_the_same_samples_and_stop_at_the_same_texts(tokenizer):
    model = make_model("qwen3")
    model.generation_config.repetition_penalty = 9.0  # neither way takes the model's own settings
    generator = TransformersGenerator(model, tokenizer)
    requests = _requests(temperature=0.9, top_p=0.9, top_k=40, stop=("e", "1", "An"))
    in_slots = {sample.id: sample for sample in generator.generate(requests)}
    generator.fault = "a test"
    assert {sample.id: sample for sample in generator.generate(requests)} == in_slots
    assert {sample.finish_reason for sample in in_slots.values()} >= {"stop"}
    assert model.generation_config.repetition_penalty == 9.0


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "longrope", "original_max_position_embeddings": 40}]
)
def test_rows_whose_positions_depend_on_the_batch_run_alone(rope, tokenizer, caplog):
    factors = {name: [1.0 + n for n in range(4)] for name in ("long_factor", "short_factor")}
    factors["short_factor"] = [1.0] * 4
    rope = {"rope_theta": 10000.0} | rope | (factors if rope["rope_type"] == "longrope" else {})
    model = _model("llama", max_position_embeddings=40, rope_parameters=rope)
    got = _tokens(TransformersGenerator(model, tokenizer), _requests(temperature=0))
    assert got == _by_generate(model, tokenizer)
    assert "makes 3 completions one at a time" in caplog.text
    assert "past 40 tokens" in caplog.text


def test_a_state_besides_keys_and_values_is_found_where_every_layer_attends(tokenizer):
    model = make_model("llama")
    assert find_fault(model) is None
    seen: list[torch.Tensor] = []

    def remember(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output + output.cumsum(dim=1) / 4  # sees earlier tokens of its own pass alone

    model.model.layers[0].mlp.register_forward_hook(remember)
    assert "off with nothing but keys and values" in (find_fault(model) or "")


def test_progress_counts_each_token_of_the_limits_once(tokenizer):
    generator = TransformersGenerator(make_model("qwen3"), tokenizer, batch_size=2)
    counts: list[int] = []
    generator.report = counts.append
    requests = _requests(temperature=1.0, stop=("e",))
    list(generator.generate(requests))
    assert sum(counts) == sum(request.max_new_tokens for request in requests)
    assert len(counts) > 10
