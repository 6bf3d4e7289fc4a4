"""merge_info.json: what a soup is made of, and how each tensor came to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ladle.artifacts.files import hash_file
from ladle.soup.compare_tensors import Comparison
from ladle.soup.members import Member
from ladle.soup.moe import moe_report
from ladle.soup.plan import OutputFile
from ladle.soup.preflight import Soup
from ladle.soup.weights import GRID, Coefficients

INFO_FILE = "merge_info.json"
CARD_FILE = "README.md"
INFO_FORMAT = 1


def merge_info(
    soup: Soup,
    coefficients: Coefficients,
    files: Sequence[OutputFile],
    notes: dict[str, dict[str, Any]],
    selection: dict[str, Any] | None,
) -> dict[str, Any]:
    """Describe a finished soup in JSON values.

    Args:
        soup: the members; of the config only what makes its identity is recorded.
        coefficients: one numerator a member.
        files: the weight files of the result.
        notes: what the streaming pass noted about each of them: `blake3`, `inputs`, `nonfinite`, `unequal`.
        selection: candidates and scores, where the coefficients were selected.
    """
    return {
        "format": INFO_FORMAT,
        "method": selection["chosen"] if selection else soup.config.method,
        "config": soup.config.identity(),
        "members": _describe_members(soup, coefficients, notes),
        "coefficients_are_rounded_to": f"1/{GRID}" if coefficients.denominator == GRID else None,
        "tensors": _count_tensors(soup.members, soup.comparison, notes),
        "waived": soup.waived,
        "selection": selection,
        "experts": moe_report([soup.members[position] for position in coefficients.used]),
        "outputs": {file.name: {"size_bytes": file.size_bytes, "blake3": notes[file.name]["blake3"]} for file in files},
    }


def _describe_members(soup: Soup, coefficients: Coefficients, notes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    hashes = {(member, file): digest for note in notes.values() for member, file, digest in note["inputs"]}
    described = []
    for position, (member, share) in enumerate(zip(soup.members, coefficients.as_text(), strict=True)):
        files = {}
        for file, header in member.headers.items():
            files[file] = {"size_bytes": header.size_bytes, "blake3": None}
            if soup.config.hash_inputs and coefficients.numerators[position]:
                # A file laid out unlike the output was not read from end to end in one go, and is read once more.
                files[file]["blake3"] = hashes.get((position, file)) or hash_file(member.folder / file)
        described.append({"name": member.name, "coefficient": share, "files": files})
    return described


def _count_tensors(
    members: Sequence[Member], comparison: Comparison, notes: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    return {
        "in_each_member": {member.name: len(member.files) for member in members},
        "matched": len(comparison.averaged) + len(comparison.equal),
        "averaged": len(comparison.averaged),
        "equal_in_all": len(comparison.equal),
        "copied_from_first": comparison.copied,
        "dropped": comparison.dropped,
        "aliases": sorted({name for member in members for name in member.aliases}),
        "elements_averaged": sum(members[0].tensor(name).num_elements for name in comparison.averaged),
        "unequal": sorted(name for note in notes.values() for name in note["unequal"]),
        "elements_not_finite": sum(note["nonfinite"] for note in notes.values()),
    }
