"""The weight files of a soup: laid out, averaged block after block, written, and compared with what is on disk.

The output has the layout, files and order of tensors, that most members have. That choice, and with it every byte of
the weights, does not depend on the order in which the members are named. Members are hashed while they are averaged, so
that each is read once. Memory is one block of each member, whatever the size of the model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from blake3 import blake3

from ladle.artifacts.files import pretty_json, write_text_durably
from ladle.artifacts.inputs import signature_of
from ladle.artifacts.journal import HASH_SUFFIX, ShardJournal
from ladle.errors import UserError
from ladle.executors import make_executor
from ladle.log import progress
from ladle.soups.compare import Soup, open_soup
from ladle.soups.config import SoupConfig
from ladle.soups.mean import BLOCK, FLOATS, decode, weighted_mean
from ladle.soups.members import Header, Member, make_header, read_json
from ladle.soups.weights import Coefficients, to_coefficients

INFO_FILE = "merge_info.json"
MIB = 2**20
_LEAVE_ALONE = "leave the members alone during a soup, and run it again"


@dataclass
class Notes:
    """What was found while an output file was averaged.

    Attributes:
        inputs: blake3 of the members' files that were read from end to end, as [member's position, file, hash].
        num_nonfinite: results that are NaN or infinite.
        unequal: tensors that are not averaged and differ between members.
    """

    inputs: list[tuple[int, str, str]] = field(default_factory=list)
    num_nonfinite: int = 0
    unequal: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WeightFile:
    """A finished weight file: where it is for now, its hash, and what was found while it was made."""

    path: Path
    header: Header
    blake3: str
    notes: Notes


def lay_out(soup: Soup) -> dict[str, Header]:
    """Return the headers of the output's weight files, by name.

    The layout is the most common one; where tensors are missing somewhere it is the first member's.
    """
    layouts = [tuple((file, header.raw) for file, header in member.headers.items()) for member in soup.members]
    counts = Counter(layouts)
    best = min(counts, key=lambda layout: (-counts[layout], layout))
    owner = soup.members[0 if soup.copied or soup.dropped else layouts.index(best)]
    files = {}
    for file, header in owner.headers.items():
        tensors = {}
        for name, tensor in header.tensors.items():
            if name in soup.averaged:
                dtype = soup.averaged[name]
                tensors[name] = dtype, tensor.shape, tensor.num_elements * FLOATS[dtype].itemsize
            elif name in owner.files:
                tensors[name] = tensor.dtype, tensor.shape, tensor.size_bytes
        files[file] = make_header(tensors, header.metadata)
    return files


def write_weights(soup: Soup, coefficients: Coefficients, folder: Path) -> dict[str, WeightFile]:
    """Write the weight files of a soup into a folder, except those that a killed run of the same soup finished.

    Raises:
        UserError: the disk is too small, or see `average_blocks`.
    """
    journal, files = ShardJournal(folder), lay_out(soup)
    written = sum((folder / name).stat().st_size for name in files if (folder / name).is_file())
    needed, free = sum(header.size_bytes for header in files.values()) - written, shutil.disk_usage(folder).free
    if needed > free and not soup.config.ignore_free_space:
        raise UserError(
            f"the soup needs {needed / MIB:,.1f} MiB, and {free / MIB:,.1f} MiB are free at {folder}",
            "free some space, name another disk with --out, or set ignore_free_space=true if it compresses",
        )
    items = {name: (header, folder / f"{name}.json") for name, header in files.items()}
    executor = make_executor("processes", soup.config.workers)
    finished = journal.run(items, partial(_write_file, soup, coefficients), executor, "soup", "files")
    result = {}
    for name, path in finished.items():
        header, notes = items[name]
        digest = (folder / (name + HASH_SUFFIX)).read_text().strip()
        result[name] = WeightFile(path, header, digest, Notes(**json.loads(notes.read_text(encoding="utf-8"))))
    return result


def _write_file(soup: Soup, coefficients: Coefficients, item: tuple[Header, Path], path: Path) -> None:
    header, notes_file = item
    notes = Notes()
    with path.open("wb") as file:
        file.write(header.raw)
        for _, block in average_blocks(soup, coefficients, header, notes):
            file.write(block)
    write_text_durably(notes_file, pretty_json(asdict(notes)))


def average_blocks(
    soup: Soup, coefficients: Coefficients, header: Header, notes: Notes
) -> Iterator[tuple[str, bytes | memoryview]]:
    """Yield the bytes of an output file after its header, block after block, with the name of their tensor.

    Args:
        soup: the members.
        coefficients: their shares.
        header: the output file's.
        notes: what is found is added here.

    Raises:
        UserError: a member holds NaN or infinity, or members differ in bytes that are not averaged, and the config
            does not waive it; or a member's file changes meanwhile.
    """
    used = coefficients.used
    shares = Coefficients(tuple(coefficients.numerators[position] for position in used), coefficients.denominator)
    sources = _Sources(soup, used)
    for name, tensor in header.tensors.items():
        if name in soup.averaged:
            members = [soup.members[position] for position in used]
            dtypes = [member.tensor(name).dtype for member in members]
            for rows in sources.read(used, name, tensor.num_elements):
                block, num_nonfinite = weighted_mean(rows, dtypes, shares, tensor.dtype)
                if num_nonfinite and not soup.config.allow_nonfinite:
                    raise _nonfinite(name, members, rows)
                notes.num_nonfinite += num_nonfinite
                yield name, block.data.cast("B")
        else:
            positions = used if name in soup.equal else [0]
            for rows in sources.read(positions, name, tensor.size_bytes):
                differing = [position for position, row in zip(positions, rows, strict=True) if row != rows[0]]
                if differing and not soup.config.allow_unequal:
                    names = f"{soup.members[positions[0]].name} and {soup.members[differing[0]].name}"
                    fix = "average members that agree on it, or set allow_unequal=true to keep the first member's"
                    raise UserError(f"{name} differs between {names}, and its dtype is not averaged", fix)
                if differing and name not in notes.unequal:
                    notes.unequal.append(name)
                yield name, rows[0]
    notes.inputs = sources.finish()


def _nonfinite(name: str, members: Sequence[Member], rows: Sequence[bytes]) -> UserError:
    for member, row in zip(members, rows, strict=True):
        numbers = decode(row, member.tensor(name).dtype)
        bad = numbers[~np.isfinite(numbers)]
        if bad.size:
            fix = "leave that member out, or set allow_nonfinite=true to let it through"
            return UserError(f"{member.name} holds {bad[0]} in {name}", fix)
    return UserError(f"the mean of {name} is too large for its format", "set allow_nonfinite=true to let it through")


class _Sources:
    """The members' weight files during a pass: read block after block, hashed if they are read from end to end."""

    def __init__(self, soup: Soup, used: Sequence[int]) -> None:
        self.members = soup.members
        paths = [member.folder / file for member in soup.members for file in member.headers]
        self.signatures = {path: signature_of(path) for path in paths}
        self.hashes: dict[tuple[int, str], _Hash] = {}
        if soup.config.hash_inputs:
            files = [(position, file) for position in used for file in soup.members[position].headers]
            self.hashes = {(position, file): _Hash(soup.members[position].headers[file]) for position, file in files}

    def read(self, positions: Sequence[int], name: str, count: int) -> Iterator[list[bytes]]:
        """Yield the bytes of these members' tensor of `count` elements, block after block."""
        members = [self.members[position] for position in positions]
        with ExitStack() as stack:
            files = [stack.enter_context((one.folder / one.files[name]).open("rb", buffering=0)) for one in members]
            for first in range(0, count, BLOCK):
                rows = []
                for position, member, file in zip(positions, members, files, strict=True):
                    tensor = member.tensor(name)
                    size = tensor.size_bytes // count
                    start = tensor.start + first * size
                    row = os.pread(file.fileno(), min(BLOCK, count - first) * size, start)
                    if start + len(row) < min(tensor.stop, start + BLOCK * size):
                        raise UserError(f"{file.name} became shorter while it was read", _LEAVE_ALONE)
                    if known := self.hashes.get((position, member.files[name])):
                        known.update(start, row)
                    rows.append(row)
                yield rows

    def finish(self) -> list[tuple[int, str, str]]:
        """Return the hashes of the files that were read whole, once it is sure that no file changed meanwhile."""
        for path, signature in self.signatures.items():
            if signature_of(path) != signature:
                raise UserError(f"{path} changed while it was read", _LEAVE_ALONE)
        return [
            (position, file, one.hasher.hexdigest())
            for (position, file), one in self.hashes.items()
            if one.num_bytes == self.members[position].headers[file].size_bytes
        ]


