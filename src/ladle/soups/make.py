"""Average models of one architecture: open and compare them, choose their shares, write the mean as a model folder.

The folder has what `from_pretrained` needs, and `merge_info.json`: what it was made of, to the last hash. Everything in
it follows from the members' content and names and from the config's identity: no path, no time.

The weight files have the layout, files and order of tensors, that most members have. That choice, and with it every
byte of the weights, does not depend on the order in which the members are named. Members are hashed while they are
averaged, so that each is read once. Memory is one block of each member, whatever the size of the model.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file, pretty_json, readable_size, write_text_durably
from ladle.artifacts.inputs import signature_of
from ladle.artifacts.journal import ShardJournal
from ladle.errors import CheckFailed, UserError
from ladle.executors import ProcessExecutor, make_executor
from ladle.log import get_logger, progress
from ladle.models.config import choose_dtype
from ladle.soups.compare import TOKENIZER_FILES, Soup, open_soup, tokenizer_owner
from ladle.soups.config import SoupConfig
from ladle.soups.mean import FLOATS, Averager, decode
from ladle.soups.members import (
    INDEX_FILE,
    LEAVE_ALONE,
    SINGLE_FILE,
    Header,
    Member,
    main_dtype,
    make_header,
    read_blocks,
    read_json,
)
from ladle.soups.weights import GRID, Coefficients, make_coefficients, select, to_coefficients
from ladle.stage import Inputs, StageResult

INFO_FILE = "merge_info.json"
UNFINISHED = ".unfinished"
"""Folder in the output for finished weight files and the losses of candidates, until the soup is done."""

logger = get_logger(__name__)


@dataclass
class Notes:
    """What was found while an output file was averaged.

    Attributes:
        inputs: blake3 of the members' files of that name, by member, where they are laid out like it.
        num_nonfinite: results that are NaN or infinite.
        unequal: tensors that are not averaged and differ between members.
    """

    inputs: dict[str, str] = field(default_factory=dict)
    num_nonfinite: int = 0
    unequal: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WeightFile:
    """A finished weight file: where it is for now, its hash, and what was found while it was made."""

    path: Path
    header: Header
    blake3: str
    notes: Notes


def run(config: SoupConfig, inputs: Inputs, out: Path) -> StageResult:
    """Write the soup of `inputs["members"]`, oldest first, as a model folder; resume where a killed run stopped.

    Args:
        config: the method, what to select by, and the accepted differences.
        inputs: `members`: model folders; `validation`: the held-out mixture, where the soup is selected.
        out: the artifact's folder.

    Raises:
        UserError: members are damaged or differ in a way that is not waived, there is no validation data to select by,
            `out` is inside a member, or the disk is too small.
    """
    soup = open_soup(inputs["members"], config)
    for member in soup.members:
        if out.resolve().is_relative_to(member.folder.resolve()):
            raise UserError(f"{out} is inside {member.folder}, a member of the soup", "name another folder with --out")
    signatures = [[str(path.resolve()), *signature_of(path)] for member in soup.members for path in member.paths]
    key = hash_bytes(canonical_json([config.identity(), signatures]).encode())[:16]
    unfinished = out / UNFINISHED / key  # of these settings and members alone
    if config.select == "none":
        coefficients, selection = make_coefficients(config, len(soup.members)), None
    else:
        coefficients, selection = _select(soup, inputs, unfinished)
    weights = write_weights(soup, coefficients, unfinished / "weights")
    write_side_files(soup, weights, out)
    hashes = _hash_inputs(soup, coefficients, weights)
    info = merge_info(soup, coefficients, weights, hashes, selection)
    (out / INFO_FILE).write_text(pretty_json(info), encoding="utf-8")
    for name, file in weights.items():  # last: a run that is killed before keeps them
        file.path.rename(out / name)
    shutil.rmtree(out / UNFINISHED)

    shares = {member["name"]: member["coefficient"] for member in info["members"]}
    tensors = {"averaged": soup.averaged, "equal_in_all": soup.equal, "copied_from_first": soup.copied}
    counters = {f"tensors_{kind}": len(names) for kind, names in (tensors | {"dropped": soup.dropped}).items()}
    logger.info("soup: %s (%s)", ", ".join(f"{share} {name}" for name, share in shares.items()), info["method"])
    what = "soup: %d tensors averaged, %d equal in all members, %d copied from the first, %d left out"
    logger.info(what, *counters.values())
    if len(soup.members) == 1:
        logger.warning("soup: it has one member, and is a copy of it")
    for waiver, entry in soup.waived.items():
        logger.warning("soup: %s accepts %d differences: %s", waiver, entry["count"], "; ".join(entry["first"]))
    counters |= {name: info["tensors"][name] for name in ("elements_averaged", "elements_not_finite")}
    size_bytes = sum(file.header.size_bytes for file in weights.values())
    chosen = {"validation_loss": selection["loss"], "candidates": selection["candidates"]} if selection else {}
    chosen |= {"validation_dtype": choose_dtype(None)} if selection else {}
    return StageResult(
        counters | {"members": len(soup.members), "bytes_written": size_bytes},
        {"shares": shares} | chosen,
        input_hashes=hashes,
        output_hashes={name: file.blake3 for name, file in weights.items()},
    )


def _select(soup: Soup, inputs: Inputs, folder: Path) -> tuple[Coefficients, dict[str, Any]]:
    """Return the shares with the lowest loss, and for the record all that were tried."""
    config = soup.config
    if not inputs.get("validation"):
        problem = f"soup.select is {config.select}, and there is no validation data"
        raise UserError(problem, "give the mix a validation split, or set select=none")
    from ladle.training.pretrain import validation_loss  # imports torch, which averaging does without

    scorer = Scorer(soup, partial(validation_loss, data_dir=inputs["validation"][0]), folder)
    choice = select(config, [member.name for member in soup.members], scorer)
    record = {"by": config.select, "chosen": choice.name, "loss": choice.loss, "candidates": scorer.tried}
    return choice.coefficients, record


@dataclass
class Scorer:
    """Knows the loss of every average that was tried; a killed run's losses are read back instead of computed again.

    Attributes:
        soup: the members.
        evaluate_loss: the loss of a model folder, the same on every call.
        folder: where one candidate at a time is written, and the losses are kept.
        tried: for the record.
    """

    soup: Soup
    evaluate_loss: Callable[[Path], float]
    folder: Path
    tried: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, name: str, coefficients: Coefficients) -> float:
        """Return the loss of an average, and note it under `name`.

        Raises:
            CheckFailed: the loss is not a number.
        """
        shares = coefficients.as_text()
        item, journal = hash_bytes(" ".join(shares).encode())[:16], ShardJournal(self.folder / "losses")
        found = journal.run({item: coefficients}, self._write_loss, ProcessExecutor(1), name, "candidates")
        loss = float(found[item].read_text())
        logger.info("soup candidate %s: validation loss %.6f", name, loss)
        self.tried.append({"name": name, "shares": shares, "loss": loss})
        return loss

    def _write_loss(self, coefficients: Coefficients, path: Path) -> None:
        if len(coefficients.used) == 1:
            folder = self.soup.members[coefficients.used[0]].folder
        else:
            folder = self.folder / "candidate"
            shutil.rmtree(folder, ignore_errors=True)
            soup = replace(self.soup, config=self.soup.config.model_copy(update={"hash_inputs": False}))
            write_side_files(soup, write_weights(soup, coefficients, folder), folder)
        loss = float(self.evaluate_loss(folder))
        if not math.isfinite(loss):
            raise CheckFailed(f"soup candidate {' '.join(coefficients.as_text())} has validation loss {loss}")
        path.write_text(repr(loss))


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
            f"the soup needs {readable_size(needed)}, and {readable_size(free)} are free at {folder}",
            "free some space, name another disk with --out, or set ignore_free_space=true if it compresses",
        )
    items, work = {item[0]: item for item in files.items()}, partial(_write_file, soup, coefficients)
    finished = journal.run(items, work, make_executor("processes", soup.config.workers), "soup", "files")
    return {
        name: WeightFile(path, files[name], journal.hash_of(name), Notes(**read_json(folder / f"{name}.json")))
        for name, path in finished.items()
    }


def _write_file(soup: Soup, coefficients: Coefficients, item: tuple[str, Header], path: Path) -> None:
    name, header = item
    notes = Notes()
    with path.open("wb") as file:
        file.write(header.raw)
        for _, block in average_blocks(soup, coefficients, name, header, notes):
            file.write(block)
    write_text_durably(path.with_name(f"{name}.json"), pretty_json(asdict(notes)))


def average_blocks(
    soup: Soup, coefficients: Coefficients, file: str, header: Header, notes: Notes
) -> Iterator[tuple[str, bytes | memoryview]]:
    """Yield the bytes of an output file after its header, block after block, with the name of their tensor.

    Args:
        soup: the members.
        coefficients: their shares.
        file: the output file's name.
        header: what it holds.
        notes: what is found is added here.

    Raises:
        UserError: a member holds NaN or infinity, or members differ in bytes that are not averaged, and the config
            does not waive it; or a member's file changes meanwhile.
    """
    used = [soup.members[position] for position in coefficients.used]
    averager = Averager(Coefficients(tuple(filter(None, coefficients.numerators)), coefficients.denominator))
    signatures = {path: signature_of(path) for member in soup.members for path in member.paths}
    hashers = {}
    if soup.config.hash_inputs and not soup.copied:
        stored = {member.name: member.headers[file] for member in used if file in member.headers}
        in_order = list(header.tensors)
        hashers = {name: blake3(one.raw) for name, one in stored.items() if list(one.tensors) == in_order}
    for name, tensor in header.tensors.items():
        members = used if name in soup.averaged or name in soup.equal else soup.members[:1]
        for rows in read_blocks(members, name):
            for member, row in zip(members, rows, strict=True):
                if member.name in hashers:
                    hashers[member.name].update(row)
            if name in soup.averaged:
                dtypes = [member.tensor(name).dtype for member in members]
                block, num_nonfinite = averager.average(rows, dtypes, tensor.dtype)
                if num_nonfinite and not soup.config.allow_nonfinite:
                    raise _nonfinite(name, members, rows)
                notes.num_nonfinite += num_nonfinite
                yield name, block.data.cast("B")
                continue
            content = [bytes(row) for row in rows]
            differing = next((one for one, of_one in zip(members, content, strict=True) if of_one != content[0]), None)
            if differing and not soup.config.allow_unequal:
                problem = f"{name} is not averaged, and differs between {members[0].name} and {differing.name}"
                fix = "average members that agree on it, or set allow_unequal=true to keep the first member's"
                raise UserError(problem, fix)
            if differing and name not in notes.unequal:
                notes.unequal.append(name)
            yield name, content[0]
    for path, signature in signatures.items():
        if signature_of(path) != signature:
            raise UserError(f"{path} changed while it was read", LEAVE_ALONE)
    notes.inputs = {name: hasher.hexdigest() for name, hasher in hashers.items()}


def _nonfinite(name: str, members: Sequence[Member], rows: Sequence[memoryview]) -> UserError:
    for member, row in zip(members, rows, strict=True):
        numbers = decode(row, member.tensor(name).dtype)
        bad = numbers[~np.isfinite(numbers)]
        if bad.size:
            fix = "leave that member out, or set allow_nonfinite=true to let it through"
            return UserError(f"{member.name} holds {bad[0]} in {name}", fix)
    return UserError(f"the mean of {name} is too large for its format", "set allow_nonfinite=true to let it through")


def write_side_files(soup: Soup, weights: Mapping[str, WeightFile], out: Path) -> None:
    """Write what is not weights: the first member's configs and code, the first tokenizer, an index for many files.

    The config's dtype is that of most averaged elements: members may say another, or none.
    """
    first, owner = soup.members[0], tokenizer_owner(soup.members)
    config = dict(first.config)
    if dtype := main_dtype((dtype, first.tensor(name).num_elements) for name, dtype in soup.averaged.items()):
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
        if "torch_dtype" not in config:
            config["dtype"] = dtype
    (out / "config.json").write_text(pretty_json(config), encoding="utf-8")
    copied = [(first, ("generation_config.json", "*.py"))]  # a model with its own code needs it to load
    copied += [(owner, TOKENIZER_FILES)] if owner else []
    for member, patterns in copied:
        for path in (path for pattern in patterns for path in member.folder.glob(pattern)):
            place = out / path.relative_to(member.folder)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
    if list(weights) != [SINGLE_FILE]:
        headers = {name: file.header for name, file in weights.items()}
        size_bytes = sum(header.size_bytes - len(header.raw) for header in headers.values())
        weight_map = {tensor: name for name, header in headers.items() for tensor in header.tensors}
        index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
        (out / INDEX_FILE).write_text(pretty_json(index), encoding="utf-8")


def _hash_inputs(soup: Soup, coefficients: Coefficients, weights: Mapping[str, WeightFile]) -> dict[str, str]:
    """Return the blake3 of the weight files of every member that has a share, by path."""
    if not soup.config.hash_inputs:
        return {}
    known = {(member, name): digest for name, one in weights.items() for member, digest in one.notes.inputs.items()}
    used = [soup.members[position] for position in coefficients.used]
    # A file laid out unlike the output was not read from end to end in one go, and is read once more.
    return {
        str(member.folder / file): known.get((member.name, file)) or hash_file(member.folder / file)
        for member in used
        for file in member.headers
    }


def merge_info(
    soup: Soup,
    coefficients: Coefficients,
    weights: Mapping[str, WeightFile],
    hashes: Mapping[str, str],
    selection: dict[str, Any] | None,
) -> dict[str, Any]:
    """Describe a soup in JSON values: what it is made of, and how each tensor came to be.

    Args:
        soup: the members; of the config only what makes its identity is recorded.
        coefficients: their shares.
        weights: the weight files of the result.
        hashes: of the members' files, by path.
        selection: candidates and losses, where the shares were selected.
    """
    notes = [file.notes for file in weights.values()]
    members = [
        {
            "name": member.name,
            "coefficient": share,
            "files": {
                file: {"size_bytes": header.size_bytes, "blake3": hashes.get(str(member.folder / file))}
                for file, header in member.headers.items()
            },
        }
        for member, share in zip(soup.members, coefficients.as_text(), strict=True)
    ]
    return {
        "format": 1,
        "method": selection["chosen"] if selection else soup.config.method,
        "config": soup.config.identity(),
        "members": members,
        "coefficients_are_rounded_to": f"1/{GRID}" if coefficients.denominator == GRID else None,
        "tensors": {
            "in_each_member": {member.name: len(member.files) for member in soup.members},
            "matched": len(soup.averaged) + len(soup.equal),
            "averaged": len(soup.averaged),
            "equal_in_all": len(soup.equal),
            "copied_from_first": soup.copied,
            "dropped": soup.dropped,
            "aliases": sorted({name for member in soup.members for name in member.aliases}),
            "elements_averaged": sum(soup.members[0].tensor(name).num_elements for name in soup.averaged),
            "unequal": sorted(name for one in notes for name in one.unequal),
            "elements_not_finite": sum(one.num_nonfinite for one in notes),
        },
        "waived": soup.waived,
        "selection": selection,
        "outputs": {
            name: {"size_bytes": file.header.size_bytes, "blake3": file.blake3} for name, file in weights.items()
        },
    }


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
            path = artifact / name
            if not path.is_file() or path.stat().st_size != header.size_bytes:
                different |= header.tensors.keys()
                continue
            with path.open("rb") as file:
                if file.read(len(header.raw)) != header.raw:  # tensors are not where they should be
                    different |= header.tensors.keys()
                blocks = average_blocks(soup, coefficients, name, header, Notes())
                different |= {tensor for tensor, block in blocks if file.read(len(block)) != bytes(block)}
            bar.advance(1)
    return sorted(different)
