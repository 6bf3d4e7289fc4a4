"""Tiny random models of the shapes that Ladle is used with, and a tokenizer for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ladle.models.tokenizer import train_tokenizer

DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "max_position_embeddings": 512,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
# bitsandbytes packs 64 weights of a row together
LLAMA_64 = LLAMA | {"intermediate_size": 128}
SHAPES = {"deepseek_v3": DEEPSEEK_V3, "qwen3": QWEN3, "llama": LLAMA, "llama_64": LLAMA_64}


def make_tokenizer() -> PreTrainedTokenizerFast:
    texts = [
        f"Question: {a} plus {b}?\nAnswer: {a}+{b}={a + b}. The answer is \\boxed{{{a + b}}}."
        for a in range(20)
        for b in range(20)
    ]
    return train_tokenizer(texts, 320)


def make_model(shape: str, vocab_size: int = 320, seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    fields = SHAPES[shape] | changes
    config = AutoConfig.for_model(
        fields.pop("model_type"), vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, pad_token_id=1, **fields
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
