"""Average eight members with Ladle, mergekit 0.1.5 and a load-all script; the floor is to read them all and copy one.

    python benchmarks/bench_soup.py [--shape llama-0.45b] [--runs 3] [--contenders ladle,floor] [--work DIR]

Members are made at the chosen shape (see soup_members.py); mergekit gets a virtual environment of its own. Every
contender is a process that is watched from outside: CPU seconds (its own, as the kernel counts them), wall time, peak
anonymous memory, and how many of the tensors came out. The default shape is dense because mergekit 0.1.5 loses the
experts of a DeepSeek-V3 shape, and with them most of the work: `--shape deepseek-0.45b` shows it.

`ladle` is the whole command `ladle soup`, from the start of Python to the sealed record: it hashes every byte that it
reads and writes, and flushes the result to the disk. `ladle_without_hash` is the soup stage with hash_inputs=false: it
does what the peers do and more, for it hashes and flushes its output. Ratios are the peer's cost over Ladle's:
`cpu_vs_mergekit`, `cpu_vs_load_all` and `cpu_vs_floor_without_hash` compare with ladle_without_hash, the others with
ladle. torch's threads wait at barriers by spinning, and so as mergekit starts by default a good part of its CPU seconds
do nothing, the more the busier the machine; `mergekit_one_thread` (OMP_NUM_THREADS=1) is its cheapest setting.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import results
from ladle.soups.members import open_members

HERE = Path(__file__).parent
CONTENDERS = ("ladle", "ladle_without_hash", "mergekit", "mergekit_one_thread", "load_all", "floor")
MERGEKIT = ("torch==2.13.0", "mergekit==0.1.5")  # torch first and exactly, or a CUDA build of several GB comes
POLL_SECONDS = 0.01


class Cost(NamedTuple):
    """What one run took; memory is the peak of RssAnon of the process."""

    cpu_seconds: float
    wall_seconds: float
    memory_mib: float
    tensors: int


def watch(command: list[str], log: Path) -> tuple[float, float, float]:
    """Run a command and return its CPU seconds, wall seconds and peak anonymous memory in MiB."""
    started, peak = time.monotonic(), 0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, rss_anon_kib(process.pid))
            time.sleep(POLL_SECONDS)
    if status:
        raise SystemExit(f"{shlex.join(command)} failed:\n{log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - started, peak / 1024


def rss_anon_kib(pid: int) -> int:
    """Return the anonymous memory of a process, 0 once it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def warm(members: list[Path]) -> None:
    """Read the members, so that every contender finds the page cache as full as the machine's memory lets it be."""
    weights = [str(member / "model.safetensors") for member in members]
    subprocess.run(["cat", *weights], stdout=subprocess.DEVNULL, check=True)


def make_commands(members: list[Path], work: Path) -> dict[str, Callable[[Path], list[str]]]:
    """Return, for each contender, its command for an output folder."""
    names = [str(member) for member in members]
    weights = [str(member / "model.safetensors") for member in members]

    def own(way: str) -> Callable[[Path], list[str]]:
        return lambda out: [sys.executable, str(HERE / "soup_contenders.py"), way, str(out), *names]

    def ladle(out: Path) -> list[str]:
        shutil.rmtree(work / "root", ignore_errors=True)  # it would remember the members' hashes
        return [sys.executable, "-m", "ladle", "soup", *names, "--out", str(out), "--root", str(work / "root")]

    def floor(out: Path) -> list[str]:
        copy = shlex.quote(str(out / "model.safetensors"))
        script = f"mkdir {shlex.quote(str(out))} && cat {shlex.join(weights)} > /dev/null && "
        return ["sh", "-c", f"{script}cp {shlex.quote(weights[0])} {copy} && sync {copy}"]

    def mergekit(out: Path) -> list[str]:
        recipe = work / "mergekit.yaml"
        models = "".join(f"- {{model: {name}, parameters: {{weight: {1 / len(names)}}}}}\n" for name in names)
        recipe.write_text(f"merge_method: linear\ndtype: bfloat16\nmodels:\n{models}")
        return [str(work / "mergekit" / "bin" / "mergekit-yaml"), str(recipe), str(out)]

    def mergekit_one_thread(out: Path) -> list[str]:
        return ["env", "OMP_NUM_THREADS=1", *mergekit(out)]

    return {
        "ladle": ladle,
        "ladle_without_hash": own("ladle_without_hash"),
        "load_all": own("load_all"),
        "mergekit": mergekit,
        "mergekit_one_thread": mergekit_one_thread,
        "floor": floor,
    }


