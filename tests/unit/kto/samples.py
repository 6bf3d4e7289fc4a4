"""Small preference data and its examples."""

from __future__ import annotations

from typing import Any

from ladle.kto.data import KtoExamples, tokenize_examples
from ladle.kto.pairs import KtoPlan
from tests.tiny_models import make_tokenizer

PAD_ID = 1


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Question: {i} plus {i * 3 % 7}?\nAnswer: ",
            "completion": f"{i}+{i * 3 % 7}={i + i * 3 % 7}." * (1 + i % 4),
            "label": i % 3 != 0,
        }
        for i in range(count)
    ]


def examples_of(count: int, max_length: int = 128) -> KtoExamples:
    return tokenize_examples(rows(count), make_tokenizer(), max_length)[0]


def few_shot_examples(count: int, worked: int = 3) -> KtoExamples:
    few_shot = "Question: 4 plus 5?\nAnswer: 4+5=9.\n\n" * worked
    some = [row | {"prompt": few_shot + row["prompt"]} for row in rows(count)]
    return tokenize_examples(some, make_tokenizer(), 256)[0]


def plan_of(examples: KtoExamples, epochs: int = 1, **settings: Any) -> KtoPlan:
    values = {"pairs_per_epoch": True, "kl_fraction": 1.0} | settings
    return KtoPlan(examples.prompt_of, epochs, 3, 5, **values)
