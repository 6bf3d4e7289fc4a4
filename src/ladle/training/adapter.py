"""Low-rank adapters on frozen weights, which may be held in 4 or 8 bits: made, and saved alone and merged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from ladle.errors import UserError
from ladle.models.load import copy_out_of_file, load_model, save_model
from ladle.training.config import QuantizationConfig, TrainingConfig
from ladle.training.loop import Training


def load_start(
    path: Path, quantization: QuantizationConfig | None, dtype: str, attention: str, device: torch.device
) -> PreTrainedModel:
    """Load a training's start onto a device; quantized weights stay where they are loaded.

    Raises:
        UserError: quantization without bitsandbytes.
    """
    options = None
    if quantization is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            problem = "quantization needs bitsandbytes, which is not installed"
            raise UserError(problem, "pip install 'ladle[quantization]', or leave quantization out")
        fields = quantization.model_dump()
        fields["bnb_4bit_compute_dtype"] = getattr(torch, fields["bnb_4bit_compute_dtype"])
        options = BitsAndBytesConfig(**fields)
    model = load_model(path, dtype, attention, options)
    if options is None:
        copy_out_of_file(model)
        model.to(device=device)  # type: ignore[reportCallIssue]
    return model


def add_adapter(model: PreTrainedModel, config: TrainingConfig, seed: int) -> Any:
    """Return the model, under a fresh adapter where the recipe wants one: random by `seed` alone, the rest frozen.

    Raises:
        UserError: peft is not installed.
    """
    if config.peft is None:
        return model
    if importlib.util.find_spec("peft") is None:
        raise UserError("peft: needs the package peft, which is not installed", "pip install 'ladle[peft]'")
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(**config.peft.model_dump(), task_type="CAUSAL_LM"))


def save_trained(training: Training, start: Path, config: TrainingConfig, out: Path) -> None:
    """Save a trained model to `out/model`; an adapter to `out/adapter`, and merged into its unquantized start."""
    if config.peft is None:
        training.save_weights(out / "model")
        return
    from peft import PeftModel

    training.save_weights(out / "adapter")
    if not training.world.is_main:
        return
    config_file = out / "adapter" / "adapter_config.json"
    fields = json.loads(config_file.read_text(encoding="utf-8"))
    # the start's name alone: its folder would differ between equal runs
    fields["base_model_name_or_path"] = Path(fields["base_model_name_or_path"]).parent.name
    config_file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    base = load_model(start, config.dtype, config.attn_implementation)
    adapted: Any = PeftModel.from_pretrained(base, str(out / "adapter"), torch_device="cpu")  # where the base is
    save_model(adapted.merge_and_unload(), training.tokenizer, out / "model")
