"""The slot loop against `model.generate`: the same tokens under greedy, for every architecture it serves."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.generation.request import Request
from ladle.generation.transformers_backend import TransformersGenerator
from tests.tiny_models import SHAPES


def _greedy_one_by_one(model, prompt: list[int], max_new_tokens: int) -> list[int]:
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=1,
    )
    return output[0, len(prompt) :].tolist()


def _greedy_requests(prompts: list[list[int]]) -> list[Request]:
    return [
        Request(str(index), prompt, seed=index, max_new_tokens=5 + 7 * index % 40, temperature=0)
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 5, 32])
def test_greedy_tokens_are_those_of_generate(shape, batch_size, trained, tokenizer, prompts):
    model = trained(shape)
    requests = _greedy_requests(prompts[:40])
    expected = {r.id: _greedy_one_by_one(model, r.prompt_ids, r.max_new_tokens) for r in requests}
    generator = TransformersGenerator(model, tokenizer, batch_size=batch_size, prefill_tokens=100)
    assert {sample.id: sample.token_ids for sample in generator.generate(requests)} == expected


@pytest.mark.slow
def test_greedy_tokens_with_a_sliding_window(tokenizer, prompts):
    torch.manual_seed(0)
    fields = {
        **{"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 9, "max_position_embeddings": 512},
    }
    config = AutoConfig.for_model("mistral", bos_token_id=0, eos_token_id=0, pad_token_id=1, **fields)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    requests = _greedy_requests(prompts[:24])
    expected = {r.id: _greedy_one_by_one(model, r.prompt_ids, r.max_new_tokens) for r in requests}
    got = {s.id: s.token_ids for s in TransformersGenerator(model, tokenizer, batch_size=8).generate(requests)}
    assert got == expected


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["deepseek_v3", "qwen3"])
def test_500_times_64_sampled_tokens_do_not_depend_on_batch_or_order(shape, trained, tokenizer, prompts):
    model = trained(shape)
    requests = [
        Request(str(index), prompt, seed=index, max_new_tokens=64, temperature=1.0, top_p=(1.0, 0.9)[index % 2])
        for index, prompt in enumerate(prompts)
    ]
    model.generation_config.eos_token_id = None  # every sample runs to its 64 tokens
    eos = tokenizer.eos_token_id
    tokenizer.eos_token_id = None
    try:
        expected = _tokens(model, tokenizer, requests, batch_size=16)
        assert sum(map(len, expected.values())) == 500 * 64
        assert len({tuple(tokens) for tokens in expected.values()}) > 400  # it does sample
        shuffled = requests[::-1][250:] + requests[::-1][:250]
        for batch_size, order in ((1, requests[:100]), (4, requests), (16, shuffled), (64, shuffled)):
            got = _tokens(model, tokenizer, order, batch_size)
            assert {name: got[name] for name in got} == {name: expected[name] for name in got}
    finally:
        tokenizer.eos_token_id = eos
        model.generation_config.eos_token_id = eos


def _tokens(model, tokenizer, requests: list[Request], batch_size: int) -> dict[str, list[int]]:
    generator = TransformersGenerator(model, tokenizer, batch_size=batch_size)
    return {sample.id: sample.token_ids for sample in generator.generate(requests)}
