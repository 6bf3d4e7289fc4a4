"""`ladle soup` and `ladle verify --recompute` from outside; members are read once, and still enter by content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from ladle.api import Run
from ladle.artifacts import inputs
from ladle.artifacts.build import Workspace, build
from ladle.artifacts.files import pretty_json
from ladle.artifacts.inputs import InputFinder
from ladle.artifacts.record import RECORD_NAME, describe_files, digest_of, read_record, seal
from ladle.artifacts.step import Step, StepOutput
from ladle.errors import UserError
from ladle.recipe import make_recipe
from ladle.soups import make
from ladle.soups.config import SoupConfig
from ladle.soups.make import recompute
from ladle.soups.members import open_members
from ladle.stages import soup as stage
from tests.unit.artifacts import toy

from .models import random_tensors, write_member

ROWS = 10_000
"""Makes a member larger than what is hashed at once."""


def soup_step(members: list[str], root: Path, out: Path | None = None) -> Step:
    """Return the step of `ladle soup`."""
    return Run(make_recipe({"soup": {"members": members}}, [], "soup"), root, "soup", out).steps["soup"]


def ladle(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ladle", *map(str, arguments)], capture_output=True, text=True)


def make_checkpoints(folder: Path, *steps: int, rows: int = 40) -> list[Path]:
    return [write_member(folder / f"checkpoint-{step}", random_tensors(step, rows=rows)) for step in steps]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are hashed by a read of their own."""
    names: list[str] = []
    hash_file = inputs.hash_file

    def note(path: Path) -> str:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(inputs, "hash_file", note)
    return names


def test_members_are_hashed_while_they_are_averaged_and_never_again(tmp_path: Path, hashed: list[str]) -> None:
    members = [str(path) for path in make_checkpoints(tmp_path / "run", 1, 2, 3, rows=ROWS)]
    out, root = tmp_path / "out", tmp_path / "root"
    step = soup_step(members, root, out)
    build(step, Workspace(tmp_path / "runs", (("soup", out),)))
    assert "model.safetensors" not in hashed
    record = read_record(out)
    found = {entry["path"]: entry["blake3"] for item in record["inputs"]["members"] for entry in item["files"]}
    assert found == {path: blake3(Path(path).read_bytes()).hexdigest() for path in found}
    assert len([path for path in found if path.endswith("model.safetensors")]) == 3
    again = soup_step(members, root, out)  # what stands there is compared by content, which is known by now
    assert again.fingerprint == record["fingerprint"] != step.fingerprint
    assert soup_step(members, tmp_path / "other root").fingerprint == record["fingerprint"]
    assert "model.safetensors" in hashed  # by the last line, which knew nothing


def test_unread_files_are_recognised_by_size_and_time(tmp_path: Path) -> None:
    (member,) = make_checkpoints(tmp_path, 1, rows=ROWS)
    finder = InputFinder(tmp_path)
    unread = finder.local((member,), unread=True)
    assert "unread" in unread.identity()
    os.utime(member / "model.safetensors", ns=(1, 1))
    assert finder.local((member,), unread=True).identity() != unread.identity()
    with pytest.raises(UserError, match=r"model\.safetensors is not what it was when this step was planned"):
        unread.settle({})


def test_small_or_known_files_are_described_by_content_at_once(tmp_path: Path) -> None:
    small, large = *make_checkpoints(tmp_path, 1), *make_checkpoints(tmp_path, 2, rows=ROWS)
    finder = InputFinder(tmp_path)
    assert finder.local((small,), unread=True) == finder.local((small,))
    known = finder.local((large,))
    assert InputFinder(tmp_path).local((large,), unread=True) == known


def test_the_state_of_a_training_is_no_part_of_a_member(tmp_path: Path) -> None:
    (member,) = make_checkpoints(tmp_path, 1)
    plain = soup_step([str(member)], tmp_path / "root").fingerprint
    for name in ("optimizer.pt", "rng_state_0.pth", "scheduler.pt", "trainer_state.json"):
        (member / name).write_text("state")
    assert soup_step([str(member)], tmp_path / "root").fingerprint == plain
    (member / "added_tokens.json").write_text("{}")
    assert soup_step([str(member)], tmp_path / "root").fingerprint != plain


def _flip(path: Path) -> None:
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_member_that_changed_between_plan_and_read_is_refused(tmp_path: Path) -> None:
    member, other = make_checkpoints(tmp_path, 1, 2)
    inputs = tuple(InputFinder(tmp_path).local((path,)) for path in (member, other))
    _flip(member / "model.safetensors")
    with pytest.raises(UserError, match=r"checkpoint-1/model\.safetensors is not what it was"):
        build(
            Step("soup", stage.STAGE, SoupConfig(allow_unequal=True), {"members": inputs}), Workspace(tmp_path / "runs")
        )


