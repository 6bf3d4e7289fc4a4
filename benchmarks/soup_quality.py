"""What a selected soup is worth: its loss less the last checkpoint's, on held-out rows that the selection never saw.

    python benchmarks/soup_quality.py [RECIPE] [--seeds 5] [--root DIR] [KEY=VALUE…]

For each seed the recipe is run up to its pretraining. Candidates of `soup.select=best` are judged by their loss on one
half of the validation rows; the other half tells what the choice is worth. Prints every candidate's loss on the first
half, the difference on the second half seed by seed, and its mean with a 95 % interval over seeds (Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

from ladle.artifacts.build import Workspace, build, natural_key
from ladle.artifacts.local import FileHashes
from ladle.data.store import MixedDataset
from ladle.models.load import load_model
from ladle.pipeline import Pipeline
from ladle.recipe import load_recipe
from ladle.soup.config import SoupConfig
from ladle.soup.preflight import open_soup
from ladle.soup.select import Scorer, select
from ladle.soup.writer import write_candidate
from ladle.training.linear_cross_entropy import completion_loss_sum
from ladle.training.packed import collate_packed

CANDIDATES = ["last", "uniform", "last_n", "linear", "ema", "wsm_cosine", "wsm_inverse_sqrt", "greedy"]
VALIDATION = "mix.validation={sequences: 300}"
BATCH_ROWS = 8
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t, two-sided 95 %, by the number of seeds."""


@torch.inference_mode()
def loss_on(rows: Sequence[int], mixture: Path, model_dir: Path) -> float:
    """Return the mean loss of a model in nats a token, over some rows of the validation split."""
    dataset = MixedDataset(mixture, "validation")
    model = load_model(model_dir).eval()
    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH_ROWS):
        batch = collate_packed([dataset[row] for row in rows[start : start + BATCH_ROWS]])
        loss, labels = completion_loss_sum(model, batch)
        total, count = total + loss, count + labels
    return total / count


def pretrain(recipe: Path, seed: int, root: Path, overrides: list[str]) -> tuple[list[Path], Path]:
    """Run a recipe up to its pretraining and return the checkpoints, oldest first, and the mixture."""
    loaded = load_recipe(recipe, [f"seed={seed}", VALIDATION, *overrides])
    steps = Pipeline(loaded, FileHashes(root / ".file-hashes.json")).in_build_order("pretrain")
    workspace = Workspace(root / str(seed))
    folders = {step.name: build(step, workspace) for step in steps}
    return sorted((folders["pretrain"] / "checkpoints").glob("checkpoint-*"), key=natural_key), folders["mix"]


def judge(checkpoints: list[Path], mixture: Path, scratch: Path) -> tuple[dict[str, float], str, float]:
    """Return candidates' losses on even rows, the one chosen, and its loss less the last checkpoint's on odd rows."""
    rows = range(len(MixedDataset(mixture, "validation")))
    config = SoupConfig.model_validate({"select": "best", "candidates": CANDIDATES})
    soup = open_soup(checkpoints, config)
    coefficients, selection = select(soup, config, Scorer(soup, partial(loss_on, rows[::2], mixture), scratch))
    write_candidate(soup, coefficients, scratch / "chosen")
    gain = loss_on(rows[1::2], mixture, scratch / "chosen") - loss_on(rows[1::2], mixture, checkpoints[-1])
    return {entry["name"]: entry["loss"] for entry in selection["candidates"]}, selection["chosen"], gain


def main() -> None:
    """Parse, run the seeds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(T_95))
    parser.add_argument("--root", type=Path, help="keep the runs here, for another time")
    options = parser.parse_intermixed_args()
    gains = []
    with tempfile.TemporaryDirectory(prefix="soup-quality-") as temporary:
        root = options.root or Path(temporary)
        for seed in range(options.seeds):
            checkpoints, mixture = pretrain(options.recipe, seed, root, options.overrides)
            losses, chosen, gain = judge(checkpoints, mixture, Path(temporary) / f"scratch-{seed}")
            gains.append(gain)
            table = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if ": " not in name)
            print(
                f"seed {seed}: {len(checkpoints)} checkpoints; {table}; chosen {chosen}; {gain:+.4f} nats", flush=True
            )
    half = T_95[len(gains)] * stdev(gains) / math.sqrt(len(gains))
    print(f"selected soup less last checkpoint: {mean(gains):+.4f} ± {half:.4f} nats a token over {len(gains)} seeds")
    summary = {"name": "soup_quality", "gains": gains, "mean": mean(gains), "half_interval_95": half}
    sys.stdout.write(json.dumps(summary) + "\n")


if __name__ == "__main__":
    main()
