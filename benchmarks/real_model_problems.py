"""Problems for recipes/real-model.yaml: one operation on two numbers, from ASDiv and MAWPS, and as another set SVAMP.

    python benchmarks/real_model_problems.py --data DIR --out DIR [--seed 233]

DIR holds asdiv.jsonl (body, question, answer), mawps.jsonl (input, target) and svamp.jsonl (Body, Question, Answer),
as Qwen2.5-Math's evaluation harness has them. A problem is kept if its text has two numbers, both whole, up to
50 and written in digits, and its answer is their sum, difference, product or quotient.

Problems that differ in their numbers alone, or are in two of the sets, go into one split: a keyed hash of the text
without its numbers decides, so that no held-out problem has a sibling that was trained on. Each file is in the order of
another hash. Written: train.jsonl (all for rollouts), test.jsonl, other.jsonl, and examples.jsonl, three problems of
other operations with worked lines.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

LARGEST = 50
HELD_OUT_PERCENT = 35
EXAMPLES = [
    ("There are 9 cars in the lot and 4 more arrive. How many cars are in the lot?", "9 + 4 = 13"),
    ("Mia had 17 pens and gave 5 of them to Tom. How many pens does Mia have left?", "17 - 5 = 12"),
    ("Each box holds 6 eggs. How many eggs are in 3 boxes?", "6 * 3 = 18"),
]


def operation(numbers: list[float], answer: float) -> str | None:
    """Return the operation that makes the answer of two numbers; None if there is none, or more than one."""
    first, second = numbers
    results = {"+": {first + second}, "-": {first - second, second - first}, "*": {first * second}}
    results["/"] = {one / other for one, other in ((first, second), (second, first)) if other}
    found = [sign for sign, values in results.items() if answer in values]
    return found[0] if len(found) == 1 else None


def usable(text: str, answer: float, source: str) -> dict[str, Any] | None:
    """Return a row for a problem of one operation on two whole numbers up to `LARGEST`, else None."""
    text = re.sub(r"\s+", " ", text.replace(" ?", "?").replace(" .", ".")).strip()
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    if len(numbers) != 2 or any(number > LARGEST or number % 1 for number in numbers) or answer % 1 or answer < 0:
        return None
    sign = operation(numbers, answer)
    if sign is None:
        return None
    return {"question": text, "answer": str(int(answer)), "operation": sign, "source": source}


def read(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield the usable problems of one set."""
    for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if name == "asdiv":
            value = re.match(r"-?\d+(\.\d+)?(?= |$|\()", row["answer"])
            found = value and usable(f"{row['body']} {row['question']}", float(value[0]), name)
        elif name == "mawps":
            found = usable(row["input"], row["target"], name)
        else:
            found = usable(f"{row['Body'].rstrip('.')}. {row['Question']}", row["Answer"], name)
        if found:
            yield found


def place(text: str, seed: int, what: str) -> int:
    """Return a number that only the text, the seed and the purpose decide."""
    return int.from_bytes(blake3(f"{seed} {what} {text}".encode()).digest(8), "little")


def main() -> None:
    """Write the files and print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=233)
    options = parser.parse_args()
    splits: dict[str, dict[str, dict[str, Any]]] = {"train": {}, "test": {}, "other": {}}
    for name in ("asdiv", "mawps", "svamp"):
        for row in read(options.data, name):
            shape = re.sub(r"\W+", " ", re.sub(r"\d+", "#", row["question"].lower()))
            is_held_out = place(shape, options.seed, "split") % 100 < HELD_OUT_PERCENT
            split = "other" if name == "svamp" else "test" if is_held_out else "train"
            splits[split].setdefault(shape, row)
    for shape in splits["train"].keys() & splits["other"]:
        del splits["other"][shape]
    options.out.mkdir(parents=True, exist_ok=True)
    shown = [
        {"question": question, "answer": f"{line}. The answer is {line.split()[-1]}."} for question, line in EXAMPLES
    ]
    files = {"examples": shown}
    for split, rows in splits.items():
        files[split] = [rows[shape] for shape in sorted(rows, key=lambda shape: place(shape, options.seed, "order"))]
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (options.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        counts = {sign: sum(row.get("operation") == sign for row in rows) for sign in "+-*/"}
        print(f"{name}: {len(rows)} problems {counts if name != 'examples' else ''}")


if __name__ == "__main__":
    main()
