"""The models that go into a soup, as they are on disk: their folders, their weight files and where each tensor is.

A weight file is 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors, "Format"). The safetensors library checks it; its interface does not say where
a tensor's bytes begin, which streaming needs, so that is read from the JSON here.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ladle.artifacts.inputs import find_local, natural_key
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.config import DEEPSEEK_V3_ROUTING

logger = get_logger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

OUTPUT_EMBEDDINGS = "lm_head.weight"
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
"""Ends of names."""
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""The names that config.json has for safetensors' formats."""
STEP = re.compile(r"checkpoint-(\d+)")
BLOCK = 2**16
"""Elements read of each member at a time: eight members' and their sum fit into a core's cache."""

LEAVE_ALONE = "leave the members alone during a soup, and run it again"
_COPY_AGAIN = "copy it again from its source, or use another checkpoint"
_CONVERT = (
    'convert it with: python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\""
)


class Tensor(NamedTuple):
    """One tensor; start and stop are offsets into the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_elements(self) -> int:
        """The product of the shape."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """The head of a weight file: its bytes, and what they say of the tensors, in the order of the tensors' bytes."""

    raw: bytes
    size_bytes: int
    """Of the whole file."""
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None


def read_header(path: Path) -> Header:
    """Read and check the header of a file.

    Raises:
        UserError: the file is not a safetensors file, or its tensors do not fill it exactly.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise UserError(f"{path} is not a complete safetensors file ({error})", _COPY_AGAIN) from error
    with path.open("rb") as file:
        prefix = file.read(8)
        raw = prefix + file.read(*struct.unpack("<Q", prefix))
    return _parse(raw)


def make_header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str] | None) -> Header:
    """Return the header of a file that holds these tensors (dtype, shape, bytes) one after the other."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape, size_bytes) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size_bytes]}
        start += size_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned, as the library does
    return _parse(struct.pack("<Q", len(text)) + text)


def _parse(raw: bytes) -> Header:
    entries = json.loads(raw[8:])
    metadata = entries.pop("__metadata__", None)
    tensors = {
        name: Tensor(entry["dtype"], tuple(entry["shape"]), *(len(raw) + offset for offset in entry["data_offsets"]))
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    }
    return Header(raw, max((tensor.stop for tensor in tensors.values()), default=len(raw)), tensors, metadata)


def main_dtype(elements: Iterable[tuple[str, int]]) -> str | None:
    """Return the dtype, as config.json names it, of most elements; None if it is none that is averaged.

    Args:
        elements: format and number of elements of each tensor.
    """
    counts = Counter[str]()
    for dtype, count in elements:
        counts[dtype] += count
    return DTYPES.get(max(counts, key=lambda dtype: counts[dtype], default=""))


