"""Whether members compute the same function of their weights: configs and tokenizers, compared by meaning.

Averaging weights that are read by different functions (another rope, activation, norm epsilon or vocabulary) gives a
model that loads, runs, and is wrong. A key that only some configs have is looked up among transformers' defaults, in a
process of its own, for there transformers can be kept from importing torch.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.soup.config import SoupConfig
from ladle.soup.members import Member, read_json

NO_FUNCTION = frozenset(
    {
        "_name_or_path", "transformers_version", "auto_map", "torch_dtype", "dtype", "use_cache", "_from_model_config",
        "output_attentions", "output_hidden_states", "return_dict", "bos_token_id", "eos_token_id", "pad_token_id",
        "attention_dropout", "hidden_dropout", "initializer_range", "_attn_implementation_autoset",
        "num_nextn_predict_layers", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "pretraining_tp", "ep_size",
    }
)  # fmt: skip
"""Keys of config.json that do not change logits: where it came from, how it is trained, saved or generated from.
Dtypes are compared tensor by tensor."""
FIXED_BY_MODEL = {"deepseek_v3": frozenset({"topk_method", "scoring_func"})}
"""Keys that transformers' implementation of a model neither reads nor saves."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
NO_VOCABULARY = frozenset(
    {
        "padding", "truncation", "model_max_length", "padding_side", "truncation_side", "name_or_path",
        "tokenizer_file", "transformers_version", "auto_map", "backend", "is_local", "local_files_only",
        "processor_class", "max_length", "stride", "pad_to_multiple_of", "truncation_strategy",
        "clean_up_tokenization_spaces", "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens",
        "tokenizer_class", "special_tokens_map_file",
    }
)  # fmt: skip
"""Keys of a tokenizer's JSON files that leave text and ids as they are, or repeat tokenizer.json."""


_FIXES = {
    "allow_config": "average models of one configuration, or set allow_config=true to use the first member's",
    "allow_tokenizer": "average models of one tokenizer, or set allow_tokenizer=true to use the first one",
}


def compare_functions(members: Sequence[Member], config: SoupConfig) -> dict[str, Any]:
    """Compare configs and tokenizers and return the differences that were waived, by the field that accepts them.

    Raises:
        UserError: a difference that `config` does not waive.
    """
    waived: dict[str, Any] = {}
    found = {"allow_config": _config_differences(members), "allow_tokenizer": _tokenizer_differences(members)}
    for waiver, differences in found.items():
        if differences and not getattr(config, waiver):
            raise UserError(f"the members of the soup are different functions: {differences[0]}", _FIXES[waiver])
        if differences:
            waived[waiver] = {"count": len(differences), "first": differences[:3]}
    return waived


def tokenizer_owner(members: Sequence[Member]) -> Member | None:
    """Return the first member that has a tokenizer."""
    return next((member for member in members if _tokenizer(member)), None)


def _config_differences(members: Sequence[Member]) -> list[str]:
    configs = [_functional(read_json(member.folder / "config.json")) for member in members]
    if any(config.keys() != configs[0].keys() for config in configs):
        configs = _with_defaults([member.folder for member in members], configs)
    differences = []
    for member, config in zip(members[1:], configs[1:], strict=True):
        for key in sorted(configs[0].keys() | config.keys()):
            here, there = (each.get(key, "absent") for each in (configs[0], config))
            if here != there:
                differences.append(f"{key} is {here!r} in {members[0].name} and {there!r} in {member.name}")
    return differences


def _functional(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out what does not change the function, and bring the two spellings of rope together."""
    ignored = NO_FUNCTION | FIXED_BY_MODEL.get(config.get("model_type", ""), frozenset())
    kept = {key: value for key, value in config.items() if key not in ignored and value is not None}
    theta, scaling = kept.pop("rope_theta", None), kept.pop("rope_scaling", None)
    rope = dict(kept.get("rope_parameters") or scaling or {})
    rope["rope_type"] = rope.pop("type", rope.get("rope_type", "default"))
    if theta is not None:
        rope.setdefault("rope_theta", theta)
    if len(rope) > 1:
        kept["rope_parameters"] = rope
    return kept


def _with_defaults(folders: list[Path], configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the configs with transformers' defaults for what they leave out, where transformers knows the model."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        loaded = pool.submit(_load_configs, [str(folder) for folder in folders]).result()
    return configs if loaded is None else [_functional(config) for config in loaded]


def _load_configs(folders: list[str]) -> list[dict[str, Any]] | None:
    # Configs need no torch, whose import takes 200 MiB and seconds; without it transformers gives advice on stderr.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    from transformers import AutoConfig

    try:
        return [AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict() for folder in folders]
    except (ValueError, KeyError):  # an architecture that this transformers does not have
        return None


def _tokenizer(member: Member) -> dict[str, Any]:
    """Return what fixes a member's tokens, by file: JSON without its settings, other files as they are."""
    paths = [member.folder / name for name in TOKENIZER_FILES if (member.folder / name).is_file()]
    found = {path.name: _read_tokenizer_file(path) for path in paths}
    template = found.get("tokenizer_config.json", {}).pop("chat_template", None)
    if template is not None:  # where it stands, in the config or in a file of its own, depends on who saved it
        found.setdefault("chat_template.jinja", template.encode() if isinstance(template, str) else template)
    return found


def _read_tokenizer_file(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_bytes()
    value = read_json(path)
    if not isinstance(value, dict):
        return value
    return {key: _token_text(item) for key, item in value.items() if key not in NO_VOCABULARY and item is not None}


def _token_text(item: Any) -> Any:
    """A special token is saved as its text, or as an object around it."""
    return item["content"] if isinstance(item, dict) and "content" in item else item


def _tokenizer_differences(members: Sequence[Member]) -> list[str]:
    """Compare the files that two members both have; a checkpoint saved without a tokenizer is no difference."""
    owner = tokenizer_owner(members)
    if owner is None:
        return []
    first = _tokenizer(owner)
    differences = []
    for member in members:
        other = _tokenizer(member)
        names = [name for name in first if name in other and first[name] != other[name]]
        differences += [f"{name} differs between {owner.name} and {member.name}" for name in names]
        if other and "tokenizer.json" in first.keys() ^ other.keys():
            differences.append(f"only one of {owner.name} and {member.name} has a tokenizer.json")
    return differences
