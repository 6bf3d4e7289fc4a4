"""Talking to a model: greedy answers are those of transformers' `generate`, and what is shown on the way adds up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ladle.conversation import Chat, certain
from ladle.errors import UserError
from ladle.generation.request import SamplingConfig
from ladle.models.chat import CHATML
from tests.tiny_models import make_model, make_tokenizer

TOKENS = 20
SYSTEM = "Be brief."
MESSAGES = ("2 plus 3?", "And 4 plus 4?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One model, with a chat template and without."""
    tokenizer, made = make_tokenizer(), {}
    model = make_model("qwen3", vocab_size=len(tokenizer))
    for name, template in (("chat", CHATML), ("base", None)):
        tokenizer.chat_template = template
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


def chatml(*turns: str) -> str:
    written = [f"<|im_start|>{('user', 'assistant')[n % 2]}\n{text}<|im_end|>\n" for n, text in enumerate(turns)]
    return "".join([*written, "<|im_start|>assistant\n"])


def cot(*turns: str) -> str:
    pairs = zip(turns[::2], [*turns[1::2], None], strict=True)
    return "\n\n\n".join(f"Question: {one}\nAnswer:" + ("" if other is None else f" {other}") for one, other in pairs)


def chatml_with_system(*turns: str) -> str:
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{chatml(*turns)}"


def plain(*turns: str) -> str:
    return turns[-1]


@pytest.mark.parametrize(
    ("kind", "style", "system", "written"),
    [
        ("chat", None, None, chatml),
        ("chat", None, SYSTEM, chatml_with_system),
        ("chat", "plain", None, plain),
        ("base", None, None, plain),
        ("base", "cot", None, cot),
    ],
)
@pytest.mark.parametrize("fits_slots", [True, False])
def test_greedy_answers_are_those_of_generate_and_are_shown_whole(folders, kind, style, system, written, fits_slots):
    folder = folders[kind]
    chat = Chat(folder, SamplingConfig(temperature=0, max_new_tokens=TOKENS), "float32", style, system)
    if not fits_slots:
        chat.generator.fault = "pretended"
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    turns: list[str] = []
    for message in MESSAGES:
        shown: list[str] = []
        sample = chat.answer(message, shown.append)
        prompt = torch.tensor([chat.tokenizer.encode(written(*turns, message), add_special_tokens=False)])
        settings = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": chat.generator.stop_ids}
        expected = reference.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **settings)
        assert sample.token_ids == expected[0, prompt.shape[1] :].tolist()
        assert "".join(shown) == sample.text
        assert len([part for part in shown if part]) > 3
        turns += [message, sample.text.strip()]
    chat.reset()
    assert chat.answer(MESSAGES[0]).text.strip() == turns[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("12", "12"),
        ("12\nQues", "12"),
        ("12\n", "12"),
        ("12\nQuality", "12\nQuality"),
        ("12\nQuestion: 4?", "12"),
        ("1\ufffd", "1"),
    ],
)
def test_only_what_stays_is_shown(text, shown):
    assert certain(text, ("\nQuestion:",)) == shown


def test_a_conversation_that_fills_the_model_and_a_system_prompt_without_turns_are_refused(folders):
    chat = Chat(folders["chat"], SamplingConfig(max_new_tokens=4), "float32", None, None)
    with pytest.raises(UserError, match="tokens, and the model takes 512"):
        chat.answer("1 plus 1? " * 300)
    with pytest.raises(UserError, match="plain prompt has no turns"):
        Chat(folders["base"], SamplingConfig(), "float32", None, SYSTEM)
