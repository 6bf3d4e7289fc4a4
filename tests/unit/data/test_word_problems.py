from __future__ import annotations

import json
from pathlib import Path

import pytest

from ladle.data.config import WordProblemsConfig
from ladle.data.word_problems import HELD_OUT_PERCENT, assert_held_out, pool_of, write_word_problems
from ladle.errors import CheckFailed, UserError

SMALL = WordProblemsConfig(train=500, worksheets=50, prompts=50, validation=40, test=60)


def read(folder: Path) -> dict[str, list[dict]]:
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def test_every_solution_is_right(tmp_path):
    write_word_problems(SMALL, tmp_path)
    for row in read(tmp_path)["worked"]:
        first, rest = row["solution"].split("; ")
        second, conclusion = rest.split(". ", 1)
        for step in (first, second):
            left, right = step.split("=")
            assert eval(left, {"__builtins__": {}}) == int(right)
        assert second.startswith(first.split("=")[1])
        assert conclusion == f"The answer is \\boxed{{{row['answer']}}}."
        assert second.endswith(f"={row['answer']}")


def test_harder_problems_are_right_and_unlike_the_training_data(tmp_path):
    write_word_problems(SMALL, tmp_path / "plain")
    write_word_problems(SMALL.model_copy(update={"harder": 40}), tmp_path / "harder")
    splits = read(tmp_path / "harder")
    for path in (tmp_path / "plain").iterdir():
        assert path.read_bytes() == (tmp_path / "harder" / path.name).read_bytes(), "the others stay as they are"
    trained = {tuple(row["operands"]) for row in splits["worked"] + splits["prompts"]}
    for split, num_steps in (("other_wording", 2), ("larger_operands", 2), ("three_steps", 3)):
        assert len({row["question"] for row in splits[split]}) == 40
        for row in splits[split]:
            steps, _, conclusion = row["solution"].partition(". ")
            values = [step.split("=") for step in steps.split("; ")]
            assert len(values) == num_steps
            assert all(eval(left, {"__builtins__": {}}) == int(right) >= 0 for left, right in values)
            assert conclusion == f"The answer is \\boxed{{{values[-1][1]}}}."
            assert row["answer"] == values[-1][1]
            assert tuple(row["operands"][:3]) not in trained
    assert min(min(row["operands"]) for row in splits["larger_operands"]) > SMALL.largest_operand


def test_held_out_numbers_and_questions_are_in_no_training_split(tmp_path):
    write_word_problems(SMALL, tmp_path)
    splits = read(tmp_path)
    held_out = {tuple(row["operands"]) for split in HELD_OUT_PERCENT for row in splits[split]}
    trained = {tuple(row["operands"]) for row in splits["worked"] + splits["prompts"] + splits["examples"]}
    trained |= {tuple(operands) for row in splits["worksheets"] for operands in row["operands"]}
    assert held_out
    assert not held_out & trained
    text = "".join(row["text"] for split in ("worked", "worksheets", "prompts", "examples") for row in splits[split])
    assert not [row for split in HELD_OUT_PERCENT for row in splits[split] if row["question"] in text]


@pytest.mark.parametrize("leak", ["worked", "worksheets", "validation"])
def test_a_leak_is_caught(tmp_path, leak):
    write_word_problems(SMALL, tmp_path)
    splits = read(tmp_path)
    leaked = dict(splits["test"][0])
    splits[leak].append(leaked | {"operands": [leaked["operands"]]} if leak == "worksheets" else leaked)
    with pytest.raises(CheckFailed, match="held-out"):
        assert_held_out(splits)


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(tmp_path):
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_word_problems(SMALL.model_copy(update={"seed": seed}), folder)
    one, two, three = ([path.read_bytes() for path in sorted(folder.iterdir())] for folder in folders)
    assert one == two != three


def test_pools_have_about_their_shares():
    tuples = [(a, b, c) for a in range(2, 13) for b in range(2, 13) for c in range(2, 13)]
    pools = [pool_of(operands, 5) for operands in tuples]
    for pool, share in HELD_OUT_PERCENT.items():
        assert abs(pools.count(pool) / len(tuples) - share / 100) < 0.03


def test_too_few_operands_are_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="raise largest_operand"):
        write_word_problems(SMALL.model_copy(update={"largest_operand": 4, "test": 100_000}), tmp_path)
