"""How far apart the members' experts and routers are.

Averaging experts makes sense while expert 5 of one member is a drifted expert 5 of another; members whose experts
have parted, or whose routers balance their load by very different biases, average into experts that no router was
trained with (arXiv 2606.03391). The report is a reading, not a verdict: what distance still averages well is not
settled.

Distances are estimated from one window in the middle of each matrix, so the report costs no pass over the weights.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from ladle.soup.formats import FLOATS, as_dtype
from ladle.soup.members import Member

EXPERT = re.compile(r"^(?P<layer>.*\blayers\.\d+)\..*\bexperts\.(\d+\..*weight|\w+)$")
"""One expert's matrix (`…experts.7.up_proj.weight`), or one tensor with a slice an expert (`…experts.gate_up_proj`)."""
ROUTER_BIAS = re.compile(r"^(?P<layer>.*\blayers\.\d+)\..*\be_score_correction_bias$")
WINDOW = 1024
"""Numbers read of each matrix of each expert: a distance is then known to about 2 % (1 / sqrt(2 * 1024))."""


def moe_report(members: Sequence[Member]) -> list[dict[str, Any]] | None:
    """Describe each layer with routed experts; None for a model without, or a soup of one.

    An entry has the layer's name; `router_bias_spread`, the largest less the smallest bias that an expert has in the
    members, as mean and maximum over experts; and `expert_distance`, for each member but the first the L2 norm of the
    difference between its expert's matrix and the first member's, relative to that one's norm, as mean and maximum
    over experts and matrices.
    """
    experts, biases = _by_layer(members, EXPERT), _by_layer(members, ROUTER_BIAS)
    if not experts or len(members) == 1:
        return None
    with ExitStack() as stack:
        reader = _Reader(members, stack)
        return [_describe(layer, names, biases.get(layer, []), reader) for layer, names in experts.items()]


def _by_layer(members: Sequence[Member], pattern: re.Pattern[str]) -> dict[str, list[str]]:
    """Group the floating-point tensors that all members have alike by the layer in their names."""
    layers: dict[str, list[str]] = {}
    for name in members[0].files:
        match, tensor = pattern.match(name), members[0].tensor(name)
        if (
            match
            and tensor.dtype in FLOATS
            and all(name in member.files and member.tensor(name)[:2] == tensor[:2] for member in members)
        ):
            layers.setdefault(match["layer"], []).append(name)
    return layers


class _Reader:
    """Reads windows of tensors of all members."""

    def __init__(self, members: Sequence[Member], stack: ExitStack) -> None:
        self.members = members
        self.files = [
            {file: stack.enter_context((member.folder / file).open("rb")) for file in member.headers}
            for member in members
        ]

    def read(self, name: str, first: int, count: int) -> np.ndarray:
        """Return (members, count) numbers from element `first` of a tensor on, in fp64."""
        rows = []
        for member, files in zip(self.members, self.files, strict=True):
            tensor = member.tensor(name)
            size = FLOATS[tensor.dtype].size
            raw = os.pread(files[member.files[name]].fileno(), count * size, tensor.start + first * size)
            rows.append(as_dtype(np.frombuffer(raw, FLOATS[tensor.dtype].bits), tensor.dtype, "F64").view(np.float64))
        return np.stack(rows)


def _describe(layer: str, experts: list[str], biases: list[str], reader: _Reader) -> dict[str, Any]:
    entry: dict[str, Any] = {"layer": layer}
    if biases:
        count = reader.members[0].tensor(biases[0]).num_elements
        entry["router_bias_spread"] = _mean_and_max(np.ptp(reader.read(biases[0], 0, count), axis=0))
    distances = np.stack([distance for name in experts for distance in _distances(name, reader)], axis=1)
    entry["expert_distance"] = {
        member.name: _mean_and_max(row) for member, row in zip(reader.members[1:], distances, strict=True)
    }
    return entry


def _distances(name: str, reader: _Reader) -> list[np.ndarray]:
    """Return, for each expert's matrix in a tensor, the relative distance of each member but the first."""
    shape = reader.members[0].tensor(name).shape
    size = math.prod(shape[-2:])
    count = min(WINDOW, size)
    found = []
    for matrix in range(math.prod(shape[:-2])):
        first, *others = reader.read(name, matrix * size + (size - count) // 2, count)
        norm = np.linalg.norm(first)
        found.append(np.array([np.linalg.norm(other - first) / norm if norm else 0.0 for other in others]))
    return found


def _mean_and_max(values: np.ndarray) -> dict[str, float | None]:
    return {"mean": _rounded(values.mean()), "max": _rounded(values.max())}


def _rounded(value: float) -> float | None:
    """Four digits: more is noise of the estimate, and would differ in the last place between machines."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
