"""Reading, importing and writing models, with every tensor accounted for.

Loading goes through `from_pretrained` alone: DeepSeek-V3 holds fused experts in memory and one tensor per expert on
disk, and a raw `load_state_dict(strict=False)` would lose them. Code from a repository is never run.

An import leaves a clean local folder and says what was changed on the way. Layers of multi-token prediction (MTP),
which training does not use, are left out and counted; a config that declares some which the checkpoint does not hold is
corrected.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from ladle.artifacts.files import pretty_json
from ladle.errors import CheckFailed, UserError
from ladle.log import get_logger
from ladle.models.chat import END_OF_TURN
from ladle.models.config import DEEPSEEK_V3_ROUTING, model_dir
from ladle.models.gguf import unpack_gguf
from ladle.models.probe import CANNOT_RUN, first_line, require_text_decoder
from ladle.models.tokenizer import convert_tokenizer, load_fast_tokenizer, read_json
from ladle.soups.members import main_dtype, read_header

transformers_logging.disable_progress_bar()  # one bar a tensor file would bury Ladle's own lines
logger = get_logger(__name__)

REPORT = "import_report.json"
MTP_LAYERS = "num_nextn_predict_layers"
MTP_PARTS = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
"""Modules that layers of multi-token prediction have, and others do not."""


def load_model(
    path: Path,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    quantization_config: Any = None,
    ignored: Collection[str] = frozenset(),
) -> PreTrainedModel:
    """Load a causal language model and check that every weight came from the file.

    Args:
        path: a model folder, or an artifact that holds one.
        dtype: name of a torch dtype, or `auto` for the one the weights are saved in.
        attn_implementation: as in transformers; one that cannot run here is replaced by sdpa, and sdpa by eager for an
            architecture without it, with a warning.
        quantization_config: as in transformers.
        ignored: names of tensors in the file that the model is known to have no place for.

    Raises:
        UserError: no model there, or an architecture that transformers does not know or that is not a text decoder.
        CheckFailed: weights are missing, left over, or of another shape.
    """
    folder = model_dir(path)
    usable = usable_attention(attn_implementation)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=None if usable == "sdpa" else usable,  # none: sdpa, or eager where there is none
            quantization_config=quantization_config,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that they are reported below, all at once
            output_loading_info=True,
        )
    except (OSError, ValueError, StrictDataclassError, SafetensorError) as error:
        problem = f"cannot load the model in {folder}: {first_line(error).rstrip('.')}"
        fix = "check config.json and the weights"
        raise UserError(problem, "set attn_implementation: eager" if "attention" in problem else fix) from error
    # the stub knows only the model; output_loading_info=True adds the report
    model, report = cast(tuple[PreTrainedModel, dict[str, Any]], loaded)
    names = ("missing_keys", "unexpected_keys", "mismatched_keys")
    found = {name: sorted(str(key) for key in report[name] if key not in ignored) for name in names}
    if faults := [f"{name}: {len(keys)}, such as {keys[0]}" for name, keys in found.items() if keys]:
        raise CheckFailed(f"the weights in {folder} do not fit the model ({'; '.join(faults)})")
    require_text_decoder(model)
    if usable == "sdpa" and model.config._attn_implementation != usable:
        logger.warning("%s has no sdpa attention: using %s", type(model).__name__, model.config._attn_implementation)
    if model.generation_config is not None and (removed := repair_generation_config(model.generation_config)):
        shown = ", ".join(f"{name}={value}" for name, value in removed.items())
        logger.warning("generation_config.json: %s contradicts its other settings, and is left out", shown)
    # else the embedding of a padding token that is the end token too would get no gradient
    cast(torch.nn.Embedding, model.get_input_embeddings()).padding_idx = None
    return model


def repair_generation_config(config: GenerationConfig) -> dict[str, Any]:
    """Leave out settings of generation that contradict each other, which could not be saved again, and return them.

    The common one is a temperature beside `do_sample: false`, which was without effect.
    """
    fields = config.to_diff_dict()
    removed = {}
    for name, value in fields.items():
        only = {key: fields[key] for key in {"do_sample", "num_beams", name} & fields.keys()}
        try:
            GenerationConfig(**only).validate(strict=True)
        except (ValueError, TypeError):
            removed[name] = value
            setattr(config, name, None)
    return removed


def usable_attention(requested: str) -> str:
    """Return `requested` where it can run on this machine, and `sdpa` with a warning that says why where it cannot."""
    if not requested.startswith("flash_attention"):
        return requested
    installed = is_flash_attn_3_available() if requested == "flash_attention_3" else is_flash_attn_2_available()
    if torch.cuda.is_available() and installed:
        return requested
    why = "its package is not installed, or not for this GPU" if torch.cuda.is_available() else "it needs a GPU"
    logger.warning("attn_implementation: %s cannot run here (%s): using sdpa", requested, why)
    return "sdpa"


def checkpoint_activations(model: Any, **kwargs: Any) -> None:
    """Let a model keep few activations and compute the rest again; `kwargs` are torch.utils.checkpoint's."""
    before_5_23 = model.gradient_checkpointing_enable
    enable = getattr(model, "activation_checkpointing_enable", before_5_23)  # transformers' new name for it
    enable(kwargs or None)


