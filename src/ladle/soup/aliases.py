"""Output embeddings that are stored although the model ties them to the input embeddings.

Some writers store `lm_head.weight` of a tied model, others leave it out. Where members of both kinds meet, the stored
copies repeat what is averaged anyway: once that is seen to be so, byte for byte, they are left out. Kept as they are,
they would be stale beside the averaged embeddings; averaged, they would need a partner in every member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ladle.errors import UserError
from ladle.soup.headers import Tensor
from ladle.soup.members import Member, read_json

OUTPUT_EMBEDDINGS = "lm_head.weight"
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
"""Ends of names."""
PIECE_BYTES = 2**20


def leave_out_aliases(members: Sequence[Member]) -> list[Member]:
    """Return the members without output embeddings that only some of them store, because all of them are tied.

    Raises:
        UserError: stored output embeddings of a tied model differ from its input embeddings.
    """
    storing = [member for member in members if OUTPUT_EMBEDDINGS in member.files]
    if len(storing) in (0, len(members)) or not all(_is_tied(member) for member in members if member not in storing):
        return list(members)
    for member in storing:
        _check_equal(member)
    aliases = frozenset({OUTPUT_EMBEDDINGS})
    return [replace(member, aliases=aliases) if member in storing else member for member in members]


def _is_tied(member: Member) -> bool:
    return read_json(member.folder / "config.json").get("tie_word_embeddings") is True


def _check_equal(member: Member) -> None:
    name = next((name for name in member.files if name.endswith(INPUT_EMBEDDINGS)), None)
    if name is None or not _are_equal(member, name, OUTPUT_EMBEDDINGS):
        raise UserError(
            f"{member.name} has a {OUTPUT_EMBEDDINGS} of its own, and other members tie theirs to the input embeddings",
            "average models that are tied alike",
        )


def _are_equal(member: Member, first: str, second: str) -> bool:
    here, there = member.tensor(first), member.tensor(second)
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return False
    paths = [member.folder / member.files[name] for name in (first, second)]
    return all(
        _read(paths[0], here, start) == _read(paths[1], there, start)
        for start in range(0, here.stop - here.start, PIECE_BYTES)
    )


def _read(path: Path, tensor: Tensor, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(tensor.start + start)
        return file.read(min(PIECE_BYTES, tensor.stop - tensor.start - start))
