"""What soup, RFT and KTO each add in the quickstart, seed by seed, and what a cosine reaches with the same tokens.

    python benchmarks/quickstart_gain.py [--seeds 233,1,2,3,4,5] [--root DIR]

Each seed runs recipes/quickstart.yaml as it is, and its pretraining once more with the learning rate falling along a
cosine, from 5e-3. All answer the same 1,000 problems, whose numbers no training saw. ROOT keeps the runs, and finished
steps are used as they are.

Prints accuracies, differences and McNemar's p (exact, two-sided) as a table, and a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import ladle

QUICKSTART = Path("recipes/quickstart.yaml")
COSINE = {"pretrain.trainer.lr_scheduler_type": "cosine", "pretrain.trainer.learning_rate": 5e-3}
MODELS = ("base", "pretrained", "soup", "rft", "kto")
DIFFERENCES = (("pretrained", "soup"), ("cosine", "soup"), ("soup", "rft"), ("soup", "kto"))


def run_seed(seed: int, root: Path) -> dict[str, Any]:
    """Return the accuracies of one seed, and the paired differences."""
    run = ladle.open(QUICKSTART, overrides={"seed": seed}, root=root)
    folders = {name: run.build(f"evaluate/{name}").path for name in MODELS}
    decayed = ladle.open(QUICKSTART, overrides={"seed": seed, **COSINE}, root=root)
    folders["cosine"] = decayed.build("evaluate/pretrained").path
    result: dict[str, Any] = {}
    for first, second in DIFFERENCES:
        paired = ladle.compare(folders[first], folders[second]).overall
        result |= {first: paired.first, second: paired.second}
        result[f"{second} - {first}"] = {"difference": paired.difference, "p": paired.p_value, "n": paired.n}
    result["base"] = run.scores["base"]["word_problems"].accuracy
    return result


def print_table(results: dict[int, dict[str, Any]]) -> None:
    """Print a line a seed, and the medians."""
    names = ["base", "pretrained", "cosine", "soup", "rft", "kto"]
    pairs = [f"{second} - {first}" for first, second in DIFFERENCES]
    print(f"| seed | {' | '.join(names)} | {' | '.join(pairs)} |")
    print("|---" * (1 + len(names) + len(pairs)) + "|")
    for seed, result in results.items():
        accuracies = " | ".join(f"{result[name]:.1%}" for name in names)
        found = (result[pair] for pair in pairs)
        differences = " | ".join(f"{100 * one['difference']:+.1f} (p = {one['p']:.1g})" for one in found)
        print(f"| {seed} | {accuracies} | {differences} |")
    accuracies = " | ".join(f"{median(result[name] for result in results.values()):.1%}" for name in names)
    middles = (100 * median(result[pair]["difference"] for result in results.values()) for pair in pairs)
    print(f"| median | {accuracies} | {' | '.join(f'{middle:+.1f}' for middle in middles)} |")


def main() -> None:
    """Run the seeds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="233,1,2,3,4,5")
    parser.add_argument("--root", type=Path, help="keep the runs here")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="quickstart-gain-") as temporary:
        for seed in map(int, options.seeds.split(",")):
            results[seed] = run_seed(seed, (options.root or Path(temporary)) / f"seed-{seed}")
            print(f"seed {seed}: {json.dumps(results[seed])}", flush=True)
    print_table(results)
    print(json.dumps({"name": "quickstart_gain", "results": results}))


if __name__ == "__main__":
    main()
