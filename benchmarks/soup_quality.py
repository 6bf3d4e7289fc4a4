"""What a selected soup is worth: its loss less the last checkpoint's, on problems that the selection never saw.

    python benchmarks/soup_quality.py [RECIPE] [--seeds 1,2,3,4,5] [--rows 36] [--first N] [--root DIR] [KEY=VALUE…]

For each seed the recipe is run up to its pretraining (ROOT/seed-N keeps the runs, and finished ones are used as they
are). The problems that the dataset holds out are divided in two and packed into rows: `soup.select=best` chooses among
the candidates by the loss on one half, the other half tells what the choice is worth. Prints each candidate's loss on
the first half, by seed and on average, and the difference on the second half with a 95 % interval over seeds
(Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ladle.artifacts.build import Workspace, build
from ladle.artifacts.inputs import InputFinder, natural_key
from ladle.artifacts.step import Step, in_build_order
from ladle.data.config import MixConfig
from ladle.pipeline import CHECKPOINTS, Pipeline
from ladle.recipe import load_recipe
from ladle.soups.config import SoupConfig
from ladle.stages import mix, soup
from ladle.training.pretrain import validation_loss

CANDIDATES = ("last", "last_n", "uniform", "linear", "ema", "wsm_linear", "wsm_cosine", "wsm_inverse_sqrt", "greedy")
SEQUENCE_LENGTH = 256
"""Tokens of a row, the recipe's."""
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t, two-sided 95 %, by the number of seeds."""


def train(recipe: Path, seed: int, root: Path, overrides: list[str]) -> tuple[list[Path], Path]:
    """Run a recipe up to its pretraining; return the checkpoints, oldest first, and the problems."""
    loaded = load_recipe(recipe, [f"seed={seed}", *overrides])
    pipeline = Pipeline(loaded, InputFinder(root))
    workspace = Workspace(root / f"seed-{seed}" / loaded.name)
    for step in in_build_order([pipeline.steps["pretrain"]]):
        build(step, workspace)
    pretrained = workspace.path_of(pipeline.steps["pretrain"])
    problems = workspace.path_of(pipeline.steps["datasets/problems"])
    return sorted(pretrained.glob(CHECKPOINTS), key=natural_key), problems


def hold_out(problems: Path, tokenizer: Path, rows: int, folder: Path) -> Path:
    """Pack the problems that the dataset holds out into rows.

    The rows' `validation` split is for choosing, their `train` split, which nothing is trained on, for judging.
    """
    settings = {
        "sources": [{"name": "held_out", "dataset": "problems", "split": "validation", "ratio": 1.0}],
        "budget": {"sequences": rows},
        "sequence_length": SEQUENCE_LENGTH,
        "validation": {"fraction": 0.5},
    }
    finder = InputFinder(folder)
    roles = {"tokenizer": tokenizer, "source:held_out": problems}
    inputs = {role: (finder.local((path,)),) for role, path in roles.items()}
    return build(Step("held-out", mix.STAGE, MixConfig.model_validate(settings), inputs), Workspace(folder))


def judge(checkpoints: list[Path], mixture: Path, out: Path) -> dict[str, Any]:
    """Return candidates' losses on the first half, the one chosen, and the losses on the second half."""
    out.mkdir(parents=True)
    config = SoupConfig.model_validate({"select": "best", "candidates": CANDIDATES})
    soup.run(config, {"members": checkpoints, "validation": [mixture]}, out)
    selection = json.loads((out / "merge_info.json").read_text())["selection"]
    # Greedy's members and its trials have a colon or a space in their names; the candidates have neither.
    losses = {entry["name"]: entry["loss"] for entry in selection["candidates"] if " " not in entry["name"]}
    last, chosen = (validation_loss(model, mixture, split="train") for model in (checkpoints[-1], out))
    return {"losses": losses, "chosen": selection["chosen"], "last": last, "selected": chosen, "gain": chosen - last}


def print_table(results: dict[int, dict[str, Any]]) -> None:
    """Print losses on the first half by candidate and seed, then what the choice is worth on the second half."""
    print("| candidate | " + " | ".join(f"seed {seed}" for seed in results) + " | mean |")
    print("|---" * (len(results) + 2) + "|")
    for name in next(iter(results.values()))["losses"]:
        row = [result["losses"][name] for result in results.values()]
        print(f"| {name} | " + " | ".join(f"{loss:.4f}" for loss in [*row, mean(row)]) + " |")
    print("| chosen | " + " | ".join(result["chosen"] for result in results.values()) + " | |")
    for key in ("last", "selected", "gain"):
        row = [result[key] for result in results.values()]
        print(f"| second half: {key} | " + " | ".join(f"{value:+.5f}" for value in [*row, mean(row)]) + " |")


def main() -> None:
    """Parse, run the seeds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/quickstart.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="two to ten numbers")
    parser.add_argument("--rows", type=int, default=36, help="rows to judge by, at most what half the problems fill")
    parser.add_argument("--first", type=int, help="take only so many checkpoints, as if training had stopped there")
    parser.add_argument("--root", type=Path, help="keep the runs here, for another time")
    options = parser.parse_intermixed_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="soup-quality-") as temporary:
        root = options.root or Path(temporary)
        for seed in map(int, options.seeds.split(",")):
            checkpoints, problems = train(options.recipe, seed, root, options.overrides)
            checkpoints = checkpoints[: options.first]
            scratch = Path(temporary) / str(seed)
            mixture = hold_out(problems, checkpoints[-1], options.rows, scratch)
            results[seed] = judge(checkpoints, mixture, scratch / "soup")
            print(f"seed {seed}: {len(checkpoints)} checkpoints, {json.dumps(results[seed])}", flush=True)
    print_table(results)
    gains = [result["gain"] for result in results.values()]
    half = T_95[len(gains)] * stdev(gains) / math.sqrt(len(gains))
    print(f"selected soup less last checkpoint: {mean(gains):+.4f} ± {half:.4f} nats a token over {len(gains)} seeds")
    print(json.dumps({"name": "soup_quality", "gains": gains, "mean": mean(gains), "half_interval_95": half}))


if __name__ == "__main__":
    main()
