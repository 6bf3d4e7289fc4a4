"""What the members of a soup have in common: every difference is known, and refused or waived, before the work starts.

Weights that are used by different functions (another rope, activation, norm epsilon or vocabulary) average into a model
that loads, runs, and is wrong; so configs and tokenizers are compared by meaning, and tensors by name, shape and dtype.
Each kind of difference has a config field that accepts it; what was accepted is part of the result's record.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.soups.config import SoupConfig
from ladle.soups.mean import FLOATS, common_dtype
from ladle.soups.members import STEP, Member, leave_out_aliases, open_members, read_json, with_defaults

MAX_MEMBERS = 1024
NAMED = 3
"""Differences named in a message or a record, of a longer list."""

_NO_MATCH = "the members of the soup do not match"
_OTHER_FUNCTION = "the members of the soup are different functions"
DIFFERENCES = {
    "allow_missing": (_NO_MATCH, "average models of one architecture", "average what all of them have"),
    "allow_shapes": (_NO_MATCH, "average models of one size", "keep the first member's tensors there"),
    "allow_dtypes": (_NO_MATCH, "save the members in one dtype", "average them in the wider one"),
    "allow_repeats": ("a member is named twice", "name it once", "let it count twice (method=weighted sets shares)"),
    "allow_config": (_OTHER_FUNCTION, "average models of one configuration", "use the first member's"),
    "allow_tokenizer": (_OTHER_FUNCTION, "average models of one tokenizer", "use the first one"),
    "allow_order": (
        "the members are not in the order of their steps",
        "name them oldest first (a folder of checkpoints or a quoted glob does)",
        "take them as they are",
    ),
}
"""By the config field that accepts a difference: what is wrong, how to fix it, and what accepting it does."""

NO_FUNCTION = {
    "_name_or_path", "transformers_version", "auto_map", "torch_dtype", "dtype", "use_cache", "_from_model_config",
    "output_attentions", "output_hidden_states", "return_dict", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
    "num_nextn_predict_layers", "router_aux_loss_coef", "output_router_logits", "aux_loss_alpha", "seq_aux",
    "pretraining_tp", "ep_size",
}  # fmt: skip
"""Keys of config.json that do not change logits: where it came from, how it is trained, saved or generated from.
Dtypes are compared tensor by tensor."""
NOISE = re.compile("dropout|pdrop|layerdrop|jitter")
"""Part of the names of keys that have an effect in training alone."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
NO_VOCABULARY = {
    "padding", "truncation", "model_max_length", "padding_side", "truncation_side", "name_or_path",
    "tokenizer_file", "transformers_version", "auto_map", "backend", "is_local", "local_files_only",
    "processor_class", "max_length", "stride", "pad_to_multiple_of", "truncation_strategy",
    "clean_up_tokenization_spaces", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens",
    "tokenizer_class", "special_tokens_map_file",
}  # fmt: skip
"""Keys of a tokenizer's JSON files that leave text and ids as they are, or repeat tokenizer.json."""


@dataclass(frozen=True)
class Soup:
    """Members that can be averaged with any coefficients.

    Attributes:
        members: in the order of the coefficients.
        config: the settings.
        averaged: dtype of the result of each floating-point tensor that all members have.
        equal: integer, boolean and 8-bit float tensors that all members have; equality is checked as they are read.
        copied: tensors that not all members have, or that differ in shape or kind; the first member's are kept.
        dropped: tensors that the first member does not have.
        waived: by the config field that accepts them, how many differences there are, and the first of them.
    """

    members: list[Member]
    config: SoupConfig
    averaged: dict[str, str]
    equal: set[str]
    copied: list[str]
    dropped: list[str]
    waived: dict[str, Any]


def open_soup(folders: Sequence[Path], config: SoupConfig) -> Soup:
    """Read the members' headers, configs and tokenizers and compare them; weights are not read.

    Raises:
        UserError: members are damaged or differ in a way that `config` does not waive.
    """
    if len(folders) > MAX_MEMBERS:
        raise UserError(f"{len(folders)} members are too many", f"average at most {MAX_MEMBERS}")
    members = leave_out_aliases(open_members(folders))
    first, found = members[0], defaultdict[str, list[str]](list)
    for field, difference in _differences(members, config):
        found[field].append(difference)
    averaged, equal, copied = {}, set(), []
    for name in first.files:
        tensors = [member.tensor(name) for member in members if name in member.files]
        shapes, dtypes = {tensor.shape for tensor in tensors}, {tensor.dtype for tensor in tensors}
        if len(shapes) > 1:
            found["allow_shapes"].append(f"{name} has shapes {sorted(map(list, shapes))}")
        elif len(dtypes) > 1:
            found["allow_dtypes"].append(f"{name} has dtypes {sorted(dtypes)}")
        if len(tensors) < len(members) or len(shapes) > 1 or (len(dtypes) > 1 and not dtypes <= FLOATS.keys()):
            copied.append(name)
        elif dtypes <= FLOATS.keys():
            averaged[name] = "F32" if config.dtype == "float32" else common_dtype(dtypes)
        else:
            equal.add(name)
    dropped = sorted({name for member in members for name in member.files} - first.files.keys())
    for field, (problem, fix, effect) in DIFFERENCES.items():
        if field in found and not getattr(config, field):
            more = f" (and {len(found[field]) - 1} more such differences)" if len(found[field]) > 1 else ""
            raise UserError(f"{problem}: {found[field][0]}{more}", f"{fix}, or set {field}=true to {effect}")
    waived = {field: {"count": len(differences), "first": differences[:NAMED]} for field, differences in found.items()}
    return Soup(members, config, averaged, equal, copied, dropped, waived)


