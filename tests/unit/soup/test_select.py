from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladle.errors import CheckFailed, UserError
from ladle.soups.compare import open_soup
from ladle.soups.config import SoupConfig
from ladle.soups.make import Scorer
from ladle.soups.members import read_header
from ladle.soups.weights import Choice, select
from ladle.stages import soup as stage
from ladle.training import pretrain as validation

from .formats import to_bits
from .models import read_tree, write_member

GOAL = np.array([1.0, 0.0])
POINTS = [(4.0, 0.0), (0.0, 1.0), (2.0, -1.0), (0.0, -3.0)]
"""Members as points in the plane; the loss of an average is its distance from the goal."""


class Distance:
    """The validation loss of a model of two weights, and the folders it was called with."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, folder: Path, data_dir: Path | None = None) -> float:
        self.folders.append(folder)
        path = folder / "model.safetensors"
        point = np.frombuffer(path.read_bytes()[len(read_header(path).raw) :], np.float32)
        return float(np.linalg.norm(point - GOAL))


def make_members(folder: Path) -> list[Path]:
    return [
        write_member(folder / f"m{j}", {"point": ("F32", to_bits(np.array(point), "F32"))})
        for j, point in enumerate(POINTS)
    ]


def choose(tmp_path: Path, loss: Distance, **settings: Any) -> tuple[Choice, list[dict[str, Any]]]:
    """Return the choice, and the record of all averages that were tried."""
    config = SoupConfig.model_validate(settings)
    soup = open_soup(make_members(tmp_path / "members"), config)
    scorer = Scorer(soup, loss, tmp_path / "scratch")
    return select(config, [member.name for member in soup.members], scorer), scorer.tried


def test_greedy_keeps_a_member_only_if_the_loss_falls(tmp_path: Path) -> None:
    loss = Distance()
    choice, tried = choose(tmp_path, loss, select="greedy")
    # Alone: m1 and m2 (1.41 each), m0 (3), m3 (3.16). m2, the newer of equals, comes first; m1 makes (1, 0), the goal.
    assert choice.coefficients.as_text() == ["0", "1/2", "1/2", "0"]
    assert choice.loss == 0
    assert [entry["name"] for entry in tried] == [
        "only m0",
        "only m1",
        "only m2",
        "only m3",
        "greedy: m1 + m2",
        "greedy: m0 + m1 + m2",
        "greedy: m1 + m2 + m3",
        "greedy",
    ]
    assert len(loss.folders) == 7  # the final greedy soup was scored already


def test_best_is_the_lowest_of_its_candidates_all_on_record(tmp_path: Path) -> None:
    choice, tried = choose(tmp_path, Distance(), select="best", candidates=["last", "uniform", "last_n"])
    losses = {entry["name"]: entry["loss"] for entry in tried}
    assert sorted(losses) == ["last", "last_2", "uniform"]
    assert choice.name == "uniform" == min(losses, key=lambda name: losses[name])
    assert choice.coefficients.as_text() == ["1/4"] * 4


def test_methods_are_candidates_too(tmp_path: Path) -> None:
    _, tried = choose(tmp_path, Distance(), select="best", candidates=["linear", "ema", "wsm_cosine"])
    assert [entry["name"] for entry in tried] == ["linear", "ema", "wsm_cosine"]


def test_last_n_tries_no_more_members_than_there_are(tmp_path: Path) -> None:
    _, tried = choose(tmp_path, Distance(), select="best", candidates=["last_n"], last=3)
    assert [entry["shares"] for entry in tried] == [["0", "1/3", "1/3", "1/3"]]
    with pytest.raises(UserError, match=r"soup\.last is 5"):
        choose(tmp_path / "more", Distance(), select="best", candidates=["last_n"], last=5)


def test_candidates_are_written_one_over_the_other(tmp_path: Path) -> None:
    loss = Distance()
    choose(tmp_path, loss, select="best", candidates=["uniform", "last_n", "linear"])
    assert {folder.name for folder in loss.folders} == {"candidate"}
    assert len([path for path in (tmp_path / "scratch").rglob("*.safetensors")]) == 1


def test_a_member_alone_is_scored_where_it_is(tmp_path: Path) -> None:
    loss = Distance()
    choose(tmp_path, loss, select="best", candidates=["last"])
    assert loss.folders == [tmp_path / "members" / "m3"]


def test_known_losses_survive_a_kill(tmp_path: Path) -> None:
    class Killed(Distance):
        def __call__(self, folder: Path, data_dir: Path | None = None) -> float:
            if len(self.folders) == 5:
                raise KeyboardInterrupt
            return super().__call__(folder)

    with pytest.raises(KeyboardInterrupt):
        choose(tmp_path, Killed(), select="greedy")
    shutil.rmtree(tmp_path / "members")
    loss = Distance()
    choose(tmp_path, loss, select="greedy")
    assert len(loss.folders) == 2


def test_a_loss_that_is_not_a_number_stops_the_selection(tmp_path: Path) -> None:
    class Broken(Distance):
        def __call__(self, folder: Path, data_dir: Path | None = None) -> float:
            return math.nan

    with pytest.raises(CheckFailed, match="validation loss nan"):
        choose(tmp_path, Broken(), select="greedy")


def test_the_stage_selects_records_and_leaves_no_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "validation_loss", Distance())
    members = make_members(tmp_path / "members")
    (tmp_path / "out").mkdir()
    inputs = {"members": members, "validation": [tmp_path]}
    summary = stage.run(SoupConfig(select="greedy"), inputs, tmp_path / "out")
    assert summary.metrics["validation_loss"] == 0
    assert summary.metrics["validation_dtype"] == "float32", "on a CPU"
    assert len(summary.metrics["candidates"]) == 8
    assert sorted(read_tree(tmp_path / "out")) == ["config.json", "merge_info.json", "model.safetensors"]
    assert Distance()(tmp_path / "out") == 0


def test_selection_without_validation_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no validation data"):
        stage.run(SoupConfig(select="best"), {"members": make_members(tmp_path / "members")}, tmp_path)
