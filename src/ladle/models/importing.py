"""Brings a model into a clean local folder and says what was changed on the way.

The native transformers class reads and writes the weights; the repository's own code is neither run nor kept. Layers of
multi-token prediction (MTP), which training does not use, are left out and counted; a config that declares some which
the checkpoint does not hold is corrected.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ladle.artifacts.files import pretty_json
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.chat import END_OF_TURN
from ladle.models.load import complete_config, load_model, model_dir, remove_half_written, repair_generation_config
from ladle.models.tokenizer import convert_tokenizer, load_fast_tokenizer, read_json
from ladle.soups.members import main_dtype, read_header

logger = get_logger(__name__)

REPORT = "import_report.json"
MTP_LAYERS = "num_nextn_predict_layers"
MTP_PARTS = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
"""Modules that layers of multi-token prediction have, and others do not."""


def import_model(source: Path, out: Path, dtype: str | None) -> dict[str, Any]:
    """Write a model of any causal language model class that transformers has to `out`, and return the report.

    Args:
        source: a model's folder.
        out: gets weights, config, tokenizer and the report as `import_report.json`.
        dtype: to save the weights in; None keeps theirs.

    Raises:
        UserError: no model there, or of a class that transformers lacks.
        CheckFailed: a tensor is missing, left over or of another shape.
    """
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
    }
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
