"""The rehearsal of a whole recipe: every stage ends, trainings are killed and go on, the table says what all takes."""

from __future__ import annotations

import pytest

from tests.pipeline.conftest import ladle


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_stage_is_rehearsed(tiny, tmp_path):
    done = ladle("run", tiny, "--rehearse", "--price", "2", root=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if " GB " in line or " MB " in line}
    for step in ("base/init", "mix", "pretrain", "soup", "rollout", "prefer", "kto", "evaluate/kto", "report"):
        assert step in lines
    assert "killed after a checkpoint, resumed" in lines["pretrain"]
    assert "not tried at its true size: pretrain: 1 row(s) a microbatch instead of 6" in done.stdout
    assert "the full run takes about" in done.stdout
    assert (tmp_path / "tiny-rehearsal" / "pretrain").is_dir()
    assert not (tmp_path / "tiny").exists(), "the true run's folder is left alone"
