from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ladle.soup.members import open_members
from ladle.soup.moe import moe_report

from .models import Tensors, random_tensors, to_bits, write_member

PREFIX = "model.layers.1.mlp"


def experts(rng: np.random.Generator, drift: float, bias: list[float]) -> Tensors:
    base = np.random.default_rng(0).normal(0, 1, (2, 64, 64))
    tensors = {
        f"{PREFIX}.experts.{expert}.up_proj.weight": (
            "F32",
            to_bits(base[expert] + rng.normal(0, drift, (64, 64)), "F32"),
        )
        for expert in range(2)
    }
    tensors[f"{PREFIX}.gate.e_score_correction_bias"] = ("F32", to_bits(np.array(bias), "F32"))
    tensors[f"{PREFIX}.shared_experts.up_proj.weight"] = ("F32", to_bits(rng.normal(0, 9, (4, 4)), "F32"))
    return tensors


def test_the_report_measures_drift_and_spread(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    members = open_members(
        [
            write_member(tmp_path / "base", experts(rng, 0, [0.0, 1.0])),
            write_member(tmp_path / "near", experts(rng, 0.1, [0.5, 1.0])),
            write_member(tmp_path / "far", experts(rng, 0.5, [0.25, -1.0])),
        ]
    )
    report = moe_report(members)
    assert report is not None
    (layer,) = report
    assert layer["layer"] == "model.layers.1"
    assert layer["router_bias_spread"] == {"mean": 1.25, "max": 2.0}
    assert layer["expert_distance"]["near"]["mean"] == pytest.approx(0.1, rel=0.05)
    assert layer["expert_distance"]["far"]["mean"] == pytest.approx(0.5, rel=0.05)


def test_fused_experts_are_measured_one_by_one(tmp_path: Path) -> None:
    base = np.random.default_rng(0).normal(0, 1, (3, 64, 64))
    moved = base * np.array([1.0, 1.0, 1.5])[:, None, None]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    folders = [
        write_member(tmp_path / label, {name: ("F32", to_bits(array, "F32"))})
        for label, array in (("a", base), ("b", moved))
    ]
    report = moe_report(open_members(folders))
    assert report is not None
    assert report[0]["expert_distance"] == {"b": {"mean": 0.1667, "max": 0.5}}


def test_a_dense_model_or_a_single_member_has_no_report(tmp_path: Path) -> None:
    dense = [write_member(tmp_path / f"m{j}", random_tensors(j)) for j in range(2)]
    assert moe_report(open_members(dense)) is None
    single = write_member(tmp_path / "moe", experts(np.random.default_rng(0), 0, [0.0, 0.0]))
    assert moe_report(open_members([single])) is None
