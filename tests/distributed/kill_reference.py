"""kill -9 the reference pass of a KTO training over and over, and compare what comes out with an uninterrupted one.

    python -m tests.distributed.kill_reference --kills 20 --seed 1

The pass is forked from this process, which has torch loaded already and has started no thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from ladle import log
from ladle.artifacts.record import describe_files, digest_of
from ladle.kto import reference
from ladle.kto.config import KtoReferenceConfig
from tests.distributed.kill_training import wait
from tests.distributed.kto_job import make_config, make_inputs


def start(config, inputs, out: Path) -> int:
    """Fork the pass and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out.mkdir(exist_ok=True)
        reference.run(KtoReferenceConfig.of(config, config.seed), inputs, out)
        (out.parent / f"{out.name}.done").touch()
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    """Make the kills and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    log.configure(quiet=True)
    reference.TOKENS_PER_ITEM = 256
    rng, kills, resumed, endings = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = make_config(max_steps=-1, num_train_epochs=3, max_tokens_per_microbatch=128)
        inputs = make_inputs(folder, "deepseek_v3", 120)
        started = time.monotonic()
        assert wait([start(config, inputs, folder / "whole")], 600) == [0]
        seconds = time.monotonic() - started
        expected = digest_of(describe_files(folder / "whole"), ())
        while kills < options.kills:
            out = folder / f"run-{endings}"
            while not (folder / f"{out.name}.done").is_file():
                had = len(list(out.glob("train/.items/*.b3")))
                pid = start(config, inputs, out)
                if wait([pid], rng.uniform(0, 0.7 * seconds)) == [None]:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    kills += 1
                    assert (
                        len(list(out.glob("train/.items/*.b3"))) >= had or (out / "train" / "prompt_ids.npy").is_file()
                    )
                    resumed += had > 0
            assert digest_of(describe_files(out), ()) == expected, "other bytes"
            endings += 1
    sys.stdout.write(json.dumps({"kills": kills, "resumed": resumed, "endings": endings}) + "\n")


if __name__ == "__main__":
    main()