def install_mergekit(folder: Path) -> None:
    """Make mergekit's own environment, unless it is there."""
    if (folder / "bin" / "mergekit-yaml").exists():
        return
    print("installing mergekit in an environment of its own", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    for requirement in MERGEKIT:
        subprocess.run([str(folder / "bin" / "pip"), "install", "--quiet", requirement], check=True)


def run_all(members: list[Path], work: Path, contenders: list[str], runs: int) -> dict[str, list[Cost]]:
    """Run all contenders in turn, `runs` times."""
    commands = make_commands(members, work)
    costs: dict[str, list[Cost]] = {contender: [] for contender in contenders}
    for _ in range(runs):
        for contender in contenders:
            out = work / "out"
            shutil.rmtree(out, ignore_errors=True)
            warm(members)
            measured = watch(commands[contender](out), work / f"{contender}.log")
            shutil.copyfile(members[0] / "config.json", out / "config.json")
            costs[contender].append(Cost(*measured, len(open_members([out])[0].files)))
    return costs


def publish(costs: dict[str, list[Cost]], quick: bool) -> None:
    """Publish what every run took, and the ratios of medians."""

    def cost(contender: str, field: str) -> float:
        return median(getattr(cost, field) for cost in costs[contender])

    compared = {
        "cpu_vs_mergekit": ("mergekit", "ladle_without_hash", "cpu_seconds"),
        "cpu_vs_mergekit_with_hash": ("mergekit", "ladle", "cpu_seconds"),
        "cpu_vs_mergekit_one_thread": ("mergekit_one_thread", "ladle_without_hash", "cpu_seconds"),
        "cpu_vs_load_all": ("load_all", "ladle_without_hash", "cpu_seconds"),
        "cpu_vs_load_all_with_hash": ("load_all", "ladle", "cpu_seconds"),
        "cpu_vs_floor": ("floor", "ladle", "cpu_seconds"),
        "cpu_vs_floor_without_hash": ("floor", "ladle_without_hash", "cpu_seconds"),
        "memory_vs_mergekit": ("mergekit", "ladle", "memory_mib"),
    }
    ratios = {
        name: cost(peer, field) / cost(own, field)
        for name, (peer, own, field) in compared.items()
        if peer in costs and own in costs
    }
    samples = {
        f"{contender}_{field}": [getattr(cost, field) for cost in found]
        for contender, found in costs.items()
        for field in Cost._fields
    }
    results.publish("bench_soup", samples, ratios, quick)


def main() -> None:
    """Parse, make members, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-0.45b")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--work", type=Path, help="keep members and mergekit's environment here, for another time")
    options = results.parse(parser, members=2, runs=1, contenders="ladle,ladle_without_hash,load_all,floor")
    contenders = [contender for contender in CONTENDERS if contender in options.contenders.split(",")]
    with tempfile.TemporaryDirectory(prefix="bench-soup-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        folder = work / f"{options.shape}-{options.members}"
        if not folder.exists():
            make = [sys.executable, str(HERE / "soup_members.py"), options.shape, str(folder), str(options.members)]
            subprocess.run(make, check=True, stderr=subprocess.DEVNULL)
        if any(contender.startswith("mergekit") for contender in contenders):
            install_mergekit(work / "mergekit")
        members = [folder / f"checkpoint-{number}" for number in range(options.members)]
        expected = len(open_members(members[:1])[0].files)
        os.sync()  # what making and installing wrote would be flushed during the first runs
        costs = run_all(members, work, contenders, options.runs)
        for leftover in ("out", "root"):
            shutil.rmtree(work / leftover, ignore_errors=True)
    print(f"{options.members} members of {options.shape}, medians of {options.runs} runs, {expected} tensors each")
    print(f"{'contender':<20}{'CPU s':>9}{'wall s':>9}{'memory MiB':>12}{'tensors':>9}")
    for contender, found in costs.items():
        print("{:<20}{:>9.2f}{:>9.2f}{:>12.1f}{:>9.0f}".format(contender, *map(median, zip(*found, strict=True))))
    publish(costs, options.quick)


if __name__ == "__main__":
    main()
