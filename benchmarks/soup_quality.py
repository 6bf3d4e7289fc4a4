"""What averaging the last checkpoints of a training at a constant rate is worth, beside letting the rate decay.

    python benchmarks/soup_quality.py [--seeds 1,2,3,4,5] [--root DIR] [--processes 2] [--without-kto]

Each seed pretrains the quickstart's model three times over the same 1,000 batches: at a constant rate, along a
cosine (from 5e-3), and with the rate constant for 800 steps and then falling to zero as 1 - sqrt (WSD). Of the
constant one's checkpoints, `uniform` and `wsm_inverse_sqrt` means are made of n = 2, 4, 8, 16 over the last 10, 20
and 40 % of the steps (the newest always among them). All are scored by their loss on problems that the mixture
holds out. Then KTO (two rounds of recipes/kto-rounds.yaml) starts from the last constant-rate checkpoint, from the
soup whose mean loss over *all* seeds is lowest, from cosine and from WSD, and all answer 1,000 test problems at T
= 0.6.

Prints losses and accuracies, and differences paired by seed with 95 % intervals over seeds (Student's t). DIR
keeps the runs, and finished steps are used as they are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import ladle
from ladle.training.pretrain import validation_loss
from results import half_interval

QUICKSTART, ROUNDS = Path("recipes/quickstart.yaml"), Path("recipes/kto-rounds.yaml")
STEPS, SPACING = 1_000, 5
HELD_OUT = {"mix.validation": {"fraction": 0.02}}
SCHEDULES = {
    "constant": {
        "pretrain.trainer.save_steps": SPACING,
        "pretrain.trainer.save_total_limit": 2,
        "pretrain.keep_models": 90,
    },
    "cosine": {"pretrain.trainer.lr_scheduler_type": "cosine", "pretrain.trainer.learning_rate": 5e-3},
    "wsd": {
        "pretrain.trainer.lr_scheduler_type": "warmup_stable_decay",
        "pretrain.trainer.lr_scheduler_kwargs": {"num_decay_steps": STEPS // 5, "decay_type": "1-sqrt"},
    },
}
METHODS, WINDOWS, COUNTS = ("uniform", "wsm_inverse_sqrt"), (10, 20, 40), (2, 4, 8, 16)


def members(checkpoints: Sequence[Path], window: int, count: int) -> list[Path]:
    """Return so many checkpoints, evenly over the last `window` percent of the steps, oldest first."""
    by_step = {int(path.name.rpartition("-")[2]): path for path in checkpoints}
    steps = [STEPS - round(number * STEPS * window / 100 / count / SPACING) * SPACING for number in range(count)]
    return [by_step[step] for step in reversed(steps)]


def mix(seed: int, root: Path) -> Path:
    """Build the mixture that all schedules of a seed share."""
    return ladle.open(QUICKSTART, {"seed": seed, **HELD_OUT}, root / f"seed-{seed}").build("mix").path


def train(seed: int, schedule: str, root: Path) -> ladle.Artifact:
    """Pretrain along one schedule."""
    settings = {"seed": seed, **HELD_OUT, **SCHEDULES[schedule]}
    return ladle.open(QUICKSTART, settings, root / f"seed-{seed}").build("pretrain")


def models_of(seed: int, root: Path) -> dict[str, Path]:
    """Return every model of a seed by name, soups included."""
    trained = {schedule: train(seed, schedule, root) for schedule in SCHEDULES}
    models = {schedule: one.model for schedule, one in trained.items()}
    for method in METHODS:
        for window in WINDOWS:
            for count in COUNTS:
                own = members(trained["constant"].checkpoints, window, count)
                name = f"{method} {count} of {window} %"
                models[name] = ladle.soup(own, root=root / f"seed-{seed}", method=method).path
    return models


def score(seed: int, root: Path) -> dict[str, float]:
    """Return each model's loss on what the mixture holds out, in nats per token; kept in a file."""
    file = root / f"seed-{seed}" / "losses.json"
    if not file.is_file():
        losses = {name: validation_loss(model, mix(seed, root)) for name, model in models_of(seed, root).items()}
        file.write_text(json.dumps(losses))
        print(f"seed {seed}: {json.dumps(losses)}", flush=True)
    return json.loads(file.read_text())


