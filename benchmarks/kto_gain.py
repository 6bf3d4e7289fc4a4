"""What rollouts with KTO add to an unfinished policy, beside the same training on right attempts alone.

    python benchmarks/kto_gain.py [RECIPE] [--seeds 6,7,8,9,10] [--least 0.55] [--root DIR] [--only-kto]
        [KEY=VALUE…]

For each seed the quickstart's model is pretrained for 1,400 steps along a cosine (ROOT/seed-N keeps the runs, and
finished ones are used as they are). The policy is its earliest checkpoint that solves the share `--least` of the
validation problems, greedily. RECIPE aligns it twice: unchanged, and with the undesirable attempts left out. Policy
and results then answer the test problems, greedily and at T = 0.6. Training prompts, gate problems and test problems
share no operands, nor do the last two with the pretraining data; that is checked over the files.

Prints each seed's accuracies, gains and McNemar's p (exact, two-sided).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from ladle.artifacts.build import Workspace, build
from ladle.artifacts.inputs import InputFinder, natural_key
from ladle.artifacts.step import in_build_order
from ladle.errors import CheckFailed
from ladle.evaluation.compare import compare_runs
from ladle.pipeline import CHECKPOINTS, Pipeline
from ladle.recipe import load_recipe
from ladle.rollouts.config import GateConfig
from ladle.rollouts.rollout import attempt_problems

QUICKSTART = Path("recipes/quickstart.yaml")
PROBLEMS = "datasets.problems.largest_operand=10"
"""Harder ones than the quickstart's of today."""
PRETRAINING = [
    PROBLEMS, "pretrain.trainer.max_steps=1400", "pretrain.trainer.lr_scheduler_type=cosine",
    "pretrain.trainer.learning_rate=5e-3", "pretrain.trainer.save_steps=25", "datasets.problems.prompts=1000",
    "datasets.problems.validation=400", "mix.sources=[{name: worked, dataset: problems, split: worked, ratio: 0.9}, "
    "{name: facts, dataset: problems, split: facts, ratio: 0.1, max_epochs: 12}]",
]  # fmt: skip
"""The policies come from a longer training than the quickstart's, on worked solutions and facts alone."""
ONLY_RIGHT = ["kto.data=[{dataset: rollouts, keep_label: true}]", "kto.balance=false", "kto.allow_single_label=true"]
ARMS = {"kto": [], "right attempts alone": ONLY_RIGHT}
TEMPERATURES = {"greedy": 0.0, "T=0.6": 0.6}
TRAINED_ON = ("worked", "worksheets", "prompts", "examples")


def run(recipe: Path, overrides: list[str], root: Path, only: str | None = None) -> dict[str, Path]:
    """Run a recipe, or one step of it with what that needs; return each step's folder."""
    loaded = load_recipe(recipe, overrides)
    pipeline = Pipeline(loaded, InputFinder(root))
    workspace = Workspace(root / loaded.name)
    wanted = [pipeline.steps[only]] if only else list(pipeline.steps.values())
    return {step.name: build(step, workspace) for step in in_build_order(wanted)}


def choose_policy(pretrained: dict[str, Path], least: float) -> Path:
    """Return the earliest checkpoint that solves `least` of the validation problems, by halving."""
    checkpoints = sorted(pretrained["pretrain"].glob(CHECKPOINTS), key=natural_key)
    low, high = 0, len(checkpoints) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if solved(checkpoints[middle], pretrained) >= least else (middle + 1, high)
    return checkpoints[low]


def solved(model: Path, pretrained: dict[str, Path]) -> float:
    """Return the share of the quickstart's validation problems that a model solves greedily."""
    source = {"dataset": "problems", "split": "validation"}
    settings = {"prompts": source, "prompt": "cot", "max_new_tokens": 64, "batch_size": 256}
    inputs = {"prompts": [pretrained["datasets/problems"]]}
    with tempfile.TemporaryDirectory() as folder:
        config = GateConfig.model_validate(settings)
        attempts, _ = attempt_problems(config, inputs, model, Path(folder), "policy")
    return sum(attempt.verdict == "correct" for attempt in attempts) / len(attempts)