@dataclass(frozen=True)
class Member:
    """A model folder: its weight files' headers, in the order of their names."""

    name: str
    folder: Path
    headers: dict[str, Header]

    aliases: frozenset[str] = frozenset()
    """Tensors that only repeat another one, and are left out."""

    @cached_property
    def files(self) -> dict[str, str]:
        """The file that each tensor is in."""
        stored = {tensor: file for file, header in self.headers.items() for tensor in header.tensors}
        return {tensor: file for tensor, file in stored.items() if tensor not in self.aliases}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its config.json, with the keys that vLLM needs.

        Raises:
            UserError: it is not a JSON object.
        """
        config = read_json(self.folder / "config.json")
        if not isinstance(config, dict):
            raise UserError(f"{self.folder / 'config.json'} is not a JSON object", _COPY_AGAIN)
        return (DEEPSEEK_V3_ROUTING if config.get("model_type") == "deepseek_v3" else {}) | config

    @property
    def paths(self) -> list[Path]:
        """Its weight files."""
        return [self.folder / file for file in self.headers]

    def tensor(self, name: str) -> Tensor:
        """Return where a tensor is in its file."""
        return self.headers[self.files[name]].tensors[name]


def read_blocks(members: Sequence[Member], name: str) -> Iterator[list[memoryview]]:
    """Yield the bytes of a tensor in each of these members, which have it in one shape, block after block.

    The next block takes this one's memory: new memory for each would cost more than reading it.

    Raises:
        UserError: a file became shorter meanwhile.
    """
    tensors = [member.tensor(name) for member in members]
    count = tensors[0].num_elements
    with ExitStack() as stack:
        files = [stack.enter_context((one.folder / one.files[name]).open("rb", buffering=0)) for one in members]
        buffers = [memoryview(bytearray(-(-one.size_bytes * min(BLOCK, count) // max(count, 1)))) for one in tensors]
        for first in range(0, count, BLOCK):
            last, rows = min(first + BLOCK, count), []
            for tensor, file, buffer in zip(tensors, files, buffers, strict=True):
                start, stop = (tensor.start + position * tensor.size_bytes // count for position in (first, last))
                rows.append(buffer[: stop - start])
                if os.preadv(file.fileno(), rows[-1:], start) < stop - start:
                    raise UserError(f"{file.name} became shorter while it was read", LEAVE_ALONE)
            yield rows


def find_members(reference: str) -> tuple[Path, ...]:
    """Return the models that a path or glob names, older checkpoints first; empty where it names nothing.

    A folder of checkpoints, as a training leaves it, names all of them, and nothing else in it.
    """
    return tuple(member for folder in find_local(reference) for member in _checkpoints_of(folder) or [folder])


def _checkpoints_of(folder: Path) -> list[Path]:
    if (_model_in(folder) / "config.json").is_file():
        return []
    found = sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), key=natural_key)
    for path in found:
        if not STEP.fullmatch(path.name):
            what = "is not a checkpoint of a step, and left out: name it to average it"
            logger.warning("%s: %s %s", folder, path.name, what)
    return [path for path in found if STEP.fullmatch(path.name)]


def _model_in(folder: Path) -> Path:
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def open_members(folders: Sequence[Path]) -> list[Member]:
    """Read the headers of all members; each folder is a model, or an artifact with the model in model/.

    Members are named by their folders, numbered where two are the same: without paths, so that results can move.

    Raises:
        UserError: there is none, or one is not a model folder or has damaged weight files.
    """
    if not folders:
        raise UserError("a soup needs at least one member", "name model folders: ladle soup base run/checkpoints/*")
    plain = [(path.parent if path.name == "model" else path).name for path in map(Path.resolve, folders)]
    return [
        _open_member(folder, name if plain.count(name) == 1 else f"{name}#{plain[: position + 1].count(name)}")
        for position, (folder, name) in enumerate(zip(folders, plain, strict=True))
    ]


def _open_member(folder: Path, name: str) -> Member:
    folder = _model_in(folder)
    if not (folder / "config.json").is_file():
        found = "there is no such folder"
        if folder.exists():
            names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ["it is a file"]
            found = f"it has no config.json (found: {', '.join(names) or 'nothing'})"
        raise UserError(f"{folder} is not a model: {found}", "name a folder saved by save_pretrained")
    index = _read_index(folder)
    files = sorted(set(index.values())) or [SINGLE_FILE]
    for file in files:
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{folder} lacks {file}, which its index names", _COPY_AGAIN)
    if unread := sorted({path.name for path in folder.glob("*.safetensors")} - set(files)):
        weights_in = f"the files that {INDEX_FILE} names" if index else SINGLE_FILE
        logger.warning("%s: %s is not read: the weights are in %s", folder, ", ".join(unread), weights_in)
    headers = {file: read_header(folder / file) for file in files}
    stored = {(tensor, file) for file, header in headers.items() for tensor in header.tensors}
    if index and (wrong := sorted(stored ^ set(index.items()))):
        raise UserError(f"{folder}: the index and the weight files differ on {wrong[0][0]}", _COPY_AGAIN)
    return Member(name, folder, headers)


def _read_index(folder: Path) -> dict[str, str]:
    """Return the file of each tensor, by the index; empty for a single file, which wins as in from_pretrained."""
    if (folder / SINGLE_FILE).is_file():
        return {}
    if (folder / INDEX_FILE).is_file():
        try:
            return {str(tensor): str(file) for tensor, file in read_json(folder / INDEX_FILE)["weight_map"].items()}
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{folder / INDEX_FILE} is not an index of weights", _COPY_AGAIN) from error
    problem, fix = f"has no {SINGLE_FILE} and no {INDEX_FILE}", "name a folder saved by save_pretrained"
    if any(folder.glob("*.bin")):
        problem, fix = "has its weights in torch .bin files, which can hold code", _CONVERT.format(folder=folder)
    if (folder / "adapter_config.json").is_file():
        problem = "is an adapter, not a model"
        fix = "merge it into its base first (peft: merge_and_unload), and save that"
    raise UserError(f"{folder} {problem}", fix)


def read_json(path: Path) -> Any:
    """Read a JSON file of a member.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})", _COPY_AGAIN) from error


def with_defaults(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the members' configs with transformers' defaults for what they leave out, if it knows the model.

    It is asked in a process of its own, where it can be kept from importing torch: 200 MiB and seconds.
    """
    configs = [dict(member.config) for member in members]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_defaults, configs).result() or configs


def _with_defaults(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would advise to install torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    try:
        return [CONFIG_MAPPING[config["model_type"]].from_dict(config).to_dict() for config in configs]
    except (ValueError, KeyError, TypeError, StrictDataclassError):
        return []


def leave_out_aliases(members: Sequence[Member]) -> list[Member]:
    """Return the members without output embeddings that only some of them store, because all of them tie them.

    Some writers store `lm_head.weight` of a tied model, others leave it out. The stored copies repeat what is averaged
    anyway. Kept as they are, they would be stale beside the averaged embeddings; averaged, they would need a partner in
    every member.

    Raises:
        UserError: stored output embeddings of a tied model differ from its input embeddings.
    """
    storing = [member for member in members if OUTPUT_EMBEDDINGS in member.files]
    others = [member for member in members if OUTPUT_EMBEDDINGS not in member.files]
    if not storing or not others or not all(config.get("tie_word_embeddings") for config in with_defaults(others)):
        return list(members)
    for member in storing:
        embeddings = next((name for name in member.files if name.endswith(INPUT_EMBEDDINGS)), None)
        if embeddings is None or not _are_equal(member, embeddings, OUTPUT_EMBEDDINGS):
            problem = f"{member.name} has a {OUTPUT_EMBEDDINGS} of its own, others tie it to the input embeddings"
            raise UserError(problem, "average models that are all tied, or all untied")
    aliases = frozenset({OUTPUT_EMBEDDINGS})
    return [replace(member, aliases=aliases) if member in storing else member for member in members]


def _are_equal(member: Member, *names: str) -> bool:
    (dtype, shape), (other_dtype, other_shape) = (member.tensor(name)[:2] for name in names)
    blocks = zip(*(read_blocks([member], name) for name in names), strict=True)
    return (dtype, shape) == (other_dtype, other_shape) and all(
        bytes(one) == bytes(other) for (one,), (other,) in blocks
    )