def copy_out_of_file(model: PreTrainedModel) -> None:
    """Give each tensor on the CPU memory of its own, so that the weight file is let go.

    `from_pretrained` leaves tensors that it need not convert as views of the mapped file. One of them keeps the whole
    file mapped, and what was read of it resident beside the model, for as long as the model lives. Buffers are
    replaced: a view remembers its base, whatever its data.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.device.type == "cpu":
                module._buffers[name] = buffer.clone()


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    dtype: str | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save weights, config and tokenizer so that transformers and vLLM load them again with nothing missing.

    Args:
        model: a model, or an adapter, which is saved as it is.
        tokenizer: its tokenizer.
        out: the folder.
        dtype: of the weights as saved, but for those that the architecture keeps in float32; None is their own.
        weights: all of them, where the model holds a share.
    """
    if not hasattr(model, "peft_config") and dtype is not None:
        wanted, kept = getattr(torch, dtype), model._keep_in_fp32_modules_strict or ()
        names = {name for name, _ in model.named_parameters() if not any(part in name for part in kept)}
        if weights is not None or model.dtype != wanted:
            weights = model.state_dict() if weights is None else weights
            weights = {name: tensor.to(wanted) if name in names else tensor for name, tensor in weights.items()}
    model.save_pretrained(out, state_dict=weights)
    tokenizer.save_pretrained(out)
    if (out / "config.json").is_file():
        complete_config(out, dtype)
    remove_half_written(out)


