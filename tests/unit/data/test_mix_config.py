from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
from pydantic import ValidationError

from ladle.data.config import MixConfig, SourceConfig


def make(ratios: list[float], **changes: Any) -> MixConfig:
    sources = [{"name": f"s{i}", "dataset": "x", "ratio": ratio} for i, ratio in enumerate(ratios)]
    return MixConfig.model_validate({"sources": sources, "budget": {"tokens": 100}} | changes)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([0.57, 0.4], "mix ratios sum to 0.97, not 1: add 0.03 to a source or set mix.normalize=true"),
        ([0.8, 0.4], "mix ratios sum to 1.2, not 1: take 0.2 from a source or set mix.normalize=true"),
    ],
)
def test_ratios_that_do_not_sum_to_one_are_refused_with_the_difference(ratios: list[float], message: str):
    with pytest.raises(ValidationError, match=message):
        make(ratios)


def test_ratios_are_summed_as_decimals():
    assert sum(make([0.1] * 10).shares()) == 1


def test_normalize_divides_by_the_sum():
    assert make([3, 1], normalize=True).shares() == [Fraction(3, 4), Fraction(1, 4)]


@pytest.mark.parametrize("budget", [{}, {"tokens": 5, "sequences": 5}])
def test_a_budget_has_one_unit(budget: dict[str, int]):
    with pytest.raises(ValidationError, match="set one of `sequences: N` and `tokens: N`"):
        make([1.0], budget=budget)


def test_sources_have_names_of_their_own():
    with pytest.raises(ValidationError, match="2 sources are named web"):
        make([1.0], sources=[{"name": "web", "dataset": "x", "ratio": 0.5}] * 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "function"}, "write it as `module:function`"),
        ({"function": "m:f"}, "`function` belongs to `format: function`"),
        ({"template": "{q}"}, "format=text, and `template` belongs to `format: template`"),
        ({"format": "messages", "text": "text"}, "`text` belongs to `format: text`"),
        ({"format": "text", "input_ids": "ids"}, "`input_ids` belongs to `format: input_ids`"),
        ({"ratio": float("inf")}, "finite number"),
        ({"ratio": float("nan")}, "finite number"),
        ({"format": "function", "function": "m.f"}, "write it as `module:function`"),
        ({"format": "template", "template": "nothing"}, "do not all hold a column"),
        ({"ratio": 0}, "greater than 0"),
    ],
)
def test_a_source_is_complete(fields: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate({"name": "s", "dataset": "x", "ratio": 1.0} | fields)


def test_template_columns_are_the_outermost_names():
    source = SourceConfig(name="s", dataset="x", ratio=1, format="template", template="{a[b]} {c.d} {a} {{e}}")
    assert source.template_columns() == ["a", "c"]


def test_a_subset_is_named_by_its_key_or_in_the_dataset_id():
    assert SourceConfig(name="s", dataset="org/name:sub", ratio=1).hub_subset() == "sub"
    assert SourceConfig(name="s", dataset="org/name", subset="sub", ratio=1).hub_subset() == "sub"
    assert SourceConfig(name="s", dataset="org/name", ratio=1).hub_subset() is None


def test_how_a_mix_is_run_is_not_part_of_what_it_is():
    one = make([1.0], workers=1, engine="hf", cache="/somewhere")
    other = make([1.0], workers=8, engine="fastokens")
    assert one.identity() == other.identity()
    assert one.identity() != make([1.0], sequence_length=8).identity()


def test_the_schema_loads_no_heavy_library():
    heavy = ["torch", "transformers", "datasets", "numpy", "pyarrow", "tokenizers"]
    code = f"import sys, ladle.data.config; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
