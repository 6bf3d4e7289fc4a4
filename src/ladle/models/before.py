"""A model before it is used: do its files, tokenizer and config fit each other, and what the recipe does with them."""

from __future__ import annotations

import difflib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.artifacts.inputs import find_local
from ladle.checkup import Checkup, Finding, error, ok, read_config, warning
from ladle.errors import LadleError, UserError

MOST_PARAMETERS = 100_000_000
"""Of a model that is probed with all its widths, which takes two seconds."""
SMALL = {
    "vocab_size": 512, "hidden_size": 64, "word_embed_proj_dim": 64, "intermediate_size": 96, "ffn_dim": 96,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_attention_heads": 4, "head_dim": 16,
    "rotary_dim": 8, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "mamba_n_heads": 8, "mamba_d_head": 16,
    "mamba_d_ssm": 128, "num_heads": 8, "mamba_chunk_size": 16, "chunk_size": 16,
}  # fmt: skip
"""Sizes that a small copy of a model has at most."""


def parameters_of(check: Checkup) -> int | None:
    """Return the weights of the model that a step starts from; None if it is not known, or cannot be built."""
    from ladle.models.probe import CANNOT_RUN

    try:
        return None if check.model_config is None else _count_parameters(json.dumps(check.model_config))
    except (*CANNOT_RUN, LadleError):
        return None


