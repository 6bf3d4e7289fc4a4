"""GGUF files, llama.cpp's one-file models, as folders that an import reads.

transformers reads the format (`gguf_file=`) for the architectures that it has a mapping for, and turns quantized
weights back into floats. They stay float32 here: a 4-bit block is a scale times a small number plus an offset, which
half precision would round.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ladle.errors import CheckFailed, UserError
from ladle.log import get_logger
from ladle.models.probe import CANNOT_RUN, first_line

logger = get_logger(__name__)

COMPUTED = ("rope_freqs.",)
"""Tensors that llama.cpp writes and transformers computes from the config."""


def read_gguf_config(path: Path) -> PreTrainedConfig:
    """Return the config of the model in a GGUF file.

    Raises:
        UserError: the package gguf is missing, or transformers cannot read the file.
    """
    if find_spec("gguf") is None:
        raise UserError(f"{path} is a GGUF file, and the package gguf is missing", "pip install 'ladle[gguf]'")
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except CANNOT_RUN as error:
        raise _cannot_read(path, error) from error


def _cannot_read(path: Path, error: Exception) -> UserError:
    problem = f"{path} is not a GGUF file that transformers can read: {first_line(error)}"
    return UserError(problem, "fetch it again, or name the folder of the model that it was made from")


def _refuse_scaled_positions(path: Path, reader: Any, config: PreTrainedConfig) -> None:
    """Refuse positions that are scaled in the file (Llama 3.1's, YaRN's) and not in the config made from it."""
    kinds = [field.contents() for name, field in reader.fields.items() if name.endswith(".rope.scaling.type")]
    kinds += [one.name for one in reader.tensors if one.name.startswith(COMPUTED) and (one.data != 1).any()]
    ropes = getattr(config, "rope_parameters", None) or {}
    if (scaled := [kind for kind in kinds if kind != "none"]) and ropes.get("rope_type", "default") == "default":
        problem = f"{path} scales its positions ({scaled[0]}), which transformers does not read from a GGUF file"
        raise UserError(problem, "fetch the model that it was made from, as a folder of safetensors")


def unpack_gguf(path: Path, folder: Path) -> dict[str, Any]:
    """Write the model of a GGUF file to `folder` and return what the file is: its tensors' types and their numbers.

    Args:
        path: the file.
        folder: gets config.json, float32 weights and the tokenizer with its chat template.

    Raises:
        UserError: the package gguf is missing, or transformers cannot read the file.
        CheckFailed: a weight of the model is not in the file, or a tensor of the file has no place in the model.
    """
    config = read_gguf_config(path)
    from gguf import GGUFReader  # an extra: `read_gguf_config` says where it is missing

    reader = GGUFReader(path)
    _refuse_scaled_positions(path, reader, config)
    tensors = [tensor for tensor in reader.tensors if not tensor.name.startswith(COMPUTED)]
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except CANNOT_RUN as error:
        raise _cannot_read(path, error) from error
    # the stub knows only the model; output_loading_info=True adds the report
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    faults = {kind: sorted(map(str, report[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if found := [f"{kind}: {len(keys)}, such as {keys[0]}" for kind, keys in faults.items() if keys]:
        raise CheckFailed(f"the tensors in {path} do not fit the model ({'; '.join(found)})")
    with torch.device("meta"):  # one that transformers saves: what it reads from a GGUF file counts as quantized
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    in_file, in_model = sum(int(tensor.n_elements) for tensor in tensors), plain.num_parameters()
    if in_file != in_model:
        problem = f"{path} holds {in_file:,} numbers and the model that transformers makes of it has {in_model:,}"
        raise CheckFailed(f"{problem}: a tensor of the file has no place there")
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    counts = Counter(tensor.tensor_type.name for tensor in tensors)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    logger.info("%s: %d tensors (%s), written out in float32", path.name, len(tensors), shown)
    return {"file": path.name, "tensors": dict(sorted(counts.items()))}
