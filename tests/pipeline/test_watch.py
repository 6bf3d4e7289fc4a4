"""What people see of a run and its parts: the live display, `watch`, Ctrl-C, what comes next, `chat` and `peek`."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import threading
import time
from functools import partial

import pytest

import ladle as api
from ladle import live
from ladle.errors import CheckFailed, UserError
from tests.pipeline.conftest import LADLE, Run, ladle

pytestmark = pytest.mark.xdist_group("pipeline")


def test_a_run_is_watched_live_and_ctrl_c_says_what_is_kept_and_the_command(tiny, tiny_run: Run, tmp_path):
    """A training too long to end, on a terminal: its table there, the same from outside, and Ctrl-C."""
    shutil.copytree(tiny_run.root, root := tmp_path / "runs")
    longer = ["pretrain.trainer.max_steps=100000", "pretrain.trainer.save_steps=5", "--root", str(root)]
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    command = [*LADLE, "run", str(tiny), *longer]
    run = subprocess.Popen(
        command,
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=end,
        env=environment,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    os.close(end)
    seen: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(terminal, 65536):
                seen.append(part)
        except OSError:  # the run has ended
            pass

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 120
    while not list(root.glob("tiny/pretrain/*.partial/checkpoints/checkpoint-*")) or b"loss" not in b"".join(seen):
        assert run.poll() is None, b"".join(seen).decode()
        assert time.monotonic() < deadline, b"".join(seen).decode()
        time.sleep(0.2)
    time.sleep(2)
    outside = ladle("watch", tiny, *longer, "--once")
    state = {row["step"]: row for row in json.loads(ladle("status", tiny, *longer, "--json").stdout)}
    run.send_signal(signal.SIGINT)
    try:
        assert run.wait(timeout=60) == 130
    finally:
        run.kill()
    reader.join()
    said = b"".join(seen).decode()
    assert state["pretrain"]["building"]["pid"] == run.pid
    assert "training: " in state["pretrain"]["progress"][0]
    past = json.loads((tiny_run.artifacts()["soup"] / "record.json").read_text())["timings"]["seconds"]
    assert state["soup"]["left_seconds"] == past
    assert "8 of 21 steps are done, a" in outside.stdout
    assert "running" in outside.stdout
    assert "█" in said
    assert "running" in said
    assert "8 of 21 steps are done and kept; pretrain resumes from checkpoint-" in said
    assert f"interrupted; to go on: ladle run {tiny} {' '.join(longer)}" in said
    assert "Traceback" not in said


def test_watching_ends_with_the_run_or_where_nobody_builds_it(tiny, tiny_run: Run, tmp_path, monkeypatch):
    done = ladle("watch", tiny, root=tiny_run.root)
    assert done.returncode == 0
    assert done.stderr.endswith("21 of 21 steps are done\n")
    monkeypatch.setattr(live, "IDLE", -1.0)
    with pytest.raises(CheckFailed, match="nobody builds this run any more, and 0 of 21 steps are done"):
        api.open(tiny, root=tmp_path).watch()


def test_what_a_run_proposes_to_do_next_works_as_printed(tiny_run: Run):
    commands = [line.split()[2:] for line in tiny_run.stdout.splitlines() if line.startswith("next: ")]
    assert [words[0] for words in commands] == ["chat", "compare", "verify"]
    for words in commands:
        done = subprocess.run([*LADLE, *words], input="What is 2 + 3?\n", capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_chat_answers_the_lines_of_a_pipe_and_two_models_side_by_side(tiny_run: Run):
    models = [str(tiny_run.artifacts()[name]) for name in ("base", "kto")]
    question = "Question: 2 + 3 = ?"
    (expected,), (again,) = (api.generate(model, [question], temperature=0, max_new_tokens=12) for model in models)
    command = [*LADLE, "chat", "--compare", *models, "--plain", "--max-new-tokens", "12"]
    done = subprocess.run(command, input=f"\n{question}\n/reset\n/quit\nnot asked\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (f"--- {model}\n{one[0].text}\n" for model, one in zip(models, (expected, again), strict=True))
    assert done.stdout == first + second


def test_peek_shows_rows_labelled_completions_and_exact_prompts(tiny, tiny_run: Run):
    def peek(step: str, **settings) -> list:
        return api.peek(f"{tiny}:{step}", root=tiny_run.root, **settings)

    assert [one.place for one in peek("pretrain")] == [one.place for one in peek("mix")]
    mixed = peek("mix", rows=1)
    assert sum(one.facts["tokens"] for one in mixed) + mixed[-1].facts["left of the row"] == 128
    rows = [json.loads(line) for line in (tiny_run.artifacts()["rollout"] / "train.jsonl").read_text().splitlines()]
    attempts = peek("rollout", rows=2)
    assert [[text for text, _ in one.runs] + [one.facts["label"]] for one in attempts] == [
        [row["prompt"], row["completion"], row["label"]] for row in rows[:2]
    ]
    assert [is_trained for _, is_trained in peek("kto", rows=1)[0].runs] == [False, True]
    (shot,) = peek("evaluate/base-few-shot", rows=1)
    assert shot.runs[0][0].count("Question: ") == 3
    assert shot.facts["stop texts"] == ["\nQuestion:"]
    assert (shot.facts["prompt"], shot.facts["extraction"]) == ("cot", "ladle")
    printed = ladle("peek", tiny, root=tiny_run.root)
    assert printed.returncode == 0, printed.stderr
    assert all(f"--- {step}: " in printed.stdout for step in ("base/mix", "mix", "prefer", "sft/data", "evaluate/kto"))
    nothing = ladle("peek", f"{tiny}:soup", root=tiny_run.root)
    assert nothing.returncode == 2
    assert "nothing to look at in soup" in nothing.stderr


def test_peek_shows_what_there_is_before_anything_is_built(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.csv").write_text("question,reply,thumb\n1 + 1?,2,1\n1 + 2?,4,0\n")
    (tmp_path / "r.yaml").write_text(
        "name: r\nbase: {model: model}\n"
        "kto:\n"
        "  data: [{dataset: chats.csv, format: thumbs, prompt: '{question}', completion: '{reply}', rating: thumb}]\n"
        "evaluate: {models: [base], benchmarks: [{name: mine, dataset: chats.csv, answer: reply}]}\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    labelled = api.peek("r.yaml:kto")
    assert [([text for text, _ in one.runs], one.facts["label"]) for one in labelled] == [
        (["1 + 1?", "2"], True),
        (["1 + 2?", "4"], False),
    ]
    with pytest.raises(UserError, match="base is not built"):
        api.peek("r.yaml:evaluate/base")
