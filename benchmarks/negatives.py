"""What wrong attempts are worth: training on right ones alone beside KTO with both, round after round, from one policy.

    python benchmarks/negatives.py --root DIR [--seeds 1,2,3,4,5] [--arms rft,kto_right,…] [--processes 2]
    python benchmarks/negatives.py --root DIR --tune --seeds 101,102

A model of half a million parameters is pretrained on Countdown (benchmarks/countdown.py). Each arm then goes
through 8 rounds, each with the next 160 problems: it attempts each 16 times, keeps problems that it solved
sometimes and not always, and takes 128 right attempts (dealt problem by problem) and, where the arm learns from
them, 128 wrong ones. Every round has 8 steps. The first round's attempts are the same for all arms of a seed;
later ones are each arm's own, at the same problems. No gate: a round's model is kept whatever it is.

    rft        cross-entropy on right attempts
    kto_right  KTO on right attempts alone
    kto_1      KTO on both, λ_U n_U = λ_D n_D
    kto_025    KTO on both, λ_U n_U = λ_D n_D / 4
    kto_nll    kto_025 with `nll_weight: 1`

Measured after each round: pass@1 and pass@8 of 200 test problems (16 samples at T = 1), the entropy of the sampled
tokens, and right derivations a problem; before, halfway and at the end also pass@64 (64 samples), and pass@1 and
pass@8 of problems of larger numbers. `--tune` runs each arm for four rounds with each learning rate of `TRIED_RATES` on
validation problems; `LEARNING_RATE` holds what was best.

DIR keeps what is finished: an arm of a seed is not run again. Prints each arm's means over seeds, what it gained, and
its differences from RFT on the same problems, with 95 % intervals over seeds (Student's t). Tuning takes half an hour
on two CPU cores, and five seeds an hour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

import ladle
from countdown import Problem, derivation, distinct, draw, facts
from ladle.evaluation.statistics import pass_at_k
from ladle.generation.request import mean_entropy
from results import half_interval

NUMBERS, LARGEST = 3, 20
DOCUMENTS, ROUNDS, PROMPTS, SAMPLES, ROWS, STEPS = 60_000, 8, 160, 16, 128, 8
TESTED = 200
CURVE_ROUNDS = (0, ROUNDS // 2, ROUNDS)
"""Rounds after which pass@64 and other problems are measured."""
ELSEWHERE = {"larger_numbers": (NUMBERS, 2 * LARGEST)}
SAMPLING: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 64, "batch_size": 512}
KTO: dict[str, Any] = {"beta": 0.1, "max_length": 160}
ARMS: dict[str, dict[str, Any]] = {
    "rft": {},
    "kto_right": {"allow_single_label": True},
    "kto_1": {"undesirable_weight": 1.0},
    "kto_025": {"undesirable_weight": 0.25},
    "kto_nll": {"undesirable_weight": 0.25, "nll_weight": 1.0},
}
WITHOUT_WRONG = ("rft", "kto_right")
TRIED_RATES = (1e-5, 3e-5, 1e-4, 3e-4)
LEARNING_RATE = {"rft": 1e-4, "kto_right": 1e-4, "kto_1": 1e-5, "kto_025": 1e-4, "kto_nll": 1e-4}
"""Of each arm: the best mean pass@1 of seeds 101 and 102 after four rounds. 1e-5 was tried for kto_1 alone."""

POLICY = """
name: policy
base:
  init:
    architecture: {model_type: llama, hidden_size: 96, intermediate_size: 288, num_hidden_layers: 4,
      num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 256, tie_word_embeddings: true}
    tokenizer: {dataset: ROOT/worked.jsonl, vocab_size: 300}
mix:
  sources:
    - {name: worked, dataset: ROOT/worked.jsonl, ratio: 0.7}
    - {name: facts, dataset: ROOT/facts.jsonl, ratio: 0.3}
  budget: {sequences: 18_000}
  sequence_length: 256
pretrain:
  trainer: {max_steps: 1_500, per_device_train_batch_size: 12, learning_rate: 3e-3, lr_scheduler_type: cosine,
    warmup_steps: 30, weight_decay: 0.01, adam_beta2: 0.98, max_grad_norm: 1.0, logging_steps: 100, save_strategy: no}
"""


def make_policy(seed: int, root: Path) -> Path:
    """Pretrain the policy of a seed; return its folder."""
    root.mkdir(parents=True, exist_ok=True)
    solved = draw(f"worked {seed}", NUMBERS, LARGEST)
    worked = (problem.prompt + solution for problem, solution in solved if problem.pool == "worked")
    write_rows(root / "worked.jsonl", ({"text": text} for text in islice(worked, DOCUMENTS)))
    write_rows(
        root / "facts.jsonl", ({"text": text} for text in islice(facts(f"facts {seed}", LARGEST, 8), DOCUMENTS // 4))
    )
    recipe = root / "policy.yaml"
    recipe.write_text(POLICY.replace("ROOT", str(root)))
    return ladle.open(recipe, {"seed": seed}, root).build("pretrain").model


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def attempt(model: Path, problems: Sequence[Problem], samples: int, seed: int) -> list[list[Any]]:
    """Return a model's samples of each problem."""
    return ladle.generate(model, [one.prompt for one in problems], samples=samples, seed=seed, **SAMPLING)


