"""DDP and ZeRO-2, pretraining and KTO, in two processes, by nothing but the recipe's `distributed` and `processes`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ladle.artifacts.record import read_record
from tests.pipeline.conftest import Run, ladle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

WRAPPERS = {"ddp": "DistributedDataParallel", "zero2": "DeepSpeedEngine"}


@pytest.mark.parametrize("distributed", ["ddp", "zero2"])
def test_one_switch_trains_both_ways(distributed: str, repository: Path, tmp_path: Path):
    if distributed == "zero2":
        pytest.importorskip("deepspeed", reason="DeepSpeed is not installed (extra `deepspeed`)")
    switches = [
        f"{key}.{name}" for key in ("pretrain", "kto") for name in (f"distributed={distributed}", "processes=2")
    ]
    fewer_steps = ["pretrain.trainer.max_steps=6", "pretrain.trainer.save_steps=3", "kto.trainer.max_steps=2"]
    done = ladle("run", repository / "recipes/tiny.yaml", *switches, *fewer_steps, "--only", "kto", root=tmp_path)
    assert done.returncode == 0, done.stderr
    artifacts = Run(tmp_path, "", "").artifacts()
    for name, steps in (("pretrain", 6), ("kto", 2)):
        counters = read_record(artifacts[name])["counters"]
        assert counters["steps"] == steps, name
        assert counters["processes"] == 2, f"{name} did not run in two processes"
        assert read_record(artifacts[name])["metrics"]["wrapper"] == WRAPPERS[distributed], name
        assert read_record(artifacts[name])["identity"]["config"]["distributed"] == distributed
        assert list((artifacts[name] / "model").glob("*.safetensors"))