class _Hash:
    """The blake3 of a file up to where it has been read without a gap."""

    def __init__(self, header: Header) -> None:
        self.hasher, self.num_bytes = blake3(header.raw), len(header.raw)

    def update(self, start: int, data: bytes) -> None:
        if start == self.num_bytes:
            self.hasher.update(data)
            self.num_bytes += len(data)


def recompute(artifact: Path, folders: Sequence[Path]) -> list[str]:
    """Average the members again as `merge_info.json` says; return the names of the tensors that come out differently.

    Args:
        artifact: a soup.
        folders: the members it was made of, in the same order; all that are recorded, also those with share 0.

    Raises:
        UserError: the folder is not a soup, or the members are not as many as recorded, or do not fit together.
    """
    if not (artifact / INFO_FILE).is_file():
        raise UserError(f"{artifact} is not a soup: it has no {INFO_FILE}", "name a folder that `ladle soup` made")
    info = read_json(artifact / INFO_FILE)
    members = info["members"]
    if len(folders) != len(members):
        problem = f"{artifact} was made of {len(members)} members, and {len(folders)} are given"
        raise UserError(problem, "give them all, in order")
    # Order and repeats were settled when the soup was made, and are not part of its identity.
    settled = {"hash_inputs": False, "allow_order": True, "allow_repeats": True}
    soup = open_soup(folders, SoupConfig(**info["config"]).model_copy(update=settled))
    coefficients = to_coefficients([Fraction(member["coefficient"]) for member in members])
    files = lay_out(soup)
    different: set[str] = set()
    with progress(total=len(files), description="recompute", unit="files") as bar:
        for name, header in files.items():
            different |= _differing_tensors(soup, coefficients, header, artifact / name)
            bar.advance(1)
    return sorted(different)


def _differing_tensors(soup: Soup, coefficients: Coefficients, header: Header, path: Path) -> set[str]:
    """Compare a file with what it should hold; all its tensors differ if they are not where they should be."""
    if not path.is_file() or path.stat().st_size != header.size_bytes:
        return set(header.tensors)
    with path.open("rb") as file:
        if file.read(len(header.raw)) != header.raw:
            return set(header.tensors)
        blocks = average_blocks(soup, coefficients, header, Notes())
        return {name for name, block in blocks if file.read(len(block)) != block}
