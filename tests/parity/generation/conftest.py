"""Tiny models trained for a few seconds: their distributions are peaked and their logits of a real model's size."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny_models import SHAPES, make_model, make_tokenizer

STEPS = 150
ROWS = 32

# The widths that vLLM's CPU kernels are built for: heads of 64, and a latent of 512 + 64.
VLLM_SHAPES = {
    "qwen3_for_vllm": ("qwen3", {"head_dim": 64}),
    "deepseek_v3_for_vllm": ("deepseek_v3", {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32}),
}


def arithmetic_text(rng: random.Random) -> str:
    a, b = rng.randrange(20), rng.randrange(20)
    return f"Question: {a} plus {b}?\nAnswer: {a}+{b}={a + b}. The answer is \\boxed{{{a + b}}}."


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def trained(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedModel]:
    @cache
    def train(shape: str) -> PreTrainedModel:
        rng = random.Random(7)
        with pytest.MonkeyPatch.context() as patch:
            for name, (base, changed) in VLLM_SHAPES.items():
                patch.setitem(SHAPES, name, SHAPES[base] | changed)
            model = make_model(shape, vocab_size=len(tokenizer))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(STEPS):
            texts = [arithmetic_text(rng) + tokenizer.eos_token for _ in range(ROWS)]
            batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            model(**batch, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.eval()

    return train


@pytest.fixture(scope="session")
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Prompts of very different lengths: some start in the middle of an answer, some repeat worked examples."""
    rng = random.Random(11)
    texts = []
    for index in range(500):
        shown = "\n\n".join(arithmetic_text(rng) for _ in range(index % 3))
        text = shown + "\n\n" * bool(shown) + arithmetic_text(rng)
        texts.append(text[: len(shown) + rng.randrange(12, 40)])
    return [tokenizer.encode(text) for text in texts]
