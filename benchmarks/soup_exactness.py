"""Compare every element of whole-model soups with the mean in float64, and their bytes over orders of the members.

    python benchmarks/soup_exactness.py [--shape llama-0.45b] [--counts 2,3,7,8] [--formats BF16,F16,F32] [--work DIR]

For each format and number of members the soup is made in three orders of the members; all must have the same bytes.
Then each element is held against the float64 mean: it is right when no neighbour is nearer, and on a tie when its last
bit is 0. A float64 sum of members that drifted apart as checkpoints do is exact, and its quotient is 2^-53 off at most,
less than the distance to any tie that it is not on.

Members are made by soup_members.py in bf16; for the other formats they are converted, fp32 with a noise of 1e-5 that
fills the lower bits.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ladle.soups.config import SoupConfig
from ladle.soups.mean import FLOATS, decode
from ladle.soups.members import make_header, read_header
from ladle.stages.soup import run

HERE = Path(__file__).parent
FILE = "model.safetensors"
NUM_ORDERS = 3
BITS = {"BF16": np.dtype("u2"), "F16": np.dtype("u2"), "F32": np.dtype("u4")}
PIECE = 2**21
"""Elements compared at a time."""


def to_float64(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Return the numbers that these bits stand for."""
    return decode(bits.tobytes(), dtype).astype(np.float64)


def convert(member: Path, folder: Path, dtype: str, seed: int) -> Path:
    """Write a bf16 member in another format."""
    shutil.copytree(member, folder, ignore=shutil.ignore_patterns(FILE))
    header, source = read_header(member / FILE), np.memmap(member / FILE, np.uint8, "r")
    rng = np.random.default_rng(seed)
    dtypes = {name: dtype if tensor.dtype == "BF16" else tensor.dtype for name, tensor in header.tensors.items()}
    with (folder / FILE).open("wb") as file:
        tensors = {}
        for name, tensor in header.tensors.items():
            is_float = dtypes[name] in FLOATS
            size_bytes = tensor.num_elements * FLOATS[dtypes[name]].itemsize if is_float else tensor.size_bytes
            tensors[name] = dtypes[name], tensor.shape, size_bytes
        file.write(make_header(tensors, {"format": "pt"}).raw)
        for tensor in header.tensors.values():
            for start in range(tensor.start, tensor.stop, 2 * PIECE):
                raw = source[start : min(start + 2 * PIECE, tensor.stop)]
                file.write(_converted(raw, dtype, rng) if tensor.dtype == "BF16" else raw.tobytes())
    return folder


def _converted(raw: np.ndarray, dtype: str, rng: np.random.Generator) -> bytes:
    values = decode(raw.tobytes(), "BF16")
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    return (values * (1 + np.float32(1e-5) * rng.standard_normal(values.size, np.float32))).tobytes()


def count_wrong(members: list[Path], out: Path) -> tuple[int, int]:
    """Return how many elements of a soup are not the float64 mean rounded once, and how many it has."""
    header = read_header(out / FILE)
    files = [np.memmap(folder / FILE, np.uint8, "r") for folder in (out, *members)]
    headers = [header, *(read_header(member / FILE) for member in members)]
    wrong = total = 0
    for name, tensor in header.tensors.items():
        size = FLOATS[tensor.dtype].itemsize
        for start in range(0, tensor.num_elements, PIECE):
            stop = min(start + PIECE, tensor.num_elements)
            result, *rows = (
                file[h.tensors[name].start + start * size : h.tensors[name].start + stop * size].view(
                    BITS[tensor.dtype]
                )
                for file, h in zip(files, headers, strict=True)
            )
            mean = np.sum([to_float64(row, tensor.dtype) for row in rows], axis=0) / len(rows)
            wrong += int(_is_wrong(result, mean, tensor.dtype).sum())
            total += result.size
    return wrong, total


def _is_wrong(result: np.ndarray, mean: np.ndarray, dtype: str) -> np.ndarray:
    one = BITS[dtype].type(1)
    magnitude = result & BITS[dtype].type(2 ** (8 * BITS[dtype].itemsize - 1) - 1)
    distance = np.abs(to_float64(result, dtype) - mean)
    away = np.abs(to_float64(result + one, dtype) - mean)
    towards = np.abs(to_float64(result - one, dtype) - mean)
    towards[magnitude == 0] = np.inf  # the bits below those of zero are not a neighbour
    nearest = np.minimum(away, towards)
    return (nearest < distance) | ((nearest == distance) & (result & one == one))


def check(members: list[Path], scratch: Path, seed: int) -> tuple[int, int]:
    """Make the soup in every order and compare; returns wrong elements and elements."""
    reference = None
    for number in range(NUM_ORDERS):
        out = scratch / f"out-{number}"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        order = list(members)
        if number:
            random.Random(seed + number).shuffle(order)
        run(SoupConfig(hash_inputs=False), {"members": order}, out)
        digest = json.loads((out / "merge_info.json").read_text())["outputs"][FILE]["blake3"]
        reference = reference or digest
        if digest != reference:
            raise SystemExit(f"{[member.name for member in order]}: other bytes ({digest}, not {reference})")
        if number:
            shutil.rmtree(out)
    return count_wrong(members, scratch / "out-0")


def main() -> None:
    """Parse, make members, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-0.45b")
    parser.add_argument("--counts", default="2,3,7,8")
    parser.add_argument("--formats", default="BF16,F16,F32")
    parser.add_argument("--members", type=Path, help="bf16 members that exist, as DIR/checkpoint-*")
    parser.add_argument("--work", type=Path, help="where the files go; removed at the end")
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    results = []
    with tempfile.TemporaryDirectory(prefix="soup-exactness-", dir=options.work) as temporary:
        work = Path(temporary)
        if options.members is None:
            make = [sys.executable, str(HERE / "soup_members.py"), options.shape, str(work / "BF16"), str(max(counts))]
            subprocess.run(make, check=True, stderr=subprocess.DEVNULL)
        source = options.members or work / "BF16"
        bf16 = [source / f"checkpoint-{number}" for number in range(max(counts))]
        for dtype in options.formats.split(","):
            members = bf16
            if dtype != "BF16":
                members = [convert(m, work / dtype / m.name, dtype, number) for number, m in enumerate(bf16)]
            for count in counts:
                wrong, total = check(members[:count], work / "soups", count)
                results.append({"format": dtype, "members": count, "wrong": wrong, "elements": total})
                print(f"{dtype} N={count}: {wrong} of {total:,} wrong; {NUM_ORDERS} orders, the same bytes", flush=True)
            if dtype != "BF16":
                shutil.rmtree(work / dtype)
    print(json.dumps({"name": "soup_exactness", "results": results}))


if __name__ == "__main__":
    main()
