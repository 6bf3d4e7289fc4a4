"""The report page as a browser shows it: headless Chromium, from a file, without network."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ladle.reporting.page import render_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.filterwarnings("error::UserWarning"),  # as matplotlib gives for a plot without a curve
]


def browse(*arguments: str, profile: Path) -> subprocess.CompletedProcess[str]:
    command = [CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1000,1600",
    ]
    return subprocess.run(
        [*command, f"--user-data-dir={profile}", *arguments], capture_output=True, text=True, timeout=120
    )


def record(stage: str, **values: object) -> dict:
    empty = {
        "fingerprint": "0" * 64,
        "digest": "1" * 64,
        "timings": {"seconds": 1.5},
        "files": {},
        "counters": {},
        "config": {},
        "inputs": {},
        "metrics": {},
    }
    return {"stage": stage, "environment": {"python": "3", "packages": {"torch": "2"}}, **empty, **values}


def evaluated(folder: Path, right: int) -> tuple[Path, dict]:
    """Write what evaluating 400 items leaves, the first `right` of them answered right."""
    results = folder / "word_problems" / "test_cot_-1_seed1_t0.6_s0_e-1_result.jsonl"
    results.parent.mkdir(parents=True)
    rows = [
        {"idx": idx, "question": f"{idx} + 1?", "gt": "1", "code": ["1"], "pred": ["1"], "score": [idx < right]}
        for idx in range(400)
    ]
    results.write_text("".join(json.dumps(row | {"gt_cot": "", "report": ["None"]}) + "\n" for row in rows))
    score = {"accuracy": right / 400, "low": right / 400 - 0.01, "high": right / 400 + 0.01, "n": 400}
    several = score | {"pass_at_k": {"1": right / 400, "2": 0.9}, "token_entropy": 0.123}
    model = {"model": [{"fingerprint": folder.name}]}
    return folder, record("evaluate", inputs=model, metrics={"word_problems": score, "other": several})


def mixture(folder: Path) -> tuple[Path, dict]:
    source = {
        "name": "web",
        "ratio": 1.0,
        "train_tokens": 1234,
        "train_documents": 3,
        "epochs": 1.5,
        "dropped_rows": {},
    }
    source |= {"dropped_rows": {}, "dropped_tokens": {"unused": 77}, "length_histogram": {"64-127": 3}}
    splits = {"train": {"rows": 2, "tokens": 1234, "padding_share": 0.001}}
    folder.mkdir()
    (folder / "mixture.json").write_text(json.dumps({"sources": [source], "splits": splits}))
    return folder, record("mix")


def soup(folder: Path) -> tuple[Path, dict]:
    coefficients = {"base": "1/2", "checkpoint-9": "0", "checkpoint-10": "1/2"}
    members = [{"name": name, "coefficient": coefficient} for name, coefficient in coefficients.items()]
    chosen = {"chosen": "uniform", "candidates": [{"name": "last", "loss": 1.5}, {"name": "uniform", "loss": 1.25}]}
    folder.mkdir()
    (folder / "merge_info.json").write_text(json.dumps({"method": "uniform", "members": members, "selection": chosen}))
    return folder, record("soup")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "training_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "training_log.jsonl").write_text('{"step": 2, "train_runtime": 1.0}\n')
    records = {
        "mix": mixture(tmp_path / "mix"),
        "pretrain": (tmp_path, record("pretrain", counters={"steps": 2})),
        "kto": (tmp_path / "short", record("kto", counters={"steps": 2})),
        "soup": soup(tmp_path / "soup"),
        "evaluate/base": evaluated(tmp_path / "base", 4),
        "evaluate/kto <b>": evaluated(tmp_path / "kto", 300),
    }
    path = tmp_path / "index.html"
    path.write_text(render_page("A <run> & its results", records), encoding="utf-8")
    return path


def test_the_page_shows_results_and_plots_and_escapes_names(page, tmp_path):
    dom = browse("--dump-dom", page.as_uri(), profile=tmp_path / "profile").stdout
    assert "A &lt;run&gt; &amp; its results" in dom
    assert "75.0 %" in dom
    assert "74.0 to 76.0 %" in dom
    assert "kto &lt;b&gt;" in dom
    assert "+74.0" in dom
    assert "296 / 0 of 400" in dom
    assert "77 unused" in dom
    assert "1/2 base + 1/2 checkpoint-10" in dom, "members without weight are left out"
    assert "1.25000" in dom
    assert "0.123" in dom, "the entropy"
    assert dom.count("<svg") == 5, (
        "two benchmarks, pass@k of one, one curve (two steps of KTO logged none), one mixture"
    )
    assert "http://" not in dom.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_the_page_is_drawn(page, tmp_path):
    from PIL import Image

    shot = tmp_path / "shot.png"
    browse(f"--screenshot={shot}", page.as_uri(), profile=tmp_path / "profile")
    colours = Image.open(shot).convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    assert (76, 120, 168) in {colour for count, colour in colours if count > 500}, "the accuracy bars are missing"