def require_side_files(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check, before a training, that all that is saved beside its weights can be.

    Raises:
        UserError: transformers refuses to save one of them.
    """
    parts = {"config": model.config, "generation config": model.generation_config, "tokenizer": tokenizer}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts.items():
            try:
                if part is not None:
                    part.save_pretrained(folder)
            except CANNOT_RUN as error:
                problem = f"the model's {name} cannot be saved: {first_line(error)}"
                raise UserError(problem, "correct its file in the model's folder") from error


def remove_half_written(folder: Path) -> None:
    """Remove what a killed save of tensors left: safetensors writes to `.tmp` and six letters, then renames that."""
    for path in folder.glob(".tmp??????"):
        path.unlink()


def complete_config(folder: Path, dtype: str | None = None) -> None:
    """Strip remote-code references from config.json, add the keys that vLLM needs, and say the weights' dtype."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    if dtype is not None:
        config["dtype"] = dtype
    routing = DEEPSEEK_V3_ROUTING if config.get("model_type") == "deepseek_v3" else {}
    path.write_text(pretty_json(routing | config), encoding="utf-8")


def init_model(
    architecture: dict[str, Any], tokenizer: PreTrainedTokenizerBase, dtype: str, seed: int
) -> PreTrainedModel:
    """Return a model with random weights, its vocabulary and special ids those of the tokenizer.

    Raises:
        UserError: an unknown model type, sizes that do not fit each other, or a vocabulary below the tokenizer's.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", "")
    fields.setdefault("vocab_size", len(tokenizer))
    if fields["vocab_size"] < len(tokenizer):
        problem = f"vocab_size is {fields['vocab_size']} and the tokenizer has {len(tokenizer)} tokens"
        raise UserError(problem, "leave vocab_size out, or raise it")
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if special["pad_token_id"] in (special["bos_token_id"], special["eos_token_id"]):
        special["pad_token_id"] = None  # it would begin at zero, and get no gradient
    try:
        config = AutoConfig.for_model(model_type, **(special | fields))
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except CANNOT_RUN as error:
        problem = f"init.architecture is not a model: {' '.join(str(error).splitlines()[:2])}"
        raise UserError(problem, "check model_type and the sizes") from error
    # as `from_pretrained` keeps them in a loaded model: DeepSeek-V3's router biases
    in_float32 = model._keep_in_fp32_modules_strict or ()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if any(part in name for part in in_float32):
            tensor.data = tensor.data.float()
    return model


def import_model(source: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    """Write a model of any causal language model class that transformers has to `out`, and return the report.

    Args:
        source: a model's folder, or a GGUF file.
        out: gets weights, config, tokenizer and the report as `import_report.json`.
        dtype: to save the weights in; None keeps theirs.

    Raises:
        UserError: no model there, or of a class that transformers lacks.
        CheckFailed: a tensor is missing, left over or of another shape.
    """
    unpacked, gguf = out / ".gguf", None
    if source.suffix == ".gguf":
        shutil.rmtree(unpacked, ignore_errors=True)  # a killed import's
        gguf, source = unpack_gguf(source, unpacked), unpacked
    folder = model_dir(source)
    before = read_json(folder / "config.json")
    files = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    stored = {name: tensor for file in files for name, tensor in file.tensors.items()}
    generation: dict[str, Any] = {}
    try:
        generation = read_json(folder / "generation_config.json")
    except UserError as error:  # transformers would say nothing; OpenSeek-Small's has a comma too many
        logger.warning("%s: it is left out", error.problem)
    mtp = _mtp_tensors(stored, before)
    stored_dtype = main_dtype((tensor.dtype, tensor.num_elements) for tensor in stored.values())
    model = load_model(folder, dtype or stored_dtype or "auto", ignored=mtp)
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings and head is not None and head.weight is not model.get_input_embeddings().weight:
        logger.warning("the stored output embeddings are not the input embeddings: tie_word_embeddings is now false")
        model.config.tie_word_embeddings = False
    if getattr(model.config, MTP_LAYERS, None):
        setattr(model.config, MTP_LAYERS, 0)
    model.save_pretrained(out)
    complete_config(out)
    remove_half_written(out)
    tokenizer = convert_tokenizer(folder, out)
    after = read_json(out / "config.json")
    both = sorted(before.keys() & after)
    # code, other formats of the weights, other vocabularies; the template moved into tokenizer_config.json
    names = {path.name for path in folder.iterdir() if path.is_file() and not (out / path.name).exists()}
    report = {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "config": {
            "changed": {key: [before[key], after[key]] for key in both if before[key] != after[key]},
            "removed": {key: before[key] for key in sorted(before.keys() - after)},
            "added": {key: after[key] for key in sorted(after.keys() - before)},
        },
        "mtp": {"declared": before.get(MTP_LAYERS, 0), "tensors_left_out": len(mtp), "kept": 0},
        "tokenizer": tokenizer,
        "stops": _stop_at_turn_end(out),
        "generation_settings_left_out": repair_generation_config(GenerationConfig.from_dict(generation)),
        "files_left_out": sorted(names - {"chat_template.jinja"}),
        **({} if gguf is None else {"gguf": gguf}),
    }
    shutil.rmtree(unpacked, ignore_errors=True)
    (out / REPORT).write_text(pretty_json(report), encoding="utf-8")
    keys = ", ".join(f"{kind} {', '.join(changes)}" for kind, changes in report["config"].items() if changes)
    logger.info(
        f"imported as {report['class']}, {report['parameters']:,} parameters; config keys {keys or 'unchanged'}; "
        f"{len(mtp)} MTP tensors left out; tokenizer {'converted' if tokenizer['converted'] else 'kept'}, "
        f"{tokenizer['tokens']} tokens; files left out: {', '.join(report['files_left_out']) or 'none'}"
    )
    return report


def _mtp_tensors(names: Iterable[str], config: dict[str, Any]) -> frozenset[str]:
    """Return the names of tensors of multi-token prediction.

    They are in modules called `mtp…`, or, as DeepSeek-V3's, in layers past the last one: as many as the config
    declares, and any with a module that only such layers have. Other layers past the last one are not left out.
    """
    num_layers = config.get("num_hidden_layers", sys.maxsize)
    declared = range(num_layers, num_layers + (config.get(MTP_LAYERS) or config.get("num_mtp_layers") or 0))
    layer_of = {name: int(found[1]) for name in names if (found := re.match(r"model\.layers\.(\d+)\.", name))}
    marked = {number for name, number in layer_of.items() if number >= num_layers and MTP_PARTS.search(name)}
    return frozenset(
        name for name in names if layer_of.get(name) in {*declared, *marked} or re.search(r"(^|\.)mtp", name)
    )


def _stop_at_turn_end(out: Path) -> list[int]:
    """Let generation stop at the end of a ChatML turn too, where the chat template never writes the eos token."""
    tokenizer = load_fast_tokenizer(out)
    stops: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # type: ignore[list-item]
    turn_end, template = tokenizer.get_vocab().get(END_OF_TURN), tokenizer.chat_template
    if turn_end is not None and turn_end not in stops and isinstance(template, str) and "im_end" in template:
        stops.append(turn_end)
        path = out / "generation_config.json"
        path.write_text(pretty_json(read_json(path) | {"eos_token_id": stops}), encoding="utf-8")
    return stops