def _differences(members: Sequence[Member], config: SoupConfig) -> Iterator[tuple[str, str]]:
    """Yield each difference between members with the config field that accepts it."""
    first = members[0]
    for member in members[1:]:
        for lacking, other in ((member, first), (first, member)):
            if names := sorted(other.files.keys() - lacking.files.keys()):
                some = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
                yield "allow_missing", f"{lacking.name} lacks {len(names)} tensors ({some})"
    known: dict[Path, Member] = {}
    for member in members:
        same = known.setdefault(member.folder.resolve(), member)
        if same is not member:
            yield "allow_repeats", f"{member.name} and {same.name} are both {member.folder}"
    for difference in _config_differences(members):
        yield "allow_config", difference
    for difference in _tokenizer_differences(members):
        yield "allow_tokenizer", difference
    if config.method != "uniform" or config.select != "none":  # otherwise order does not matter
        for earlier, later in pairwise(members):
            (run, step), (other_run, other_step) = _place(earlier), _place(later)
            if run == other_run and 0 <= other_step <= step:
                yield "allow_order", f"{later.name} comes after {earlier.name}"


def _place(member: Member) -> tuple[Path, int]:
    """Return the folder of a checkpoint and its step; -1 for other models."""
    folder = member.folder.resolve()
    folder = folder.parent if folder.name == "model" else folder
    match = STEP.fullmatch(folder.name)
    return folder.parent, int(match[1]) if match else -1


def _config_differences(members: Sequence[Member]) -> Iterator[str]:
    configs = [_functional(member.config) for member in members]
    if len({frozenset((key, value is None) for key, value in config.items()) for config in configs}) > 1:
        configs = [_functional(config) for config in with_defaults(members)]
    for member, config in zip(members[1:], configs[1:], strict=True):
        for key in sorted(configs[0].keys() | config.keys()):
            here, there = (each.get(key, "absent") for each in (configs[0], config))
            if here != there:
                yield f"{key} is {here!r} in {members[0].name} and {there!r} in {member.name}"


def _functional(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what does not change the function."""
    kept = {key: value for key, value in config.items() if key not in NO_FUNCTION and not NOISE.search(str(key))}
    return {key: _functional(value) if isinstance(value, dict) else value for key, value in kept.items()}


def tokenizer_owner(members: Sequence[Member]) -> Member | None:
    """Return the first member that has a tokenizer."""
    return next((member for member in members if _tokenizer(member)), None)


def _tokenizer_differences(members: Sequence[Member]) -> Iterator[str]:
    """Compare the files that two members both have; a checkpoint saved without a tokenizer is not a difference."""
    owner = tokenizer_owner(members)
    if owner is None:
        return
    first = _tokenizer(owner)
    for member in members:
        other = _tokenizer(member)
        for name in first:
            if name in other and first[name] != other[name]:
                yield f"{name} differs between {owner.name} and {member.name}"
        if other and "tokenizer.json" in first.keys() ^ other.keys():
            yield f"only one of {owner.name} and {member.name} has a tokenizer.json"


def _tokenizer(member: Member) -> dict[str, Any]:
    """Return what decides a member's tokens, by file: JSON without its settings, other files as they are.

    Chat templates are by name: who saved them decides whether they are in tokenizer_config.json or in files.
    """
    found: dict[str, Any] = {}
    for path in (path for pattern in TOKENIZER_FILES for path in member.folder.glob(pattern)):
        name = path.name
        if path.suffix == ".jinja":
            name = "chat template default" if name == "chat_template.jinja" else f"chat template {path.stem}"
        found[name] = value = read_json(path) if path.suffix == ".json" else path.read_bytes()
        if isinstance(value, dict):
            # A special token is saved as its text, or as an object around it.
            found[name] = {
                key: item["content"] if isinstance(item, dict) and "content" in item else item
                for key, item in value.items()
                if key not in NO_VOCABULARY and item is not None
            }
    templates = found.get("tokenizer_config.json", {}).pop("chat_template", [])
    if isinstance(templates, str):
        templates = [{"name": "default", "template": templates}]
    return {f"chat template {one['name']}": one["template"].encode() for one in templates} | found