def test_a_member_that_is_not_what_its_step_made_is_refused(tmp_path: Path) -> None:
    workspace, finder = Workspace(tmp_path / "runs"), InputFinder(tmp_path)
    inputs = {"members": tuple(finder.local((path,)) for path in make_checkpoints(tmp_path, 1, 2))}
    parent = Step("first", stage.STAGE, SoupConfig(), inputs)
    _flip(build(parent, workspace) / "model.safetensors")
    with pytest.raises(UserError, match=r"first-\w+/model\.safetensors is not what it was"):
        build(Step("second", stage.STAGE, SoupConfig(), {"members": (StepOutput(parent),)}), workspace)


def test_a_killed_soup_of_unread_members_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [str(path) for path in make_checkpoints(tmp_path / "run", 1, 2, rows=ROWS)]
    out = tmp_path / "out"
    workspace = Workspace(tmp_path / "runs", (("soup", out),))

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make, "write_side_files", stop)
        with pytest.raises(KeyboardInterrupt):
            build(soup_step(members, tmp_path / "root", out), workspace)
    (partial,) = tmp_path.glob("out-*.partial")
    (written,) = partial.rglob("*.safetensors")
    inode = written.stat().st_ino
    build(soup_step(members, tmp_path / "root", out), workspace)
    assert not list(tmp_path.glob("*.partial"))
    assert (out / "model.safetensors").stat().st_ino == inode


def _spoil(out: Path) -> None:
    """Change a tensor and seal the record anew, as one who hides it would."""
    _flip(out / "model.safetensors")
    record, files = read_record(out), describe_files(out)
    changed = record | {"files": files, "digest": digest_of(files, tuple(record["volatile"]))}
    (out / RECORD_NAME).write_text(pretty_json(seal(changed)))


@pytest.mark.parametrize("spell", [lambda run: [run], lambda run: [run / "*"]], ids=["folder", "glob"])
def test_the_command_averages_and_recompute_sees_what_hashes_cannot(
    tmp_path: Path, spell: Callable[[Path], list[Path]]
) -> None:
    make_checkpoints(tmp_path / "run", 200, 1000, 50)
    out, root = tmp_path / "out", ("--root", tmp_path / "root")
    done = ladle("soup", *spell(tmp_path / "run"), "--out", out, "method=last_n", "last=2", *root)
    assert done.returncode == 0, done.stderr
    assert "soup: 0 checkpoint-50, 1/2 checkpoint-200, 1/2 checkpoint-1000 (last_n)" in done.stderr
    assert "5 tensors averaged, 1 equal in all members, 0 copied from the first, 0 left out" in done.stderr
    assert ladle("verify", out, "--recompute").stdout.endswith("every tensor is the mean of the members\n")
    _spoil(out)
    assert ladle("verify", out).returncode == 0
    found = ladle("verify", out, "--recompute", "--json")
    assert (found.returncode, json.loads(found.stdout)["faults"]) == (
        1,
        [f"not the mean of the members: position_ids in {out}"],
    )


def test_recompute_finds_members_among_the_outputs_of_another_step(tmp_path: Path) -> None:
    workspace, finder = Workspace(tmp_path / "runs"), InputFinder(tmp_path)
    inputs = {"members": tuple(finder.local((path,)) for path in make_checkpoints(tmp_path, 1, 2))}
    parent = Step("first", stage.STAGE, SoupConfig(), inputs)
    build(parent, workspace)
    out = build(Step("second", stage.STAGE, SoupConfig(), {"members": (StepOutput(parent),)}), workspace)
    assert ladle("verify", out, "--recompute").returncode == 0
    _flip(out / "model.safetensors")
    found = ladle("verify", out, "--recompute")
    assert found.stdout.splitlines() == [
        f"changed: {out / 'model.safetensors'}",
        f"not the mean of the members: position_ids in {out}",
    ]


def test_recompute_is_for_soups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install(monkeypatch, [])
    out = build(toy.chain("a")[0], Workspace(tmp_path / "runs"))
    found = ladle("verify", out, "--recompute")
    assert (found.returncode, "is not a soup" in found.stderr) == (2, True)