@functools.cache
def small_copy(config_json: str) -> Any:
    """Return a small random model that does what the one of a config.json does; None if none can be made.

    It has a layer of each kind, and small widths where such a model can be built and run, else those of the config.

    Raises:
        UserError: its hidden states cannot be reached, or it takes more than text.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ladle.models.probe import CANNOT_RUN, hidden_states, refuse_multimodal, require_text_decoder

    for sizes in (SMALL, {"vocab_size": SMALL["vocab_size"]}):
        try:
            config = AutoConfig.for_model(**json.loads(config_json))
            refuse_multimodal(config)
            _shrink(config, sizes)
            with torch.device("meta"):
                outline = AutoModelForCausalLM.from_config(config)
            require_text_decoder(outline)
            if outline.num_parameters() > MOST_PARAMETERS:
                continue
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
                hidden_states(model, input_ids=torch.arange(8)[None])
            return model
        except UserError:
            raise
        except CANNOT_RUN:
            continue
    return None


def _shrink(config: Any, sizes: dict[str, int]) -> None:
    """Leave a config a layer of each kind that its lists name, at least two, and sizes of at most these."""
    fields, num_layers = config.to_dict(), config.num_hidden_layers
    lists = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == num_layers}
    kinds: dict[str, int] = {}
    for layer, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(str(kind), layer)
    layers = list(kinds.values())
    layers += [layer for layer in range(num_layers) if layer not in layers][: max(0, 2 - len(layers))]
    config.update({name: [value[layer] for layer in sorted(layers)] for name, value in lists.items()})
    config.num_hidden_layers = len(layers)
    # a special token may lie beyond the small vocabulary
    config.update({name: 0 for name, value in fields.items() if name.endswith("_token_id") and value is not None})
    heads, groups = (getattr(config, f"num_{name}_heads", None) for name in ("attention", "key_value"))
    for name, size in sizes.items():
        if isinstance(value := getattr(config, name, None), int) and value > size:
            setattr(config, name, size)
    if groups is not None and sizes is SMALL:
        config.num_key_value_heads = config.num_attention_heads if groups == heads else min(groups, 2)


@functools.cache
def _count_parameters(config: str) -> int:
    from ladle.training.memory import count_parameters

    return count_parameters(json.loads(config))


def check_model_folder(key: str, folder: Path) -> Iterator[Finding]:
    """Yield whether a folder on this machine is a whole model with a tokenizer that fits it."""
    from transformers import GenerationConfig

    from ladle.models.gguf import read_gguf_config
    from ladle.models.load import model_dir
    from ladle.models.probe import first_line
    from ladle.models.tokenizer import load_fast_tokenizer, read_json
    from ladle.soups.members import read_header

    if folder.suffix == ".gguf":
        yield ok("model", key, f"{read_gguf_config(folder).model_type}, a GGUF file")
        return
    place = model_dir(folder)
    config = read_config(place)
    yield from _check_type(key, config)
    indexed = read_json(place / "model.safetensors.index.json").get("weight_map", {}).values()
    weights = [place / name for name in sorted(set(indexed))] or sorted(place.glob("*.safetensors"))
    weights = weights or sorted(place.glob("pytorch_model*.bin"))
    absent = [path.name for path in weights if not path.is_file()]
    if not weights:
        message = f"{place} has a config.json and no weights"
        yield error("model", key, message, "fetch the *.safetensors files as well")
    elif absent:
        message = f"{place} lacks {len(absent)} of {len(weights)} weight files, such as {absent[0]}"
        yield error("model", key, message, "fetch the missing files, or name a complete folder")
    else:
        for path in weights:
            if path.suffix == ".safetensors":
                read_header(path)
        yield ok("model", key, f"{config.get('model_type')}, {len(weights)} weight file(s)")
    small_copy(json.dumps(config))
    if (place / "generation_config.json").is_file():
        try:
            GenerationConfig.from_pretrained(place).validate(strict=True)
        except (ValueError, OSError) as fault:
            message = f"generation_config.json in {place} is not valid: {first_line(fault)}"
            yield warning("model", key, message, "correct it: Ladle leaves those settings out of the models it saves")
    tokenizer = load_fast_tokenizer(place)
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0)
    if len(tokenizer) > size:
        message = f"the tokenizer in {place} has {len(tokenizer):,} tokens and the model {size:,}"
        yield error("model", key, message, "use the model's own tokenizer")
    if tokenizer.eos_token_id is None:
        message = f"the tokenizer in {place} names no eos_token: documents and answers would not end"
        yield error("model", key, message, "add `eos_token` to its tokenizer_config.json")


def _check_type(key: str, config: dict[str, Any]) -> Iterator[Finding]:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        fix = f"did you mean {close[0]!r}?" if close else "use a model that transformers has a class of its own for"
        yield error("model", key, f"model_type is {model_type!r}, which the installed transformers does not know", fix)


def check_start(check: Checkup) -> Iterator[Finding]:
    """Yield whether the model that a fetch step brings or makes can be built."""
    from ladle.models.probe import CANNOT_RUN, first_line

    architecture, config, key = getattr(check.config, "architecture", None), check.model_config, check.key
    if architecture is not None:
        key += ".architecture"
        yield from _check_type(key, architecture)
        size = tokenizer_size(check.step)
        if config is not None and size is not None and config["vocab_size"] < size:
            message = f"vocab_size is {config['vocab_size']:,} and the tokenizer has {size:,} tokens"
            yield error("model", key, message, "leave vocab_size out, or raise it")
            return
    if config is None:
        return
    try:
        yield ok("model", key, f"{_count_parameters(json.dumps(config)):,} parameters")
        small_copy(json.dumps(config))
    except UserError:
        raise
    except CANNOT_RUN as fault:
        message = f"transformers cannot build this architecture: {first_line(fault)}"
        yield error("model", key, message, "check the sizes against a config.json of the same model_type")


def tokenizer_size(step: Any) -> int | None:
    """Return the number of tokens of a fresh model's tokenizer; None if it is not on this machine."""
    from ladle.models.tokenizer import load_fast_tokenizer

    if step.config.train_tokenizer is not None:
        return step.config.train_tokenizer.vocab_size
    paths = getattr(step.inputs["tokenizer"][0], "paths", ())
    return len(load_fast_tokenizer(paths[0])) if paths else None


def check_positions(check: Checkup, key: str, length: int, is_new_tokens: bool = False) -> Iterator[Finding]:
    """Yield whether the model has positions for rows, or for a prompt and new tokens, of a length."""
    most = (check.model_config or {}).get("max_position_embeddings") or math.inf
    if is_new_tokens and length >= most:
        message = f"{length:,} new tokens, and the model has positions for {most:,} with the prompt"
        yield warning("model", key, message, f"set {key} below {most:,}")
    elif not is_new_tokens and length > most:
        message = f"{length:,} tokens, and the model has positions for {most:,}"
        yield error("model", key, message, f"set {key}={most}, or use a model with more")


def check_template(check: Checkup, key: str) -> Iterator[Finding]:
    """Yield an error if the tokenizer, where it is on this machine, has no chat template."""
    from ladle.models.tokenizer import load_fast_tokenizer

    folder = check.tokenizer_folder
    if folder is not None and find_local(str(folder)) and load_fast_tokenizer(folder).chat_template is None:
        message = f"messages need a chat template, and the tokenizer in {folder} has no chat template"
        yield error("model", key, message, "add one to its tokenizer_config.json, or use a format without messages")
