"""`ladle kto` on models and data that do not fit: one clear message, exit code 2, before any training."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ladle import cli
from ladle.models.chat import CHATML
from tests.tiny_models import make_model, make_tokenizer

USER, ANSWER = {"role": "user", "content": "1 plus 1?"}, {"role": "assistant", "content": "2"}
TURNS = [{"prompt": [USER], "completion": [ANSWER], "label": label} for label in (True, False)]
TEXT = [{"prompt": "1 plus 1?", "completion": f" {number}", "label": number == 2} for number in (2, 3)]


def change_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut(folder: Path) -> None:
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:500])


def misname(folder: Path) -> None:
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"BPE"', '"XYZ"'))


def add_token(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)


LONG = [{"prompt": "plus " * 40, "completion": " 2", "label": False}]
CASES = {
    "a broken tokenizer.json": (cut, TEXT, {}, "tokenizer.json is not a tokenizer"),
    "a tokenizer of an unknown kind": (misname, TEXT, {}, "tokenizer.json is not a tokenizer"),
    "no eos_token": (change_config(eos_token=None), TEXT, {}, "has no eos_token"),
    "an eos_token that is not there": (change_config(eos_token="<gone>"), TEXT, {}, "'<gone>' .*its eos_token, which"),
    "a token past the embedding": (add_token, [*TEXT, TEXT[0] | {"prompt": "<new>"}], {}, "'<new>' .*an added token"),
    "a broken chat template": (change_config(chat_template="{% for m in"), TURNS, {}, "chat template is not one"),
    "a chat template with the date": (
        change_config(chat_template=CHATML + "{{ strftime_now('%d') }}"), TURNS, {}, "set kto.template_date",
    ),
    "every False row too long": (
        change_config(), [*TEXT[:1] * 2, *LONG], {"deduplicate": False}, "1 whose prompts do not fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "rows", "settings", "message"), CASES.values(), ids=CASES)
def test_what_does_not_fit_is_refused(change, rows, settings, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_model("llama", len(make_tokenizer())).save_pretrained("model")
    make_tokenizer().save_pretrained("model")
    change(Path("model"))
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"model": "model", "data": ["data.jsonl"], "max_length": 32, "trainer": {"max_steps": 1}, **settings}
    Path("recipe.yaml").write_text(json.dumps({"name": "r", "kto": section}))
    with pytest.raises(SystemExit) as outcome:
        cli.main(["kto", "--config", "recipe.yaml", "--out", "out"])
    ladle = logging.getLogger("ladle")
    ladle.handlers.clear()
    ladle.propagate = True
    ladle.setLevel(logging.NOTSET)
    assert outcome.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert re.search(message, said), said
    assert not Path("out/record.json").exists()
