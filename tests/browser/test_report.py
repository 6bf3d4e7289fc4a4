"""The report page as a browser shows it: headless Chromium, from a file, without network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ladle.reporting.page import render_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


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
        "metrics": {},
    }
    return {"stage": stage, "environment": {"python": "3", "packages": {"torch": "2"}}, **empty, **values}


@pytest.fixture
def page(tmp_path: Path) -> Path:
    score = {"accuracy": 0.75, "low": 0.7, "high": 0.8, "n": 400}
    (tmp_path / "training_log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    records = {
        "pretrain": (tmp_path, record("pretrain", counters={"steps": 2})),
        "evaluate/base": (
            tmp_path,
            record("evaluate", metrics={"word_problems": score | {"accuracy": 0.01, "low": 0.0, "high": 0.03}}),
        ),
        "evaluate/kto <b>": (tmp_path, record("evaluate", metrics={"word_problems": score})),
    }
    path = tmp_path / "index.html"
    path.write_text(render_page("A <run> & its results", records), encoding="utf-8")
    return path


def test_the_page_shows_results_and_plots_and_escapes_names(page, tmp_path):
    dom = browse("--dump-dom", page.as_uri(), profile=tmp_path / "profile").stdout
    assert "A &lt;run&gt; &amp; its results" in dom
    assert "75.0 %" in dom
    assert "70.0 to 80.0 %" in dom
    assert "kto &lt;b&gt;" in dom
    assert dom.count("<svg") == 2
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
