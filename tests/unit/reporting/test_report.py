"""What the report says of a run: figures, examples, curves and lineage; with stages missing, what is there."""

from __future__ import annotations

import html
import math
import re
from xml.etree.ElementTree import fromstring

import pytest
import yaml

from ladle.recipe import load_recipe
from ladle.reporting.collect import collect_answers, collect_lineage, collect_trainings
from ladle.reporting.latex import split_formulas
from ladle.reporting.page import ReportConfig, render
from ladle.reporting.plots import MAX_POINTS, draw
from tests.run_records import make_run


@pytest.fixture
def records(tmp_path):
    return make_run(tmp_path)


def text_of(page: str) -> str:
    """Return what a reader sees."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(body).split())


def test_the_page_says_what_was_gained_and_how(records):
    page = render(ReportConfig(title="A <run>", price_per_hour=36.0), records)["index.html"]
    text = text_of(page)
    assert "kto <b> is better than base: it solves 56.2% of 80 items and base 7.5%" in text
    assert "<script" not in page, "completions are text"
    for shown in (
        "75.0 % 74.0 % to 76.0 %",
        "web 80.00 % 100.00 % 1,234",
        "77 unused",
        "1/2 each of 2: base, checkpoint-10",
        "uniform 1.25000 chosen",
        "rollout 90 40 41 7 2 3 81",
        "the model before",
        "other: base wrong, kto <b> right (26 items)",
        "z0 & <KL>",
        "kto/training-2 2 12 13",
        "Some CPU",
        "c0ffee",
        "ladle run 'a recipe.yaml'",
    ):
        assert shown in text, shown
    assert "checkpoint-9" not in text, "members without weight are left out"
    seconds = sum(record["timings"]["seconds"] for _, record in records.values())
    assert f"cost {seconds / 100:.2f}" in text


def test_the_page_is_the_same_in_short_as_markdown(records):
    short = render(ReportConfig(title="A run"), records)["report.md"]
    assert short.startswith("# A run\n")
    assert "kto <b> is better than base" in short
    assert "| kto <b> | word_problems | 75.0 % | 74.0 to 76.0 % | 40 | 30 | 10 | 5 | 6 | 9 |" in short
    assert not re.search(r"\n{3,}", short)


def test_a_training_too_short_to_log_a_loss_has_none(records):
    name = next(name for name, (_, record) in records.items() if record["stage"] == "pretrain")
    folder, record = records[name]
    records[name] = folder, record | {"metrics": {}}
    texts = render(ReportConfig(title="A run"), records)
    assert re.search(rf"^\| {name} \| \d+ \|  \|", texts["report.md"], re.MULTILINE)
    assert "nan" not in text_of(texts["index.html"]).lower()


@pytest.mark.parametrize("missing", ["evaluate", "kto", "mix", "pretrain", "everything"])
def test_a_run_with_missing_stages_shows_what_is_there(records, missing):
    left = {name: one for name, one in records.items() if one[1]["stage"] != missing and missing != "everything"}
    page = render(ReportConfig(title="x"), left)["index.html"]
    sections = set(re.findall(r'<section id="(\w+)">', page))
    assert sections == set(re.findall(r'<a href="#(\w+)">', page))
    gone = {"evaluate": {"results", "changes", "answers"}, "mix": {"data"}, "pretrain": {"training"}}
    assert not sections & gone.get(missing, set())
    assert (missing == "everything") == (not sections)
    assert ("No model was evaluated." in page) == (missing in ("evaluate", "everything"))


def test_answers_on_which_the_models_differ_come_first(records):
    folders = {name: records[f"evaluate/{name}"][0] for name in ("base", "kto <b>")}
    answers = [one for one in collect_answers(folders) if one.benchmark == "other"]
    assert [(one.right, one.num_items) for one in answers] == [
        ((False, True), 26),
        ((False, False), 10),
        ((True, True), 4),
    ]
    assert [row["idx"] for row in answers[0].examples[0]] == [4, 4]


def test_rounds_of_an_alignment_are_drawn_one_after_the_other(records):
    base, kto = collect_trainings(records)
    assert (base.name, kto.name, [*kto.rounds]) == ("base", "kto", ["kto/training-1", "kto/training-2"])
    titles = [chart.title for chart in kto.charts]
    assert titles == ["loss", "kl", "learning_rate", "rewards", "z0"]
    (line,) = kto.charts[0].lines
    assert [len(points) for points in line.rounds] == [4, 2]
    assert line.rounds[0][-1][0] == kto.charts[0].ends[0] < line.rounds[1][0][0]


def test_the_lineage_leaves_out_what_others_imply(records):
    steps = {step.name: step for step in collect_lineage(records)}
    assert steps["base"].nearest == ["mix"]
    assert set(steps["base"].made_from) == {"base/init", "mix"}
    assert steps["kto <b>"].nearest == ["kto/training-2"]
    assert steps["kto <b>"].scores == [0.75]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([3e-4, 3e-4], None),
        ([0.0], None),
        ([-1.0, 250_000.0], None),
        ([1.5, 1.50001], None),
    ],
)
def test_curves_lie_between_round_ticks(values, labels):
    chart = draw("x", {"a": list(enumerate(values))})
    assert chart is not None
    places, texts = zip(*chart.y_ticks, strict=True)
    assert labels is None or [*texts] == labels
    assert len(set(texts)) == len(texts) >= 2
    assert list(places) == sorted(places, reverse=True)
    for _, y in chart.lines[0].rounds[0]:
        assert places[-1] <= y <= places[0]


def test_nothing_is_drawn_of_nothing_and_long_curves_keep_their_peaks():
    assert draw("x", {"a": [], "b": [(1, math.nan)]}) is None
    points = [(float(x), 9.0 if x == 7_777 else 0.0) for x in range(20_000)]
    chart = draw("x", {"a": points})
    assert chart is not None
    (drawn,) = chart.lines[0].rounds
    assert len(drawn) <= MAX_POINTS
    assert min(y for _, y in drawn) < next(place for place, text in chart.y_ticks if text == "8")


def test_the_recipe_on_the_page_is_the_recipe(repository, tmp_path):
    for name in ("quickstart", "tiny", "openseek/kto"):
        loaded = load_recipe(repository / "recipes" / f"{name}.yaml", ["report.title=no", "seed=7"])
        (tmp_path / "again.yaml").write_text(loaded.source_text)
        again = load_recipe(tmp_path / "again.yaml")
        assert again.model_copy(update={"source": loaded.source}) == loaded
        assert yaml.safe_load(loaded.source_text)["report"]["title"] == "no"


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_curves_stand_out_from_the_paper_in_both_palettes():
    """As WCAG 2.2 AA asks: 4.5 for text, 3 for what is drawn. axe-core says nothing of either inside an SVG."""
    page = render(ReportConfig(title="x"), {})["index.html"]
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    for block in (light, dark):
        palette = dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        assert len(palette) == 14
        for name in palette.keys() - {"paper", "panel", "rule"}:
            for ground in ("paper", "panel"):
                lighter, darker = sorted((luminance(palette[name]), luminance(palette[ground])), reverse=True)
                contrast = (lighter + 0.05) / (darker + 0.05)
                assert contrast >= (3 if name.startswith("line") else 4.5), (name, ground, contrast)


def test_formulas_become_mathml_and_money_and_broken_ones_do_not():
    parts = split_formulas(r"What is $\frac{1}{2}$ of \(x < 4\)? It costs $5, or $6. So $a_$ or \[\left( b\].")
    shown = [(part.text, bool(part.mathml)) for part in parts if part.is_formula]
    assert shown == [(r"$\frac{1}{2}$", True), (r"\(x < 4\)", True), (r"$a_$", False), (r"\[\left( b\]", False)]
    half, less = (fromstring(part.mathml) for part in parts if part.mathml)
    assert [element.tag.partition("}")[2] for element in half.iter()] == ["math", "mrow", "mfrac", *["mrow", "mn"] * 2]
    assert [element.text for element in less.iter() if element.text] == ["x", "<", "4"]
    assert "".join(part.text for part in parts).startswith("What is $"), "no character is lost"
    (evil,) = split_formulas(r"$\text{<script>alert(1)</script>}$")[1:2]
    assert "<script" not in evil.mathml
