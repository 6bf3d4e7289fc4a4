"""Rows as tokens, against TRL's KTOTrainer: token for token, for the chat templates that TRL knows and for texts.

The templates are the ones in TRL's package, the tokenizer a byte-level BPE with their markers.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from trl import KTOTrainer
from trl.data_utils import apply_chat_template

from ladle.models.chat import Encoded, encode_rows, set_template_date

MARKERS = ["</s>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
MARKERS += ["<|end_header_id|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
TEXTS = [
    f"Question: what is the weather in Paris {n}? Answer: it is sunny.\nuser assistant get_weather" for n in range(99)
]
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the weather?"}
ANSWER = {"role": "assistant", "content": "It is sunny."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]}
RESULT = {"role": "tool", "name": "get_weather", "content": "sunny"}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": {}}}]
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"prompt": [USER], "completion": [ANSWER]},
    "system": {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
    "history": {"prompt": [USER, ANSWER | {"reasoning_content": "old"}, USER], "completion": [ANSWER]},
    "reasoning": {"prompt": [USER], "completion": [ANSWER | {"reasoning_content": "I look."}]},
    "call": {"prompt": [SYSTEM, USER], "completion": [CALL], "tools": TOOLS},
    "result": {"prompt": [USER, CALL, RESULT], "completion": [ANSWER], "tools": TOOLS},
    "trajectory": {"prompt": [USER], "completion": [CALL, RESULT, ANSWER], "tools": TOOLS},
    "arguments": {"prompt": [USER], "completion": [ANSWER], "chat_template_kwargs": {"enable_thinking": False}},
}


def tokenizer_of(template: str | None = None, prefix: str = "") -> PreTrainedTokenizerFast:
    """Return a BPE that puts nothing before a text, or a blank as Llama 2 ("▁"), Metaspace or GPT-2 ("Ġ") do."""
    tokenizer = Tokenizer(models.BPE(unk_token="</s>", byte_fallback=prefix in ("▁", "metaspace")))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if prefix in ("▁", "metaspace"):
        alphabet = [*"▁\n:?.abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"]
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if prefix == "▁":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif prefix == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix == "Ġ")
        tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=MARKERS, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<|pad|>", bos_token="<|begin_of_text|>",
        chat_template=template, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def of_trl(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    dataset = Dataset.from_list([row | {"label": True}], on_mixed_types="use_json")
    trainer = SimpleNamespace(_tokenizer=tokenizer, calculate_KL=False)
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None)
    done = KTOTrainer._prepare_dataset(trainer, dataset, tokenizer, arguments, "any")[0]
    return done["prompt_ids"], done["completion_ids"]


def ours(row: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Encoded:
    (encoded,) = encode_rows([row], tokenizer)
    assert isinstance(encoded, Encoded), encoded
    return encoded


def template(name: str) -> str:
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3", "llama3_1", "glm4moe", "gptoss"])
def test_conversations_are_trls_tokens(name):
    tokenizer = tokenizer_of(template(name))
    set_template_date(tokenizer, "2026-01-31", "")
    for row in ROWS.values():
        encoded = ours(row, tokenizer)
        assert (encoded.prompt, encoded.completion) == of_trl(row, tokenizer)


def test_what_a_template_leaves_out_is_known():
    tokenizer = tokenizer_of(template("llama3"))
    found = {name: ours(row, tokenizer).left_out for name, row in ROWS.items()}
    assert found["plain"] == found["system"] == found["arguments"] == set()
    assert found["reasoning"] == {"reasoning_content"}
    assert found["call"] == {"tool_calls", "tools"}
    qwen = tokenizer_of(template("qwen3"))
    assert ours(ROWS["reasoning"], qwen).left_out == ours(ROWS["trajectory"], qwen).left_out == set()
    assert ours(ROWS["history"], qwen).left_out == {"reasoning_content"}  # of an earlier turn
    said = {"prompt": [USER], "completion": [{"role": "assistant", "content": "<think>\nI look.\n</think>\n\nSunny."}]}
    assert ours(said, qwen).left_out == set()
    tokenizer.chat_template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    assert ours(ROWS["system"], tokenizer).left_out == {"system's content"}


@pytest.mark.parametrize("name", ["qwen2_5", "llama3"])
def test_an_assistant_turn_at_the_end_of_the_prompt_is_continued(name):
    tokenizer = tokenizer_of(template(name))
    row = {
        "prompt": [USER, {"role": "assistant", "content": "It is"}],
        "completion": [{"role": "assistant", "content": " sunny."}],
    }
    encoded = ours(row, tokenizer)
    assert tokenizer.decode(encoded.prompt) == apply_chat_template(row, tokenizer)["prompt"]
    whole = tokenizer.apply_chat_template([USER, ANSWER], tokenize=False)
    assert tokenizer.decode(encoded.prompt + encoded.completion) == whole
    cut = ours(row | {"finish_reason": "length"}, tokenizer)
    assert tokenizer.decode(cut.prompt + cut.completion) == whole[: whole.index("sunny.") + 6]


PAIRS = [("Answer:\n", "0 apples"), ("Question: what?\nAnswer:", " it is sunny"), ("Answer: ", "sunny"), ("Ans", "wer"),
         ("Answer:", "\nsunny"), ("Question: what", "?"), ("Question: wh", "at is")]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "▁", "metaspace", "Ġ"])
def test_a_text_comes_back_whatever_a_tokenizer_puts_before_texts(prefix):
    tokenizer = tokenizer_of(prefix=prefix)
    for prompt, completion in PAIRS:
        encoded = ours({"prompt": prompt, "completion": completion}, tokenizer)
        assert encoded.completion[-1] == tokenizer.eos_token_id
        said = tokenizer.decode(encoded.prompt + encoded.completion[:-1])
        assert said.removeprefix(" " if prefix == "Ġ" else "") == prompt + completion
        of_theirs = of_trl({"prompt": prompt, "completion": completion}, tokenizer)
        if completion[0].isspace() or not of_theirs[0]:
            assert encoded.prompt == tokenizer(prompt)["input_ids"]  # as where a model completes it
        else:
            assert (encoded.prompt, encoded.completion) == of_theirs


def test_end_and_start_tokens_are_there_once():
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.post_processor = None
    eos = tokenizer.eos_token_id
    ends = ours({"prompt": "Question</s>", "completion": " it</s>"}, tokenizer)
    assert ends.prompt[-1] == eos
    assert ends.completion.count(eos) == 1
    assert (ends.prompt, ends.completion) == of_trl({"prompt": "Question</s>", "completion": " it</s>"}, tokenizer)
    cut = ours({"prompt": "Question", "completion": " it", "finish_reason": "length"}, tokenizer)
    assert eos not in cut.completion
    bos = tokenizer.bos_token_id
    special = [("<|begin_of_text|>", bos), ("</s>", eos)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|begin_of_text|> $A </s>", None, special)
    both = ours({"prompt": "Question", "completion": " it"}, tokenizer)
    assert both.prompt == [bos, *tokenizer("Question", add_special_tokens=False)["input_ids"]]
    assert ours({"prompt": "<|begin_of_text|>Question</s>", "completion": " it"}, tokenizer).prompt == [
        *both.prompt,
        eos,
    ]


def test_sampled_ids_are_kept_as_they_are():
    row = {"prompt": [USER], "completion": [ANSWER], "prompt_ids": [5, 6], "completion_ids": [7, 8]}
    encoded = ours(row, tokenizer_of())
    assert (encoded.prompt, encoded.completion) == ([5, 6], [7, 8])
