"""The policy of a KTO training: the model to align, whole, under an adapter, or under an adapter in 4 or 8 bits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from ladle.errors import UserError
from ladle.kto.config import KtoConfig, KtoReferenceConfig, LoraConfig
from ladle.models.load import load_model, remove_half_written, save_model

Settings = KtoConfig | KtoReferenceConfig
"""Both say how weights are held."""


def load_policy_base(path: Path, settings: Settings) -> PreTrainedModel:
    """Load the policy's start, in 4 or 8 bits where the settings say so.

    Raises:
        UserError: quantization without bitsandbytes, or attention whose package is not installed.
    """
    if settings.quantization is None:
        return load_model(path, settings.dtype, settings.attn_implementation)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "kto.quantization needs bitsandbytes, which is not installed",
            "pip install 'ladle[quantization]', or leave kto.quantization out",
        )
    options = settings.quantization.model_dump()
    options["bnb_4bit_compute_dtype"] = getattr(torch, options["bnb_4bit_compute_dtype"])
    quantization = BitsAndBytesConfig(**options)
    return load_model(path, settings.dtype, settings.attn_implementation, quantization_config=quantization)


def add_adapter(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """Return the model under a fresh adapter, random by `seed` alone, its own weights frozen.

    Raises:
        UserError: peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError("kto.peft needs peft, which is not installed", "pip install 'ladle[peft]', or leave it out")
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(seed)
    return get_peft_model(model, PeftLoraConfig(**config.model_dump(), task_type="CAUSAL_LM"))


def save_policy(model: Any, tokenizer: PreTrainedTokenizerBase, start: Path, settings: Settings, out: Path) -> None:
    """Save a trained policy to `out/model`; an adapter to `out/adapter` too, merged into the unquantized start."""
    if not hasattr(model, "peft_config"):
        save_model(model, tokenizer, out / "model")
        return
    from peft import PeftModel

    model.save_pretrained(out / "adapter")
    remove_half_written(out / "adapter")
    config_file = out / "adapter" / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # the start's name alone: its folder would differ between equal runs
    config["base_model_name_or_path"] = Path(config["base_model_name_or_path"]).parent.name
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    base = load_model(start, settings.dtype, settings.attn_implementation)
    merged = PeftModel.from_pretrained(base, str(out / "adapter")).merge_and_unload()  # type: ignore[operator]
    save_model(merged, tokenizer, out / "model")
