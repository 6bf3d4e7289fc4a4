"""Average models of one architecture: open and compare them, choose their shares, write the mean as a model folder.

The folder has what `from_pretrained` needs, and `merge_info.json`: what it was made of, to the last hash. Everything in
it follows from the members' content and names and from the config's identity: no path, no time.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ladle.artifacts.files import canonical_json, hash_bytes, hash_file, pretty_json
from ladle.artifacts.journal import ShardJournal
from ladle.errors import CheckFailed, UserError
from ladle.executors import SerialExecutor
from ladle.log import get_logger
from ladle.soups.compare import TOKENIZER_FILES, Soup, open_soup, tokenizer_owner
from ladle.soups.config import SoupConfig
from ladle.soups.members import INDEX_FILE, SINGLE_FILE, main_dtype
from ladle.soups.weights import GRID, Coefficients, make_coefficients, select
from ladle.soups.write import INFO_FILE, WeightFile, write_weights
from ladle.stage import Inputs, StageResult

UNFINISHED = ".unfinished"
"""Folder in the output for finished weight files and the losses of candidates, until the soup is done."""

logger = get_logger(__name__)


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
    unfinished = out / UNFINISHED / _key(soup)
    coefficients, selection = _choose(soup, inputs, unfinished)
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
    for waiver, entry in soup.waived.items():
        logger.warning("soup: %s accepts %d differences: %s", waiver, entry["count"], "; ".join(entry["first"]))
    counters |= {name: info["tensors"][name] for name in ("elements_averaged", "elements_not_finite")}
    size_bytes = sum(file.header.size_bytes for file in weights.values())
    chosen = {"validation_loss": selection["loss"], "candidates": selection["candidates"]} if selection else {}
    return StageResult(
        counters | {"members": len(soup.members), "bytes_written": size_bytes},
        {"shares": shares} | chosen,
        input_hashes={str(soup.members[member].folder / file): digest for (member, file), digest in hashes.items()},
        output_hashes={name: file.blake3 for name, file in weights.items()},
    )


def _key(soup: Soup) -> str:
    """Name what decides the result: a run resumes one with the same settings and members alone."""
    members = []
    for member in soup.members:
        stats = [(member.folder / file).stat() for file in member.headers]
        members.append([str(member.folder.resolve()), [[stat.st_size, stat.st_mtime_ns] for stat in stats]])
    return hash_bytes(canonical_json([soup.config.identity(), members]).encode())[:16]


def _choose(soup: Soup, inputs: Inputs, folder: Path) -> tuple[Coefficients, dict[str, Any] | None]:
    """Return the shares, and for the record how they were selected."""
    config = soup.config
    if config.select == "none":
        return make_coefficients(config, len(soup.members)), None
    if not inputs.get("validation"):
        problem = f"soup.select is {config.select}, and there is no validation data"
        raise UserError(problem, "give the mix a validation split, or set select=none")
    from ladle.training.pretrain import validation_loss  # imports torch, which averaging does without

    scorer = Scorer(soup, partial(validation_loss, data_dir=inputs["validation"][0]), folder)
    choice = select(config, [member.name for member in soup.members], scorer)
    record = {"by": config.select, "chosen": choice.name, "loss": choice.loss, "candidates": scorer.tried}
    return choice.coefficients, record


class Scorer:
    """Knows the loss of every average that was tried; a killed run's losses are read back instead of computed again.

    Args:
        soup: the members.
        evaluate_loss: the loss of a model folder, the same on every call.
        folder: where one candidate at a time is written, and the losses are kept.
    """

    def __init__(self, soup: Soup, evaluate_loss: Callable[[Path], float], folder: Path) -> None:
        self.soup, self.evaluate_loss, self.candidate = soup, evaluate_loss, folder / "candidate"
        self.journal = ShardJournal(folder / "losses")
        self.tried: list[dict[str, Any]] = []

    def __call__(self, name: str, coefficients: Coefficients) -> float:
        """Return the loss of an average, and note it under `name`.

        Raises:
            CheckFailed: the loss is not a number.
        """
        shares = coefficients.as_text()
        item = hash_bytes(" ".join(shares).encode())[:16]
        (path,) = self.journal.run(
            {item: coefficients}, self._write_loss, SerialExecutor(), name, "candidates"
        ).values()
        loss = float(path.read_text())
        logger.info("soup candidate %s: validation loss %.6f", name, loss)
        self.tried.append({"name": name, "shares": shares, "loss": loss})
        return loss

    def _write_loss(self, coefficients: Coefficients, path: Path) -> None:
        if len(coefficients.used) == 1:
            folder = self.soup.members[coefficients.used[0]].folder
        else:
            folder = self.candidate
            shutil.rmtree(folder, ignore_errors=True)
            soup = replace(self.soup, config=self.soup.config.model_copy(update={"hash_inputs": False}))
            write_side_files(soup, write_weights(soup, coefficients, folder), folder)
        loss = float(self.evaluate_loss(folder))
        if not math.isfinite(loss):
            raise CheckFailed(f"soup candidate {' '.join(coefficients.as_text())} has validation loss {loss}")
        path.write_text(repr(loss))


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


def _hash_inputs(
    soup: Soup, coefficients: Coefficients, weights: Mapping[str, WeightFile]
) -> dict[tuple[int, str], str]:
    """Return the blake3 of the weight files of every member that has a share, by member and file."""
    if not soup.config.hash_inputs:
        return {}
    known = {(position, file): digest for one in weights.values() for position, file, digest in one.notes.inputs}
    files = [(position, file) for position in coefficients.used for file in soup.members[position].headers]
    # A file laid out unlike the output was not read from end to end in one go, and is read once more.
    return {key: known.get(key) or hash_file(soup.members[key[0]].folder / key[1]) for key in files}


def merge_info(
    soup: Soup,
    coefficients: Coefficients,
    weights: Mapping[str, WeightFile],
    hashes: Mapping[tuple[int, str], str],
    selection: dict[str, Any] | None,
) -> dict[str, Any]:
    """Describe a soup in JSON values: what it is made of, and how each tensor came to be.

    Args:
        soup: the members; of the config only what makes its identity is recorded.
        coefficients: their shares.
        weights: the weight files of the result.
        hashes: of the members' files, by member and file.
        selection: candidates and losses, where the shares were selected.
    """
    notes = [file.notes for file in weights.values()]
    members = [
        {
            "name": member.name,
            "coefficient": share,
            "files": {
                file: {"size_bytes": header.size_bytes, "blake3": hashes.get((position, file))}
                for file, header in member.headers.items()
            },
        }
        for position, (member, share) in enumerate(zip(soup.members, coefficients.as_text(), strict=True))
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
