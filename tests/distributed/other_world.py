"""A training killed twice and resumed each time by another number of processes, 2 → 1 → 2; prints its final losses.

python -m tests.distributed.other_world ddp
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from ladle import log
from tests.distributed.kill_training import Clock, kill_all, run_whole, start, wait
from tests.distributed.pretrain_job import Job, make_job


def with_processes(job: Job, processes: int) -> Job:
    """Return the job for a number of processes, which may resume one another's checkpoints."""
    changes = {"processes": processes, "allow_other_world": True}
    return replace(job, config=job.config.model_copy(update=changes))


def final_loss(out: Path) -> float:
    """Return the last loss of a training's log."""
    rows = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row][-1]


def main() -> None:
    """Run it undisturbed and disturbed."""
    log.configure(quiet=True)
    logging.getLogger("ladle").handlers.clear()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = make_job(folder, "qwen3", 2, distributed=sys.argv[1])
        run_whole(job, folder / "whole")
        out = folder / "out"
        for processes, until in ((2, 8), (1, 20), (2, None)):
            one = with_processes(job, processes)
            pids = start(one, out, Clock())
            if until is None:
                assert wait(pids, 600) == [0] * processes, out.with_suffix(".log").read_text()
                break
            while not (out / "checkpoints" / f"checkpoint-{until}").is_dir():
                assert all(code is None for code in wait(pids, 0.02)), out.with_suffix(".log").read_text()
            kill_all(pids, 0, 0.0)
        metrics = json.loads((out / "summary.json").read_text())["metrics"]
        found = {"whole": final_loss(folder / "whole"), "disturbed": final_loss(out), "said": metrics["not_bit_equal"]}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
