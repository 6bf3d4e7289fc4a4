"""From members to a model folder: preflight, weights, side files, record.

The folder has what `from_pretrained` needs, `merge_info.json` (what it was made of, to the last hash) and a model
card. Everything in it is a function of the members' content and names, and of the config's identity: no path, no
time, no thread count.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladle.artifacts.files import hash_bytes, pretty_json
from ladle.errors import UserError
from ladle.log import ProgressBar, get_logger, progress
from ladle.soup import arithmetic
from ladle.soup.card import model_card
from ladle.soup.config import SoupConfig
from ladle.soup.finished import NOTES, FinishedFiles
from ladle.soup.info import CARD_FILE, INFO_FILE, merge_info
from ladle.soup.members import Member
from ladle.soup.plan import OutputFile, plan_output
from ladle.soup.preflight import Soup
from ladle.soup.sidefiles import write_side_files
from ladle.soup.sinks import WritingSink
from ladle.soup.stream import MIB, FileStream, Streamed
from ladle.soup.weights import Coefficients

SELECTION = ".selection"
"""Folder inside the output where candidates are written and their scores kept until the soup is done."""

logger = get_logger(__name__)


def write_soup(
    soup: Soup, coefficients: Coefficients, out: Path, selection: dict[str, Any] | None = None, is_private: bool = False
) -> dict[str, Any]:
    """Write the weighted average as a model folder and return its merge_info; goes on from where a killed run stopped.

    Args:
        soup: the members.
        coefficients: one numerator a member.
        out: the folder to make.
        selection: how the coefficients were chosen, for the record.
        is_private: nobody else writes to `out`, so whatever else it holds may be removed.

    Raises:
        UserError: the folder holds something else or stands inside a member, the disk is too small, or the members'
            bytes are refused.
    """
    _refuse_a_place_inside(soup.members, out)
    files = plan_output(soup.members, soup.comparison, coefficients.used)
    finished = FinishedFiles(out, describe_plan(soup, coefficients, files))
    _claim(out, finished, is_private)
    done = {file.name: note for file in files if (note := finished.read(file.name))}
    missing = [file for file in files if file.name not in done]
    _check_space(out, missing, soup.config)
    arithmetic.say_how()
    with progress(total=sum(file.size_bytes for file in missing) // MIB, description="soup", unit="MiB") as bar:
        for file in missing:
            aside = finished.aside(file.name)
            done[file.name] = _note(write_file(file, soup, coefficients, soup.config, aside, bar))
            finished.add(file.name, done[file.name])
    write_side_files(soup.members, files, soup.config, out)
    info = merge_info(soup, coefficients, files, done, selection)
    finished.add_text(CARD_FILE, model_card(info))
    finished.add_text(INFO_FILE, pretty_json(info))
    finished.close()
    return info


def write_candidate(soup: Soup, coefficients: Coefficients, folder: Path) -> None:
    """Write a loadable average into a scratch folder, over the one that was there; no hashes, record or resume."""
    files = plan_output(soup.members, soup.comparison, coefficients.used)
    folder.mkdir(parents=True, exist_ok=True)
    for former in folder.glob("*.safetensors"):
        former.unlink()
    _check_space(folder, files, soup.config)
    config = soup.config.model_copy(update={"hash_inputs": False, "writer": "cache"})  # read at once
    with progress(total=sum(file.size_bytes for file in files) // MIB, description="candidate", unit="MiB") as bar:
        for file in files:
            write_file(file, soup, coefficients, config, folder / file.name, bar)
    write_side_files(soup.members, files, soup.config, folder)


def write_file(
    file: OutputFile, soup: Soup, coefficients: Coefficients, config: SoupConfig, path: Path, bar: ProgressBar
) -> Streamed:
    """Write one weight file at `path`."""
    with WritingSink.create(path, file.size_bytes, config.writer) as sink:
        return FileStream(file, soup, coefficients, config, sink, bar).run()


def describe_plan(soup: Soup, coefficients: Coefficients, files: list[OutputFile]) -> Any:
    """Return what must be the same for a finished file to be kept: settings, members as they stand on disk, layout."""
    stats = [[(member.folder / file).stat() for file in member.headers] for member in soup.members]
    return {
        "config": soup.config.identity(),
        "coefficients": [list(coefficients.numerators), coefficients.denominator],
        "members": [
            [str(member.folder.resolve()), [[stat.st_size, stat.st_mtime_ns] for stat in per_file]]
            for member, per_file in zip(soup.members, stats, strict=True)
        ],
        "files": [[file.name, file.size_bytes, hash_bytes(file.header)] for file in files],
    }


def _refuse_a_place_inside(members: Sequence[Member], out: Path) -> None:
    for member in members:
        if out.resolve().is_relative_to(member.folder.resolve()):
            raise UserError(f"{out} is inside {member.folder}, a member of the soup", "name another folder with --out")


def _claim(out: Path, finished: FinishedFiles, is_private: bool) -> None:
    """Take possession of the output folder: empty, left by a killed run of this very soup, or private."""
    out.mkdir(parents=True, exist_ok=True)
    is_resumed = finished.is_ours()
    foreign = [path for path in out.iterdir() if path.name not in (NOTES, SELECTION) and not is_resumed]
    if foreign and not is_private:
        raise UserError(
            f"{out} is not empty (it holds {foreign[0].name})", "name an empty folder with --out, or remove this one"
        )
    for path in foreign:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    finished.open()


def _check_space(out: Path, files: list[OutputFile], config: SoupConfig) -> None:
    needed, free = sum(file.size_bytes for file in files), shutil.disk_usage(out).free
    if needed > free and not config.ignore_free_space:
        raise UserError(
            f"the soup needs {needed / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are free at {out}",
            "free some space, name another disk with --out, or set ignore_free_space=true if it compresses",
        )


def _note(streamed: Streamed) -> dict[str, Any]:
    inputs = [[member, file, digest] for (member, file), digest in sorted(streamed.inputs.items())]
    return {
        "blake3": streamed.output,
        "inputs": inputs,
        "nonfinite": streamed.nonfinite,
        "unequal": sorted(streamed.unequal),
    }
