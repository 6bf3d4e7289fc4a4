"""The policy of a KTO training: the model to align, whole, under an adapter, or under an adapter in 4 or 8 bits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.load import load_model, remove_cut_short, save_model
from ladle.training.kto.config import LoraConfig, QuantizationConfig

logger = get_logger(__name__)


class ModelSettings(Protocol):
    """How weights are held: what training and its reference pass have in common."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def attn_implementation(self) -> str: ...  # noqa: D102
    @property
    def quantization(self) -> QuantizationConfig | None: ...  # noqa: D102


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that padding is filled with: the pad token's, else that of eos."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    assert isinstance(pad_id, int)
    return pad_id


def load_policy_base(path: Path, settings: ModelSettings) -> PreTrainedModel:
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


def keep_applicable_kernels(arguments: TrainingArguments, model: PreTrainedModel) -> None:
    """Switch `use_liger_kernel` off where Liger is not installed or does not know the model, and say so."""
    if not arguments.use_liger_kernel:
        return
    kind = model.config.model_type
    if importlib.util.find_spec("liger_kernel") is None:
        why = "liger-kernel is not installed"
    else:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN  # type: ignore[import-not-found]

        why = None if kind in MODEL_TYPE_TO_APPLY_LIGER_FN else f"Liger has no kernels for {kind}"
    if why is not None:
        logger.warning("use_liger_kernel is left out: %s", why)
        arguments.use_liger_kernel = False


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


def save_policy(
    model: Any, tokenizer: PreTrainedTokenizerBase, start: Path, settings: ModelSettings, out: Path
) -> None:
    """Save a trained policy to `out/model`; an adapter to `out/adapter` too, merged into the unquantized start."""
    if not hasattr(model, "peft_config"):
        save_model(model, tokenizer, out / "model")
        return
    from peft import PeftModel

    model.save_pretrained(out / "adapter")
    remove_cut_short(out / "adapter")
    _name_no_path(out / "adapter" / "adapter_config.json")
    base = load_model(start, settings.dtype, settings.attn_implementation)
    merged = PeftModel.from_pretrained(base, str(out / "adapter")).merge_and_unload()  # type: ignore[operator]
    save_model(merged, tokenizer, out / "model")


def _name_no_path(config_file: Path) -> None:
    """Leave the start's folder out of the adapter's config: its place would differ between equal runs."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = Path(config["base_model_name_or_path"]).parent.name
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
