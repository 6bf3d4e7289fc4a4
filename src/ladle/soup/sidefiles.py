"""The files of a model folder that are not weights: config, generation config, tokenizer, index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ladle.soup.compare_functions import TOKENIZER_FILES, tokenizer_owner
from ladle.soup.config import SoupConfig
from ladle.soup.members import INDEX_FILE, SINGLE_FILE, Member, read_json
from ladle.soup.plan import OutputFile

WANTED_BY_VLLM = {"deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}}
"""Keys that transformers neither needs nor saves, and without which vLLM cannot load the model."""


def write_side_files(members: Sequence[Member], files: Sequence[OutputFile], config: SoupConfig, out: Path) -> None:
    """Complete a model folder: the first member's configs, the first tokenizer, and an index where one is needed."""
    first = members[0].folder
    _write_json(out / "config.json", _model_config(read_json(first / "config.json"), config))
    if (first / "generation_config.json").is_file():
        shutil.copyfile(first / "generation_config.json", out / "generation_config.json")
    owner = tokenizer_owner(members)
    if owner is not None:
        for name in TOKENIZER_FILES:
            if (owner.folder / name).is_file():
                shutil.copyfile(owner.folder / name, out / name)
    for code in sorted(first.glob("*.py")):  # a model with code of its own does not load without it
        shutil.copyfile(code, out / code.name)
    if [file.name for file in files] != [SINGLE_FILE]:
        _write_json(out / INDEX_FILE, _index(files))


def _model_config(model: dict[str, Any], config: SoupConfig) -> dict[str, Any]:
    model = WANTED_BY_VLLM.get(model.get("model_type", ""), {}) | model
    if config.dtype is not None:
        model["torch_dtype" if "torch_dtype" in model else "dtype"] = config.dtype
    return model


def _index(files: Sequence[OutputFile]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(file.size_bytes - len(file.header) for file in files)},
        "weight_map": {name: file.name for file in files for name in file.tensors},
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
