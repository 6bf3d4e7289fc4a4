"""Prompts are pinned letter by letter: one changed space changes every published number."""

from __future__ import annotations

import json

import pytest
from tokenizers.processors import TemplateProcessing

from ladle.errors import UserError
from ladle.evaluation.benchmark import Item
from ladle.evaluation.config import ExamplesConfig
from ladle.evaluation.evaluate import load_examples, make_prompt
from tests.tiny_models import make_tokenizer

QUESTION = "What is $\\frac{1}{2}+{x}$?"
EXAMPLES = [Item(0, "1+1?", "1+1=2. So \\boxed{2}.")]


@pytest.fixture
def tokenizer():
    return make_tokenizer()


def test_cot(tokenizer):
    prompt = make_prompt("cot", QUESTION, tokenizer)
    assert prompt.text == "Question: What is $\\frac{1}{2}+{x}$?\nAnswer:"
    assert tokenizer.decode(prompt.ids) == prompt.text
    assert prompt.stop == ("\nQuestion:",)
    assert prompt.messages is None


def test_cot_with_examples(tokenizer):
    prompt = make_prompt("cot", QUESTION, tokenizer, EXAMPLES)
    assert prompt.text == (
        "Question: 1+1?\nAnswer: 1+1=2. So \\boxed{2}.\n\n\nQuestion: What is $\\frac{1}{2}+{x}$?\nAnswer:"
    )


def test_openseek_sft(tokenizer):
    assert make_prompt("openseek_sft", QUESTION, tokenizer).text == (
        "<|im_start|>system\n<|im_end|>\n"
        "<|im_start|>user\nPlease reason step by step, and put your final answer within \\boxed{}.\n"
        "Question:\nWhat is $\\frac{1}{2}+{x}$?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_qwen25_math_cot(tokenizer):
    prompt = make_prompt("qwen25-math-cot", QUESTION, tokenizer, EXAMPLES)
    assert prompt.text == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n1+1=2. So \\boxed{2}.<|im_end|>\n"
        "<|im_start|>user\nWhat is $\\frac{1}{2}+{x}$?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [turn["role"] for turn in prompt.messages or ()] == ["system", "user", "assistant", "user"]


def test_chat_renders_the_models_template(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert make_prompt("chat", "Why?", tokenizer, EXAMPLES).text == (
        "<user>1+1?<assistant>1+1=2. So \\boxed{2}.<user>Why?<assistant>"
    )


def test_a_system_prompt_is_a_turn_before_the_others(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    prompt = make_prompt("chat", "Why?", tokenizer, EXAMPLES, "Be brief.")
    assert prompt.text == "<system>Be brief.<user>1+1?<assistant>1+1=2. So \\boxed{2}.<user>Why?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        (
            {"tool_use": "{{ messages }}", "rag": "{{ messages }}"},
            r"multiple chat templates with no default",
        ),
        ("{{ raise_exception('roles must alternate') }}", "refuses .roles must alternate"),
    ],
)
def test_chat_without_a_template_for_it_is_refused_and_other_prompts_are_not(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"{message}.*use prompt=cot"):
        make_prompt("chat", "Why?", tokenizer)
    assert make_prompt("cot", "Why?", tokenizer).text == "Question: Why?\nAnswer:"
    if isinstance(template, str):
        with pytest.raises(UserError, match="leave system_prompt out, or use prompt=cot"):
            make_prompt("chat", "Why?", tokenizer, (), "Be brief.")


def test_an_end_token_that_a_template_writes_stays(tokenizer):
    tokenizer.chat_template = "{{ messages[0]['content'] }}" + tokenizer.eos_token
    assert make_prompt("chat", "Why?", tokenizer).ids[-1] == tokenizer.eos_token_id


def test_plain_text_gets_the_start_token_and_turns_do_not(tokenizer):
    bare = {style: make_prompt(style, "1?", tokenizer).ids for style in ("cot", "openseek_sft")}
    start, end = ("<|pad|>", tokenizer.pad_token_id), (tokenizer.eos_token, tokenizer.eos_token_id)
    closing = TemplateProcessing(single=f"{start[0]} $A {end[0]}", special_tokens=[start, end])
    tokenizer.backend_tokenizer.post_processor = closing
    assert tokenizer.encode("1?")[-1] == end[1]
    # and never an end token, which would end the prompt
    assert make_prompt("cot", "1?", tokenizer).ids == [start[1], *bare["cot"]]
    assert make_prompt("openseek_sft", "1?", tokenizer).ids == bare["openseek_sft"]


def test_examples_are_the_first_rows(tmp_path):
    rows = [{"question": f"{n}?", "worked": f"= {n}"} for n in range(3)]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ExamplesConfig(dataset="x", answer="worked", split="examples")
    examples = load_examples(config, [tmp_path], 2)
    assert [(one.question, one.gold) for one in examples] == [("0?", "= 0"), ("1?", "= 1")]
    assert load_examples(config, [], 0) == []
    with pytest.raises(UserError, match="there are 3 examples"):
        load_examples(config, [path], 4)
