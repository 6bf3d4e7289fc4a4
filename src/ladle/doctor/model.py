"""Do model and tokenizer fit each other and the recipe: files there, vocabulary, length, chat template."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ladle.artifacts.inputs import find_local
from ladle.doctor.finding import Finding, error, guarded, ok, warning
from ladle.doctor.references import Reference, alignments_of, mixes_of
from ladle.errors import UserError
from ladle.models.config import InitConfig
from ladle.recipe import Recipe
from ladle.soup.members import read_header

FAMILY = "model"
INDEX = "model.safetensors.index.json"


def config_of_base(recipe: Recipe, reference: Reference | None) -> dict[str, Any] | None:
    """Return the fields of the base's config.json, or None where they cannot be known before the run.

    Raises:
        UserError: the model is nowhere, or its tokenizer cannot be read.
    """
    init = recipe.base.init if recipe.base else None
    if init is not None:
        size = _tokenizer_size(init)
        return None if size is None else {"vocab_size": size} | init.architecture
    if reference is None:
        return None
    folder = _folder(reference)
    return _read_config(folder) if (folder / "config.json").is_file() else None


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        raise UserError(f"{path} is not JSON ({fault})", "fetch the file again") from fault


def _folder(reference: Reference) -> Path:
    if reference.paths:
        place = reference.paths[0]
        return place / "model" if (place / "model").is_dir() else place
    from ladle.hub import resolve_commit, snapshot

    assert reference.repo_id is not None  # a reference that is nowhere was refused before
    commit = resolve_commit("model", reference.repo_id, reference.revision)
    return snapshot("model", reference.repo_id, commit, "config.json").parent


def _tokenizer_size(init: InitConfig) -> int | None:
    if not isinstance(init.tokenizer, str):
        return init.tokenizer.vocab_size
    found = find_local(init.tokenizer)
    if not found:
        return None
    from ladle.models.tokenizer import load_fast_tokenizer

    return len(load_fast_tokenizer(found[0]))


def check_models(recipe: Recipe, references: list[Reference], config: dict[str, Any] | None) -> Iterator[Finding]:
    """Yield a finding for each model folder that is here, and for the base against what the recipe does with it."""
    for reference in references:
        if reference.kind == "model" and reference.paths and reference.key != "base.init.tokenizer":
            for path in reference.paths:
                yield from guarded(FAMILY, reference.key, lambda k=reference.key, p=path: _check_folder(k, p))
    init = recipe.base.init if recipe.base else None
    if init is not None:
        yield from guarded(FAMILY, "base.init", lambda: _check_init(init, config))
    if config is not None:
        yield from _check_lengths(recipe, config)
    yield from guarded(FAMILY, "tokenizer", lambda: _check_template(recipe))


def _check_folder(key: str, folder: Path) -> Iterator[Finding]:
    from ladle.models.load import model_dir

    place = model_dir(folder)
    config = _read_config(place)
    yield from _check_type(key, config)
    weights = _weight_files(place)
    absent = [name for name in weights if not (place / name).is_file()]
    if not weights:
        yield error(FAMILY, key, f"{place} has a config.json and no weights", "fetch the *.safetensors files as well")
    elif absent:
        yield error(
            FAMILY,
            key,
            f"{place} lacks {len(absent)} of {len(weights)} weight files, such as {absent[0]}",
            "fetch the missing files, or name a complete folder",
        )
    else:
        for name in weights:
            if name.endswith(".safetensors"):
                read_header(place / name)
        yield ok(FAMILY, key, f"{config.get('model_type')}, {len(weights)} weight file(s)")
    yield from _check_vocabulary(key, place, config)


def _weight_files(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    return sorted(path.name for path in folder.glob("*.safetensors")) or sorted(
        path.name for path in folder.glob("pytorch_model*.bin")
    )


def _check_type(key: str, config: dict[str, Any]) -> Iterator[Finding]:
    from transformers import CONFIG_MAPPING

    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        yield error(
            FAMILY,
            key,
            f"model_type is {model_type!r}, which the installed transformers does not know",
            f"did you mean {close[0]!r}?" if close else "use a model that transformers has a class of its own for",
        )


def _check_vocabulary(key: str, folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    from ladle.models.tokenizer import load_fast_tokenizer

    tokenizer = load_fast_tokenizer(folder)
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 0)
    if len(tokenizer) > size:
        yield error(
            FAMILY,
            key,
            f"the tokenizer in {folder} has {len(tokenizer):,} tokens and the model {size:,}",
            "use the model's own tokenizer",
        )
    if tokenizer.eos_token_id is None:
        yield error(
            FAMILY,
            key,
            f"the tokenizer in {folder} names no eos_token: documents and answers would not end",
            "add `eos_token` to its tokenizer_config.json",
        )


def _check_init(init: Any, config: dict[str, Any] | None) -> Iterator[Finding]:
    yield from _check_type("base.init.architecture", init.architecture)
    if config is None:
        return
    from ladle.training.memory import count_parameters

    if init.architecture.get("vocab_size", config["vocab_size"]) < (_tokenizer_size(init) or 0):
        yield error(
            FAMILY,
            "base.init.architecture",
            f"vocab_size is {init.architecture['vocab_size']:,} and the tokenizer has {_tokenizer_size(init):,} tokens",
            "leave vocab_size out, or raise it",
        )
        return
    yield ok(FAMILY, "base.init", f"{count_parameters(config):,} parameters")


def _check_lengths(recipe: Recipe, config: dict[str, Any]) -> Iterator[Finding]:
    most = config.get("max_position_embeddings")
    wanted = {f"{key}.sequence_length": mix.sequence_length for key, mix in mixes_of(recipe)}
    wanted |= {f"{key}.max_length": one.max_length for key, one in alignments_of(recipe)}
    for key, length in wanted.items():
        if most is not None and length > most:
            yield error(
                FAMILY,
                key,
                f"{length:,} tokens, and the model has positions for {most:,}",
                f"set {key}={most}, or use a model with more",
            )
    generated = {}
    if recipe.rollout is not None:
        generated["rollout.max_new_tokens"] = recipe.rollout.max_new_tokens
    if recipe.evaluate is not None:
        generated["evaluate.sampling.max_new_tokens"] = recipe.evaluate.sampling.max_new_tokens
    for key, length in generated.items():
        if most is not None and length >= most:
            yield warning(
                FAMILY,
                key,
                f"{length:,} new tokens, and the model has positions for {most:,} with the prompt",
                f"set {key} below {most:,}",
            )


def _check_template(recipe: Recipe) -> Iterator[Finding]:
    needs = [
        f"{key}.sources.{one.name}" for key, mix in mixes_of(recipe) for one in mix.sources if one.format == "messages"
    ]
    needs += ["rollout.prompt"] if recipe.rollout is not None and recipe.rollout.prompt == "chat" else []
    needs += ["evaluate.prompt"] if recipe.evaluate is not None and recipe.evaluate.prompt == "chat" else []
    if recipe.base is None:
        return
    init = recipe.base.init
    name = recipe.base.model or (init.tokenizer if init is not None and isinstance(init.tokenizer, str) else None)
    found = find_local(name) if name else ()
    if not needs or not found:
        return
    from ladle.models.tokenizer import load_fast_tokenizer

    place = found[0] / "model" if (found[0] / "model").is_dir() else found[0]
    if load_fast_tokenizer(place).chat_template is None:
        yield error(
            FAMILY,
            needs[0],
            f"messages are asked for, and the tokenizer in {place} has no chat template",
            "add one to its tokenizer_config.json, or use a format without messages",
        )
