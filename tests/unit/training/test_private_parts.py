"""The private parts of other libraries that training rests on (docs/architecture.md) are still what they were."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.tiny_models import make_model

PRIVATE = re.compile(r"(?<!self)(?<!ctx)(?<!cls)\.(_[a-z]\w+|__compatible_ops__|single_partition_of_fp32_groups)")
ON_THE_PATH = {
    "_attn_implementation", "_keep_in_fp32_modules_strict", "_buffers", "__compatible_ops__",
    "single_partition_of_fp32_groups",
}  # fmt: skip


def test_training_uses_no_others():
    """Of the modules that a step, a save and a resumption run through; estimates before a run are apart."""
    source = Path(inspect.getfile(importlib.import_module("ladle"))).parent
    files = [source / "models" / "load.py", *(source / "training").glob("*.py"), *(source / "kto").glob("*.py")]
    found = set()
    for file in files:
        if file.name not in ("memory.py", "before.py"):
            text = re.sub(r'"""(.|\n)*?"""', "", file.read_text())
            found |= set(PRIVATE.findall(text))
    assert found == ON_THE_PATH


def test_transformers_still_says_what_attention_runs_and_what_stays_in_float32():
    model = make_model("deepseek_v3")
    assert isinstance(model, PreTrainedModel)
    assert model.config._attn_implementation == "sdpa"
    assert any("e_score_correction_bias" in part for part in model._keep_in_fp32_modules_strict or ())


def test_deepspeed_still_has_its_list_of_operators_and_shares():
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (extra `deepspeed`)")
    assert "deepspeed_shm_comm" in importlib.import_module("deepspeed.ops").__compatible_ops__
    zero = importlib.import_module("deepspeed.runtime.zero.stage_1_and_2")
    assert "single_partition_of_fp32_groups" in inspect.getsource(zero.DeepSpeedZeroOptimizer)