def align(seed: int, start: str, root: Path) -> tuple[float, float]:
    """Return the accuracies before and after KTO from one start."""
    settings = {"seed": seed, "base.model": str(models_of(seed, root)[start]), "kto.rounds": 2}
    settings |= {"rollout.prompts.limit": 2_000, "datasets.problems.prompts": 4_000, "datasets.problems.test": 1_000}
    run = ladle.open(ROUNDS, settings, root / f"seed-{seed}" / start.replace(" ", "-").replace("%", "percent"))
    before, after = (run.build(f"evaluate/{name}") for name in ("base", "kto"))
    found = before["word_problems"].accuracy, after["word_problems"].accuracy
    print(f"seed {seed}, from {start}: {found[0]:.1%} to {found[1]:.1%}", flush=True)
    return found


def difference(values: Sequence[float], others: Sequence[float], scale: float = 1.0, digits: int = 4) -> str:
    """Return the mean difference with the half width of its 95 % interval over seeds."""
    pairs = [scale * (one - other) for one, other in zip(values, others, strict=True)]
    half = half_interval(pairs)
    return f"{fmean(pairs):+.{digits}f} ± {half:.{digits}f}"


def main() -> None:
    """Run the seeds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4,5", help="two to ten numbers")
    parser.add_argument("--root", type=Path, help="keep the runs here, for another time")
    parser.add_argument("--processes", type=int, default=2, help="trainings that run side by side")
    parser.add_argument("--without-kto", action="store_true", help="losses alone")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with (
        tempfile.TemporaryDirectory(prefix="soup-quality-") as temporary,
        ProcessPoolExecutor(options.processes, get_context("spawn")) as pool,
    ):
        root = (options.root or Path(temporary)).resolve()
        for mixed in [pool.submit(mix, seed, root) for seed in seeds]:
            mixed.result()
        for trained in [pool.submit(train, seed, name, root) for seed in seeds for name in SCHEDULES]:
            trained.result()
        scored = [pool.submit(score, seed, root) for seed in seeds]
        losses = {name: [one.result()[name] for one in scored] for name in scored[0].result()}
        print(f"| model | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | less the last | less cosine |")
        print("|---" * (len(seeds) + 4) + "|")
        for name, row in losses.items():
            less = " | ".join(difference(row, losses[other]) for other in ("constant", "cosine"))
            print(f"| {name} | {' | '.join(f'{loss:.4f}' for loss in row)} | {fmean(row):.4f} | {less} |")
        if options.without_kto:
            return
        best = min((name for name in losses if name not in SCHEDULES), key=lambda name: fmean(losses[name]))
        starts = ["constant", best, "cosine", "wsd"]
        tasks = {(seed, start): pool.submit(align, seed, start, root) for seed in seeds for start in starts}
        found = {start: [tasks[seed, start].result() for seed in seeds] for start in starts}
        print(
            f"\n| start | before, after by seed | mean before | mean after | after, less from cosine |\n{'|---' * 5}|"
        )
        for start, pairs in found.items():
            befores, afters = zip(*pairs, strict=True)
            less = difference(afters, [after for _, after in found["cosine"]], 100, 1)
            each = ", ".join(f"{100 * before:.1f} → {100 * after:.1f}" for before, after in pairs)
            print(f"| {start} | {each} | {fmean(befores):.1%} | {fmean(afters):.1%} | {less} |")
        print(json.dumps({"name": "soup_quality", "losses": losses, "best": best, "aligned": found}))


if __name__ == "__main__":
    main()