def choose_rows(problems: Sequence[Problem], attempts: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return as many right as wrong attempts, dealt problem by problem from those that were solved now and then."""
    decks: dict[bool, list[list[dict[str, Any]]]] = {True: [], False: []}
    for problem, samples in zip(problems, attempts, strict=True):
        finished = [one for one in samples if one.finish_reason == "eos"]
        labels = [derivation(problem, one.text) is not None for one in finished]
        if len(set(labels)) == 2:
            for label, deck in decks.items():
                texts = dict.fromkeys(
                    one.text for one, is_right in zip(finished, labels, strict=True) if is_right is label
                )
                deck.append([{"prompt": problem.prompt, "completion": text, "label": label} for text in texts])
    dealt = []
    for deck in decks.values():
        deepest = max(map(len, deck), default=0)
        dealt += [pile[at] for at in range(deepest) for pile in deck if at < len(pile)][:ROWS]
    return dealt


def train(arm: str, rate: float, model: Path, rows: list[dict[str, Any]], seed: int, folder: Path) -> Path:
    """Train a model for one round; return the folder of the result."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = [row for row in rows if row["label"] or arm not in WITHOUT_WRONG]
    write_rows(folder / "rows.jsonl", iter(kept))
    section: dict[str, Any] = {"model": "base", "data": [{"dataset": str(folder / "rows.jsonl")}]}
    section["trainer"] = {
        "max_steps": STEPS, "per_device_train_batch_size": max(1, len(kept) // STEPS), "learning_rate": rate,
        "lr_scheduler_type": "linear", "warmup_steps": 0.1, "weight_decay": 0.0, "logging_steps": 4,
        "save_strategy": "no",
    }  # fmt: skip
    section |= {"max_length": KTO["max_length"]} if arm == "rft" else KTO | ARMS[arm]
    stage = "sft" if arm == "rft" else "kto"
    recipe = folder / "round.yaml"
    recipe.write_text(yaml.safe_dump({"name": "round", "seed": seed, "base": {"model": str(model)}, stage: section}))
    return ladle.open(recipe, root=folder).build(stage).model


def measure(model: Path, problems: Sequence[Problem], samples: int, ks: Sequence[int]) -> dict[str, Any]:
    """Return a model's pass@k by problem, the entropy of its tokens and its right derivations a problem."""
    attempts = attempt(model, problems, samples, seed=7)
    found = [[derivation(problem, one.text) for one in own] for problem, own in zip(problems, attempts, strict=True)]
    right = [sum(one is not None for one in own) for own in found]
    result: dict[str, Any] = {f"pass@{k}": [pass_at_k(count, samples, k) for count in right] for k in ks}
    result["entropy"] = mean_entropy(one for own in attempts for one in own)
    result["derivations"] = [len({one for one in own[:16] if one is not None}) for own in found]
    return result


def run_arm(arm: str, seed: int, root: Path, rate: float, rounds: int, tunes: bool) -> dict[str, Any]:
    """Return what an arm of a seed measured, by round; from its file if it is finished."""
    folder = root / f"seed-{seed}" / (f"{arm}-{rate:g}" if tunes else arm)
    if (file := folder / "result.json").is_file():
        return json.loads(file.read_text())
    model = make_policy(seed, root / f"seed-{seed}" / "policy")
    fresh = distinct(f"prompts {seed}", ROUNDS * PROMPTS, NUMBERS, LARGEST, "prompts")
    pool = "validation" if tunes else "test"
    tested = distinct(pool, TESTED, NUMBERS, LARGEST, pool)
    elsewhere = {name: distinct(name, TESTED, *shape, "test") for name, shape in ELSEWHERE.items()}
    measured: list[dict[str, Any]] = []
    for number in range(rounds + 1):
        if number:
            problems = fresh[(number - 1) * PROMPTS : number * PROMPTS]
            rows = choose_rows(problems, attempt(model, problems, SAMPLES, seed=1000 * seed + number))
            model = train(arm, rate, model, rows, seed, folder / f"round-{number}")
        is_curve = number in CURVE_ROUNDS and not tunes
        found = measure(model, tested, 64 if is_curve else 16, (1, 8, 64) if is_curve else (1, 8))
        if number:
            found["rows"] = {label: sum(row["label"] is label for row in rows) for label in (True, False)}
        if is_curve:
            found["elsewhere"] = {name: measure(model, those, 16, (1, 8)) for name, those in elsewhere.items()}
        measured.append(found)
        print(f"{arm} seed {seed} rate {rate:g} round {number}: {summary(found)}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"arm": arm, "seed": seed, "rate": rate, "rounds": measured}))
    return json.loads(file.read_text())


def summary(found: dict[str, Any]) -> str:
    """Return one round's means in a line."""
    parts = [f"{name} {100 * fmean(values):.1f}" for name, values in found.items() if name.startswith("pass")]
    parts += [f"{name} pass@1 {100 * fmean(those['pass@1']):.1f}" for name, those in found.get("elsewhere", {}).items()]
    return ", ".join([*parts, f"entropy {found['entropy']:.3f}", f"derivations {fmean(found['derivations']):.2f}"])


def interval(values: Sequence[float]) -> str:
    """Return a mean with the half width of its 95 % interval over seeds, in percent."""
    if len(values) < 2:
        return f"{100 * fmean(values):+.1f}"
    return f"{100 * fmean(values):+.1f} ± {100 * half_interval(values):.1f}"


def look_up(result: dict[str, Any], number: int, place: str) -> float:
    """Return the mean over problems of one measure, such as `elsewhere.four_numbers.pass@1`, after a round."""
    found: Any = result["rounds"][number]
    for name in place.split("."):
        found = found[name]
    return fmean(found) if isinstance(found, list) else float(found)


def print_tables(results: list[dict[str, Any]]) -> None:
    """Print means over seeds by arm and round, and differences from RFT at the end."""
    arms = {arm: [one for one in results if one["arm"] == arm] for arm in dict.fromkeys(one["arm"] for one in results)}
    last = len(results[0]["rounds"]) - 1
    print(f"| pass@1 after round | {' | '.join(map(str, range(last + 1)))} |\n{'|---' * (last + 2)}|")
    for arm, own in arms.items():
        means = (fmean(look_up(one, number, "pass@1") for one in own) for number in range(last + 1))
        print(f"| {arm} | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |")
    places = [
        "pass@1",
        "pass@8",
        "pass@64",
        *(f"elsewhere.{name}.{k}" for name in ELSEWHERE for k in ("pass@1", "pass@8")),
    ]
    for number in CURVE_ROUNDS:
        print(
            f"\n| after round {number} | {' | '.join(places)} | entropy | derivations |\n{'|---' * (len(places) + 3)}|"
        )
        for arm, own in arms.items():
            means = (f"{100 * fmean(look_up(one, number, place) for one in own):.1f}" for place in places)
            rest = (fmean(look_up(one, number, place) for one in own) for place in ("entropy", "derivations"))
            print(f"| {arm} | {' | '.join(means)} | {' | '.join(f'{mean:.3f}' for mean in rest)} |")
    rft = {one["seed"]: (one, last) for one in arms.get("rft", [])}
    gains = {arm: [((one, last), (one, 0)) for one in own] for arm, own in arms.items()}
    to_rft = {
        arm: [((one, last), rft[one["seed"]]) for one in own if one["seed"] in rft]
        for arm, own in arms.items()
        if arm != "rft"
    }
    for title, compared in (("gain", gains), ("less rft", to_rft)):
        print(f"\n| {title}, after round {last} | {' | '.join(places)} |\n{'|---' * (len(places) + 1)}|")
        for arm, pairs in compared.items():
            cells = (
                [look_up(*one, place) - look_up(*other, place) for one, other in pairs] for place in places if pairs
            )
            print(f"| {arm} | {' | '.join(interval(values) for values in cells)} |")


def main() -> None:
    """Run what is not finished, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="keep the runs here")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--processes", type=int, default=2, help="arms that run side by side")
    parser.add_argument("--rounds", type=int, default=None, help=f"{ROUNDS}, and 4 with --tune")
    parser.add_argument("--tune", action="store_true", help="find each arm's learning rate")
    options = parser.parse_args()
    seeds, arms, root = (
        [int(seed) for seed in options.seeds.split(",")],
        options.arms.split(","),
        options.root.resolve(),
    )
    rounds = options.rounds or (4 if options.tune else ROUNDS)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for made in [pool.submit(make_policy, seed, root / f"seed-{seed}" / "policy") for seed in seeds]:
            made.result()
        tasks = [
            pool.submit(run_arm, arm, seed, root, rate, rounds, options.tune)
            for seed in seeds
            for arm in arms
            for rate in (TRIED_RATES if options.tune else (LEARNING_RATE[arm],))
        ]
        results = [task.result() for task in tasks]
    if options.tune:
        for arm in arms:
            for rate in TRIED_RATES:
                own = [one for one in results if (one["arm"], one["rate"]) == (arm, rate)]
                shares = (f"{100 * look_up(one, rounds, 'pass@1'):.1f}" for one in own)
                print(f"{arm} {rate:g}: pass@1 {', '.join(shares)}")
    else:
        print_tables(results)


if __name__ == "__main__":
    main()
