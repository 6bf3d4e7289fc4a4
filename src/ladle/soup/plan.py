"""What is read from where and written where: the output files, cut into runs of bytes that are treated alike.

The output takes the layout, files and order of tensors, that most members have. That choice, and with it every byte
of the result, does not depend on the order of the members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ladle.soup.compare_tensors import Comparison
from ladle.soup.formats import FLOATS
from ladle.soup.headers import Tensor, encode_header, read_header_bytes
from ladle.soup.members import Member

BYTES = "bytes"
"""Stands for a dtype where bytes are compared and copied, never averaged."""


class Source(NamedTuple):
    """Where one member's part of a run stands."""

    member: int
    file: str
    offset: int
    dtype: str


@dataclass
class Run:
    """Tensors that follow each other in all their sources and in the output, and are treated alike.

    Attributes:
        sources: the members that take part; for bytes, all must be equal and the first is written.
        out_offset: where the result goes in the output file.
        out_dtype: the result's dtype, or BYTES.
        num_elements: elements (for bytes: bytes) of all its tensors.
        tensors: name and number of elements of each.
    """

    sources: list[Source]
    out_offset: int
    out_dtype: str
    num_elements: int
    tensors: list[tuple[str, int]]

    @property
    def out_size(self) -> int:
        """Bytes of one element of the result."""
        return size_of(self.out_dtype)

    def tensors_at(self, elements: np.ndarray) -> list[str]:
        """Return the tensors that these elements belong to, in order."""
        stops = np.cumsum([count for _, count in self.tensors])
        return [self.tensors[index][0] for index in np.unique(np.searchsorted(stops, elements, side="right"))]


@dataclass(frozen=True)
class OutputFile:
    """One weight file of the result; `runs` are in the order of its bytes and leave out what is empty."""

    name: str
    header: bytes
    tensors: tuple[str, ...]
    runs: list[Run]
    size_bytes: int


def size_of(dtype: str) -> int:
    """Return the bytes of an element as it is read or written."""
    return 1 if dtype == BYTES else FLOATS[dtype].size


def plan_output(members: Sequence[Member], comparison: Comparison, used: Sequence[int]) -> list[OutputFile]:
    """Lay out the weight files of a soup.

    Args:
        members: all members; positions in the result's sources refer to them.
        comparison: how each tensor is treated.
        used: positions of the members that have a share in the average.
    """
    model = _layout_owner(members, comparison)
    return [_plan_file(file, model, members, comparison, used) for file in model.headers]


def _layout_owner(members: Sequence[Member], comparison: Comparison) -> Member:
    """Return a member with the most common layout; where tensors are missing somewhere it is the first member's."""
    if comparison.copied or comparison.dropped:
        return members[0]
    layouts = [tuple((file, header.digest) for file, header in member.headers.items()) for member in members]
    counts = Counter(layouts)
    best = min(counts, key=lambda layout: (-counts[layout], layout))
    return members[layouts.index(best)]


def _plan_file(
    file: str, model: Member, members: Sequence[Member], comparison: Comparison, used: Sequence[int]
) -> OutputFile:
    header = _header_bytes(file, model, comparison)
    runs: list[Run] = []
    offset = len(header)
    for run in _tensor_runs(file, model, members, comparison, used):
        run.out_offset = offset
        offset += run.num_elements * run.out_size
        if not (runs and _join(runs[-1], run)):
            runs.append(run)
    names = tuple(_kept_tensors(file, model))
    return OutputFile(file, header, names, [run for run in runs if run.num_elements], offset)


def _header_bytes(file: str, model: Member, comparison: Comparison) -> bytes:
    header, kept = model.headers[file], _kept_tensors(file, model)
    dtypes = {name: comparison.averaged.get(name, tensor.dtype) for name, tensor in kept.items()}
    if all(dtypes.get(name) == tensor.dtype for name, tensor in header.tensors.items()):
        return read_header_bytes(model.folder / file)
    return encode_header({name: (dtypes[name], tensor.shape) for name, tensor in kept.items()}, header.metadata)


def _kept_tensors(file: str, model: Member) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.headers[file].tensors.items() if name in model.files}


def _tensor_runs(
    file: str, model: Member, members: Sequence[Member], comparison: Comparison, used: Sequence[int]
) -> Iterator[Run]:
    """Yield a run for each tensor of the file, still without its place in the output."""
    for name, tensor in _kept_tensors(file, model).items():
        if name in comparison.averaged:
            sources = [_source(members, position, name, members[position].tensor(name).dtype) for position in used]
            count, out_dtype = tensor.num_elements, comparison.averaged[name]
        else:
            sources = [
                _source(members, position, name, BYTES) for position in (used if name in comparison.equal else [0])
            ]
            count, out_dtype = tensor.stop - tensor.start, BYTES
        yield Run(sources, 0, out_dtype, count, [(name, count)])


def _source(members: Sequence[Member], position: int, name: str, dtype: str) -> Source:
    member = members[position]
    return Source(position, member.files[name], member.tensor(name).start, dtype)


def _join(run: Run, after: Run) -> bool:
    """Append a run to the one before it where it follows it in every source too, as in members of one layout."""
    expected = [
        source._replace(offset=source.offset + run.num_elements * size_of(source.dtype)) for source in run.sources
    ]
    if run.out_dtype != after.out_dtype or expected != after.sources:
        return False
    run.tensors += after.tensors
    run.num_elements += after.num_elements
    return True
