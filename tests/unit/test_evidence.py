"""The tables of docs/evidence.md are those of benchmarks/results/*.json."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_results(repository):
    page = (repository / "docs" / "evidence.md").read_text(encoding="utf-8")
    made = load(repository / "docs" / "make_evidence.py").evidence(page, repository / "benchmarks" / "results")
    assert made == page, "run `make evidence`"


def test_a_measurement_becomes_a_table_with_its_spread_command_and_machine(repository, tmp_path, monkeypatch, capsys):
    results = load(repository / "benchmarks" / "results.py")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench_grade.py", "--pairs", "40"])
    samples = {"ladle_seconds": [3.0, 1.0, 2.0]}
    results.publish("bench_grade", samples, {"vs_math_verify": 12.3456}, quick=False)
    last = json.loads(capsys.readouterr().out)
    assert last == {
        "name": "bench_grade",
        "ratios": {"vs_math_verify": 12.35},
        "medians": {"ladle_seconds": 2.0},
        "runs": 3,
    }
    page = load(repository / "docs" / "make_evidence.py")
    text = page.evidence(f"before\n{page.BEGIN}{page.END}after\n", tmp_path)
    stored = json.loads((tmp_path / "bench_grade.json").read_text())
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| ladle_seconds | 2 | 1 | 3 | 3 |" in text
    assert "| vs_math_verify | 12.35 |" in text
    for seen in ("`python benchmarks/bench_grade.py --pairs 40`", stored["date"], stored["environment"]["cpu"]):
        assert seen in text


def test_every_benchmark_takes_quick_and_publishes(repository):
    scripts = sorted((repository / "benchmarks").glob("bench_*.py"))
    assert len(scripts) >= 7
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert f'results.publish("{script.stem}"' in text
        assert "results.parse(parser, " in text or "results.parse(\n" in text
