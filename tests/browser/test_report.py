"""The report page as a browser shows it: headless Chromium, from a file, without network; light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ladle.reporting.page import ReportConfig, render
from tests.run_records import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = "axe-playwright-python==0.1.8"
"""A package that holds axe-core's script; only that is used of it."""
DARK = "@media screen and (prefers-color-scheme: dark)"
SECTIONS = {
    "results": "Results",
    "changes": "What each model gained",
    "answers": "Right and wrong",
    "data": "Data",
    "training": "Training",
    "soups": "Soups",
    "alignment": "Alignment",
    "lineage": "Lineage",
    "cost": "Time and machines",
    "again": "Make it again",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


def browse(*arguments: str, profile: Path) -> subprocess.CompletedProcess[str]:
    command = [CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--window-size=1000,1600", "--enable-logging=stderr", f"--user-data-dir={profile}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The page; the dark one has the dark palette whatever the browser prefers."""
    config = ReportConfig(title="A <run> & its results", price_per_hour=2.5, recipe="name: x <y>\n")
    text = render(config, make_run(tmp_path / "run"))["index.html"]
    assert DARK in text
    path = tmp_path / "index.html"
    path.write_text(text.replace(DARK, "@media screen") if request.param == "dark" else text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's script, from PyPI: it is no part of any environment of Ladle's."""
    folder = tmp_path_factory.mktemp("axe")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), AXE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"axe-core cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("axe.min.js"))
        return wheel.read(name).decode()


def test_every_section_is_there_and_nothing_is_fetched_or_complained_of(page, tmp_path):
    done = browse("--dump-dom", page.as_uri(), profile=tmp_path / "profile")
    for place, title in SECTIONS.items():
        assert f'<section id="{place}"><h2>{title}</h2>' in done.stdout
        assert f'<a href="#{place}">{title}</a>' in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr
    policy = "default-src 'none'; style-src 'unsafe-inline'"  # with which the browser fetches nothing
    assert f'content="{policy}"' in done.stdout
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"|url\(|@import|<script', done.stdout)


def test_axe_finds_no_violation(page, tmp_path, axe):
    found = tmp_path / "found.html"
    script = "axe.run().then(found => document.body.textContent = JSON.stringify(found.violations))"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    text = text.replace("<details>", "<details open>")
    found.write_text(f"{text}<script>{axe}</script><script>{script}</script>", encoding="utf-8")
    dom = browse("--dump-dom", "--virtual-time-budget=60000", found.as_uri(), profile=tmp_path / "profile").stdout
    violations = json.loads(html.unescape(dom.partition("<body>")[2].partition("</body>")[0]))
    assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations]


def test_the_page_is_drawn_in_its_palette(page, tmp_path):
    from PIL import Image

    shot = tmp_path / "shot.png"
    browse(f"--screenshot={shot}", page.as_uri(), profile=tmp_path / "profile")
    colours = Image.open(shot).convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    drawn = {"#{:02x}{:02x}{:02x}".format(*colour) for count, colour in colours if count > 300}
    palettes = page.read_text(encoding="utf-8")
    wanted = re.findall(r"--(?:paper|line-0): (#\w{6})", palettes)
    is_dark = DARK not in palettes
    assert {*wanted[2 * is_dark :][:2]} <= drawn, "the paper, or the bars of the accuracies, are missing"
