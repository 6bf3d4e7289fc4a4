"""Arbitrary preference rows and source settings through `ladle prefer` and KTO's tokens: a result or a clear refusal.

LADLE_FUZZ_SECONDS sets how long each test looks (10); examples follow from the seed alone.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from hypothesis import strategies as st

from ladle import cli
from ladle.data.prefer import read_examples
from ladle.errors import UserError
from ladle.kto.data import tokenize_examples
from ladle.models.chat import CHATML
from tests.tiny_models import make_tokenizer
from tests.unit.data.test_fuzz_rows import look

texts = st.text(max_size=6) | st.sampled_from(
    ["Q: x", "Q: x 4", " ", "4<|endoftext|>", "<think>r</think>", "up", "1", "3"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2), max_leaves=6
)
roles = st.sampled_from(["user", "assistant", "assistant", "system", "tool", "human", "gpt"])
parts = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image"])}, optional={"text": scalars}), max_size=2
)
turns = st.fixed_dictionaries(
    {"role": roles | anything, "content": texts | scalars | parts},
    optional={"tool_calls": anything, "reasoning_content": scalars, "name": anything},
)
plain = st.builds(lambda role, content: {"role": role, "content": content}, roles, texts)
conversations = st.lists(plain, min_size=1, max_size=4) | st.lists(turns | anything, max_size=4)
values = texts | conversations | st.lists(texts | conversations, max_size=3) | anything
rows = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("prompt", "completion", "chosen", "rejected"), values),
        "messages": conversations | anything,
        "label": st.booleans() | st.lists(st.booleans(), max_size=2) | anything,
        **dict.fromkeys(("rating", "q", "tools", "chat_template_kwargs"), anything),
        **dict.fromkeys(("prompt_ids", "completion_ids"), st.lists(st.integers(-1, 400), max_size=4) | anything),
        "finish_reason": st.sampled_from(["length", "stop", "eos", None, 5]),
    },
)
text_rows = st.fixed_dictionaries({"prompt": texts, "completion": texts, "label": st.booleans()})
turn_rows = st.fixed_dictionaries(
    {"prompt": st.lists(plain, min_size=1, max_size=3), "completion": st.lists(plain, min_size=1, max_size=3)},
    optional={"tools": anything, "finish_reason": st.just("length")},
).map(lambda row: row | {"label": len(row["prompt"]) > 1})
sources = st.fixed_dictionaries(
    {"dataset": st.just("data.jsonl")},
    optional={
        "format": st.sampled_from(["unpaired", "paired", "messages", "template", "thumbs"]),
        **dict.fromkeys(("prompt", "completion"), st.sampled_from(["{q}", "{prompt}", "{q[0]}", "{", "{q:.2f}"])),
        **dict.fromkeys(("up", "down"), st.lists(texts, max_size=2)),
        **dict.fromkeys(("label", "keep_label", "conversational"), st.booleans()),
        "limit": st.integers(0, 3),
        "split": st.sampled_from(["train", "*"]),
    },
) | st.just({"dataset": "data.jsonl"})  # fmt: skip
options = st.fixed_dictionaries(
    {"max_bad_fraction": st.sampled_from([0.0, 1.0])},
    optional={"balance": st.sampled_from([True, "per_prompt"]), "cut_completions": st.just("keep")},
)


@pytest.fixture
def quiet_ladle():
    yield
    ladle = logging.getLogger("ladle")
    ladle.handlers.clear()
    ladle.setLevel(logging.NOTSET)
    ladle.propagate = True


@pytest.mark.usefixtures("quiet_ladle")
def test_preference_data_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    outcomes = Counter[object]()

    def check(data: list[Any], source: dict[str, Any], settings: dict[str, Any]) -> None:
        Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
        shutil.rmtree("out", ignore_errors=True)
        Path("recipe.yaml").write_text(
            json.dumps({"name": "p", "kto": {"model": "model", "data": [source], **settings}})
        )
        with pytest.raises(SystemExit) as outcome:
            cli.main(["prefer", "--config", "recipe.yaml", "--out", "out"])
        outcomes[outcome.value.code] += 1
        assert outcome.value.code in (0, 2)
        assert Path("out/preference").is_dir() == Path("out/record.json").is_file() == (outcome.value.code == 0)
        if outcome.value.code == 0:
            for split in load_from_disk("out/preference").values():
                for row in read_examples(split):
                    assert row["prompt"]
                    assert isinstance(row["label"], bool)

    many = st.lists(rows | anything, max_size=4) | st.lists(text_rows, max_size=3) | st.lists(turn_rows, max_size=3)
    look(check, data=many, source=sources, settings=options)
    assert min(outcomes[0], outcomes[2]) > 0


def test_tokens_are_made_or_refused():
    tokenizer = make_tokenizer()
    templates = [CHATML, "{{ raise_exception('no') }}", "{% if %}", "{{ messages[0].content + messages[1].content }}"]

    def check(data: list[dict[str, Any]], template: str, length: int) -> None:
        tokenizer.chat_template = template
        try:
            examples, counts = tokenize_examples(data, tokenizer, length, max_bad_fraction=1.0)
        except UserError:
            return
        bad = sum(count for name, count in counts.items() if name.startswith("bad"))
        assert counts["examples"] + counts["dropped_long_prompts"] + bad == len(data)
        for index in range(len(examples)):
            assert 0 < len(examples.prompt(index)) < length
            assert 0 < len(examples.completion(index, index)) <= length - len(examples.prompt(index))

    usable = turn_rows.map(lambda row: {name: value for name, value in row.items() if name != "tools"})
    filled = text_rows.filter(lambda row: row["prompt"] and row["completion"])
    data = st.lists(usable, min_size=2, max_size=5) | st.lists(filled, min_size=2, max_size=5)
    look(check, data=data, template=st.sampled_from(templates), length=st.integers(2, 40))