def test_flags_stand_for_their_settings(tmp_path: Path) -> None:
    first, second = make_checkpoints(tmp_path, 1, 2)
    shutil.rmtree(second)
    write_member(second, {name: value for name, value in random_tensors(2).items() if name != "head"})
    root = ("--root", tmp_path / "root")
    refused = ladle("soup", first, second, "--out", tmp_path / "out", *root)
    assert (refused.returncode, "lacks 1 tensors (head)" in refused.stderr) == (2, True)
    accepted = ladle("soup", first, second, "--allow-missing", "--out", tmp_path / "out", *root)
    assert "allow_missing accepts 1 differences: checkpoint-2 lacks 1 tensors (head)" in accepted.stderr
    assert "1 copied from the first" in accepted.stderr
    assert ladle("soup", first, second, "--no-base", "--out", tmp_path / "x", *root).returncode == 2
    assert ladle("soup", first, "members=[base]", "--out", tmp_path / "x", *root).returncode == 2
    assert ladle("soup", first, "--config", "recipes/tiny.yaml").returncode == 2


def test_checkpoints_out_of_order_are_refused_where_order_matters(tmp_path: Path) -> None:
    late, early = make_checkpoints(tmp_path / "run", 1000, 200)  # as a shell's * has them
    out = tmp_path / "out"
    out.mkdir()
    stage.run(SoupConfig(), {"members": [late, early]}, out)
    last = {"method": "last_n", "last": 1}
    with pytest.raises(UserError, match="checkpoint-200 comes after checkpoint-1000"):
        stage.run(SoupConfig.model_validate(last), {"members": [late, early]}, out)
    stage.run(SoupConfig.model_validate(last | {"allow_order": True}), {"members": [late, early]}, out)
    info = json.loads((out / "merge_info.json").read_text())
    assert info["waived"] == {"allow_order": {"count": 1, "first": ["checkpoint-200 comes after checkpoint-1000"]}}
    assert recompute(out, [late, early]) == []
    (other,) = make_checkpoints(tmp_path / "other run", 100)
    stage.run(SoupConfig.model_validate(last), {"members": [early, late, other]}, out)


TIED = {"tie_word_embeddings": True}


def _with_head(tensors: dict[str, tuple[str, np.ndarray]], repeat: bool) -> dict[str, tuple[str, np.ndarray]]:
    dtype, embeddings = tensors["embed_tokens.weight"]
    return tensors | {"lm_head.weight": (dtype, embeddings if repeat else embeddings ^ 1)}


def _embedding(seed: int) -> dict[str, tuple[str, np.ndarray]]:
    tensors = random_tensors(seed)
    return {"embed_tokens.weight": tensors.pop("embed.weight")} | tensors


def test_output_embeddings_that_repeat_tied_ones_are_left_out(tmp_path: Path) -> None:
    plain = [write_member(tmp_path / f"plain{seed}", _embedding(seed), TIED) for seed in range(3)]
    repeating = write_member(tmp_path / "repeating", _with_head(_embedding(0), repeat=True), TIED)
    for name in ("expected", "out", "reversed"):
        (tmp_path / name).mkdir()
    stage.run(SoupConfig(), {"members": plain}, tmp_path / "expected")
    stage.run(SoupConfig(), {"members": [repeating, *plain[1:]]}, tmp_path / "out")
    stage.run(SoupConfig(), {"members": [*plain[1:], repeating]}, tmp_path / "reversed")
    expected = (tmp_path / "expected" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected
    assert (tmp_path / "reversed" / "model.safetensors").read_bytes() == expected
    info = json.loads((tmp_path / "out" / "merge_info.json").read_text())
    assert info["tensors"]["aliases"] == ["lm_head.weight"]
    assert info["members"][0]["files"]["model.safetensors"]["blake3"] == (
        blake3((repeating / "model.safetensors").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize("config", [TIED, {"model_type": "gemma"}], ids=["said", "by default"])
def test_the_layout_of_most_members_may_be_the_one_that_repeats(tmp_path: Path, config: dict[str, Any]) -> None:
    members = [
        write_member(tmp_path / f"m{seed}", _with_head(_embedding(seed), repeat=True), config) for seed in range(2)
    ]
    members.append(write_member(tmp_path / "m2", _embedding(2), config))
    (tmp_path / "out").mkdir()
    stage.run(SoupConfig(), {"members": members}, tmp_path / "out")
    assert open_members([tmp_path / "out"])[0].files.keys() == _embedding(0).keys()


@pytest.mark.parametrize(
    ("config", "repeat", "problem"),
    [(TIED, False, r"has a lm_head\.weight of its own"), ({}, True, r"lacks 1 tensors \(lm_head\.weight\)")],
)
def test_output_embeddings_of_their_own_are_not_dropped(
    tmp_path: Path, config: dict[str, Any], repeat: bool, problem: str
) -> None:
    members = [
        write_member(tmp_path / "one", _with_head(_embedding(0), repeat), config),
        write_member(tmp_path / "two", _embedding(1), config),
    ]
    with pytest.raises(UserError, match=problem):
        stage.run(SoupConfig(), {"members": members}, tmp_path / "out")
