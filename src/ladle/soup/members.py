"""The models that go into a soup, as they stand on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ladle.artifacts.inputs import find_local, natural_key
from ladle.errors import UserError
from ladle.soup.headers import Header, Tensor, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TRAINING_STATE = (
    "optimizer*", "scheduler.*", "scaler.*", "rng_state*", "trainer_state.json", "training_args.bin", "global_step*",
)  # fmt: skip
"""Files of a checkpoint that are no part of the model: often twice its size, and nothing to a soup."""

_CONVERT = (
    'convert it with: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\""
)


@dataclass(frozen=True)
class Member:
    """A model folder: its weight files' headers, in the order of their names."""

    name: str
    folder: Path
    headers: dict[str, Header]

    aliases: frozenset[str] = frozenset()
    """Tensors that only repeat another one, and are left out (`ladle.soup.aliases`)."""

    @cached_property
    def files(self) -> dict[str, str]:
        """The file that each tensor stands in."""
        stored = {tensor: file for file, header in self.headers.items() for tensor in header.tensors}
        return {tensor: file for tensor, file in stored.items() if tensor not in self.aliases}

    def tensor(self, name: str) -> Tensor:
        """Return where a tensor stands in its file."""
        return self.headers[self.files[name]].tensors[name]

    @property
    def is_sharded(self) -> bool:
        """Whether an index names the files."""
        return list(self.headers) != [SINGLE_FILE]


def find_members(reference: str) -> tuple[Path, ...]:
    """Return the models that a path or glob names, older checkpoints first; empty where it names nothing.

    A folder of checkpoints, as a training leaves it, stands for all of them.
    """
    return tuple(member for folder in find_local(reference) for member in _checkpoints_of(folder) or [folder])


def _checkpoints_of(folder: Path) -> list[Path]:
    if (folder / "config.json").is_file() or (folder / "model" / "config.json").is_file():
        return []
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted(found, key=natural_key)


def open_members(folders: Sequence[Path]) -> list[Member]:
    """Read the headers of all members.

    Raises:
        UserError: there is none, or one is no model folder or has damaged weight files.
    """
    if not folders:
        raise UserError(
            "a soup needs at least one member", "name model folders, for example: ladle soup base run/checkpoints/*"
        )
    names = _name_members(folders)
    return [open_member(folder, name) for folder, name in zip(folders, names, strict=True)]


def open_member(folder: Path, name: str) -> Member:
    """Read the headers of one model; `folder` is the model, or an artifact with the model in model/.

    Raises:
        UserError: see `open_members`.
    """
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no model: {_what_is_there(folder)}", "name a folder saved by save_pretrained")
    headers = {file: read_header(folder / file) for file in _weight_files(folder)}
    member = Member(name, folder, headers)
    repeated = [
        tensor for tensor, count in Counter(t for h in headers.values() for t in h.tensors).items() if count > 1
    ]
    if repeated:
        raise UserError(
            f"{folder} has {repeated[0]} in more than one file", "save the model again with save_pretrained"
        )
    if member.is_sharded:
        _check_index(member)
    return member


def _what_is_there(folder: Path) -> str:
    if folder.is_dir():
        return (
            f"it has no config.json (found: {', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'})"
        )
    return "it is a file" if folder.is_file() else "there is no such folder"


def read_json(path: Path) -> Any:
    """Read a JSON file of a member.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", "copy it again from its source") from error


def _name_members(folders: Sequence[Path]) -> list[str]:
    """Name members by their folders, numbered where two are the same; paths stay out, for a result has no place."""
    plain = [(path.parent if path.name == "model" else path).name for path in (folder.resolve() for folder in folders)]
    seen: Counter[str] = Counter()
    names = []
    for name in plain:
        seen[name] += 1
        names.append(name if plain.count(name) == 1 else f"{name}#{seen[name]}")
    return names


def _weight_files(folder: Path) -> list[str]:
    """Return the names of a model's weight files; a single file wins over an index, as in from_pretrained."""
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        files = sorted(set(_read_index(folder).values()))
        for file in files:
            if Path(file).name != file or not (folder / file).is_file():
                raise UserError(
                    f"{folder} lacks {file}, which its index names", "copy the folder again from its source"
                )
        return files
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} is an adapter, not a model",
            "merge it into its base first (peft: merge_and_unload), and save that",
        )
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{folder} has its weights in torch .bin files, which can hold code", _CONVERT.format(folder=folder)
        )
    raise UserError(f"{folder} has no {SINGLE_FILE} and no {INDEX_FILE}", "name a folder saved by save_pretrained")


def _read_index(folder: Path) -> dict[str, str]:
    try:
        weight_map = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{folder / INDEX_FILE} is no index of weights", "copy the folder again from its source"
        ) from error


def _check_index(member: Member) -> None:
    indexed = _read_index(member.folder)
    if indexed != member.files:
        wrong = sorted(set(indexed.items()) ^ set(member.files.items()))[0][0]
        raise UserError(
            f"{member.folder}: the index and the weight files differ on {wrong}",
            "copy the folder again from its source",
        )