def check_disjoint(pretraining: Path, alignment: Path) -> None:
    """Refuse problems that are tested on, or gated by, and seen elsewhere."""

    def operands(folder: Path, split: str) -> set[tuple[int, ...]]:
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        found = [row["operands"] if split == "worksheets" else [row["operands"]] for row in rows]
        return {tuple(one) for each in found for one in each}

    seen = set.union(*(operands(folder, split) for folder in (pretraining, alignment) for split in TRAINED_ON))
    gate, test = operands(alignment, "validation"), operands(alignment, "test")
    if shared := (gate & test) | (seen & (gate | test)):
        raise CheckFailed(f"{len(shared)} operand tuples of held-out problems occur elsewhere, such as {min(shared)}")


def align(recipe: Path, policy: Path, seed: int, root: Path, overrides: list[str]) -> dict[str, Any]:
    """Align a policy and return what each temperature's test says, and which rounds the gate kept."""
    result: dict[str, Any] = {}
    for name, temperature in TEMPERATURES.items():
        settings = [
            f"seed={seed}",
            PROBLEMS,
            f"base.model={policy}",
            f"evaluate.sampling.temperature={temperature}",
            *overrides,
        ]
        folders = run(recipe, settings, root)
        paired = compare_runs(folders["evaluate/base"], folders["evaluate/kto"]).overall
        result[name] = {"n": paired.n, "policy": paired.first, "aligned": paired.second, "p": paired.p_value}
        gates = [folder for step, folder in sorted(folders.items()) if step.startswith("kto/gate")] + [folders["kto"]]
        verdicts = [json.loads((gate / "gate.json").read_text()) for gate in gates if (gate / "gate.json").is_file()]
        result["rounds_kept"] = [verdict["kept"] == "candidate" for verdict in verdicts]
        result["problems"] = str(folders["datasets/problems"])
    return result


def run_seed(
    recipe: Path, seed: int, least: float, root: Path, overrides: list[str], arms: dict[str, list[str]]
) -> dict[str, Any]:
    """Return the results of the arms of one seed."""
    pretrained = run(QUICKSTART, [f"seed={seed}", *PRETRAINING], root, only="pretrain")
    policy = choose_policy(pretrained, least)
    results: dict[str, Any] = {"policy": policy.name}
    for arm, changes in arms.items():
        results[arm] = align(recipe, policy, seed, root, [*overrides, *changes])
        check_disjoint(pretrained["datasets/problems"], Path(results[arm].pop("problems")))
    return results


def print_table(results: dict[int, dict[str, Any]]) -> None:
    """Print a line a seed, arm and temperature."""
    print("| seed | policy | training | sampling | n | before | after | gain | p | rounds kept |")
    print("|---" * 10 + "|")
    for seed, result in results.items():
        for arm in filter(result.__contains__, ARMS):
            for name in TEMPERATURES:
                seen = result[arm][name]
                gain = 100 * (seen["aligned"] - seen["policy"])
                kept = sum(result[arm]["rounds_kept"])
                print(
                    f"| {seed} | {result['policy']} | {arm} | {name} | {seen['n']} | {100 * seen['policy']:.1f} "
                    f"| {100 * seen['aligned']:.1f} | {gain:+.1f} | {seen['p']:.1g} | {kept} |"
                )


def main() -> None:
    """Parse, run the seeds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=Path("recipes/kto-rounds.yaml"))
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", default="6,7,8,9,10")
    parser.add_argument("--least", type=float, default=0.55, help="share of the validation problems a policy solves")
    parser.add_argument("--root", type=Path, help="keep the runs here, for another time")
    parser.add_argument("--only-kto", action="store_true", help="without the training on right attempts alone")
    options = parser.parse_intermixed_args()
    arms = {"kto": ARMS["kto"]} if options.only_kto else ARMS
    results = {}
    with tempfile.TemporaryDirectory(prefix="kto-gain-") as temporary:
        root = options.root or Path(temporary)
        for seed in map(int, options.seeds.split(",")):
            folder = root / f"seed-{seed}"
            results[seed] = run_seed(options.recipe, seed, options.least, folder, options.overrides, arms)
            print(f"seed {seed}: {json.dumps(results[seed])}", flush=True)
    print_table(results)
    print(json.dumps({"name": "kto_gain", "results": results}))


if __name__ == "__main__":
    main()
