from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ladle.errors import CheckFailed, UserError
from ladle.soup.config import SoupConfig
from ladle.soup.headers import read_header
from ladle.soup.preflight import open_soup
from ladle.soup.select import Scorer, select
from ladle.soup.writer import SELECTION
from ladle.stages import soup as stage
from ladle.training import pretrain as validation

from .models import read_tree, to_bits, write_member

GOAL = np.array([1.0, 0.0])
POINTS = [(4.0, 0.0), (0.0, 1.0), (2.0, -1.0), (0.0, -3.0)]
"""Members as points in the plane; the loss of an average is its distance from the goal."""


class Distance:
    """The validation loss of a model of two weights, and how often it was asked for."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def __call__(self, folder: Path, data_dir: Path | None = None) -> float:
        self.folders.append(folder)
        path = folder / "model.safetensors"
        point = np.frombuffer(path.read_bytes()[read_header(path).data_start :], np.float32)
        return float(np.linalg.norm(point - GOAL))


def make_members(folder: Path) -> list[Path]:
    return [
        write_member(folder / f"m{j}", {"point": ("F32", to_bits(np.array(point), "F32"))})
        for j, point in enumerate(POINTS)
    ]


def choose(tmp_path: Path, loss: Distance, **settings: Any) -> tuple[list[str], dict[str, Any]]:
    config = SoupConfig.model_validate(settings)
    soup = open_soup(make_members(tmp_path / "members"), config)
    coefficients, selection = select(soup, config, Scorer(soup, loss, tmp_path / "scratch"))
    return coefficients.as_text(), selection


def test_greedy_keeps_a_member_only_if_the_loss_falls(tmp_path: Path) -> None:
    loss = Distance()
    shares, selection = choose(tmp_path, loss, select="greedy")
    # Alone: m1 and m2 (1.41 each), m0 (3), m3 (3.16). m2, the newer of equals, comes first; m1 makes (1, 0), the goal.
    assert shares == ["0", "1/2", "1/2", "0"]
    assert selection["loss"] == 0
    assert [entry["name"] for entry in selection["candidates"]] == [
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
    shares, selection = choose(tmp_path, Distance(), select="best", candidates=["last", "uniform", "last_n"])
    losses = {entry["name"]: entry["loss"] for entry in selection["candidates"]}
    assert sorted(losses) == ["last", "last_2", "uniform"]
    assert selection["chosen"] == "uniform" == min(losses, key=lambda name: losses[name])
    assert shares == ["1/4"] * 4


def test_methods_are_candidates_too(tmp_path: Path) -> None:
    _, selection = choose(tmp_path, Distance(), select="best", candidates=["linear", "ema", "wsm_cosine"], last=3)
    assert [entry["name"] for entry in selection["candidates"]] == ["linear", "ema", "wsm_cosine"]


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

    config = SoupConfig(select="greedy")
    soup = open_soup(make_members(tmp_path / "members"), config)
    with pytest.raises(KeyboardInterrupt):
        select(soup, config, Scorer(soup, Killed(), tmp_path / "scratch"))
    loss = Distance()
    select(soup, config, Scorer(soup, loss, tmp_path / "scratch"))
    assert len(loss.folders) == 2


def test_a_loss_that_is_no_number_stops_the_selection(tmp_path: Path) -> None:
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
    assert len(summary.metrics["candidates"]) == 8
    assert not (tmp_path / "out" / SELECTION).exists()
    assert sorted(read_tree(tmp_path / "out")) == ["README.md", "config.json", "merge_info.json", "model.safetensors"]
    assert Distance()(tmp_path / "out") == 0


def test_selection_without_validation_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no validation data"):
        stage.run(SoupConfig(select="best"), {"members": make_members(tmp_path / "members")}, tmp_path)
