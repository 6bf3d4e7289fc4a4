"""Brings a model into a clean local folder and says what was changed on the way.

The native transformers class reads and writes the weights; the repository's own code is neither run nor kept. Layers of
multi-token prediction (MTP), which training does not use, are left out and counted; a config that declares some which
the checkpoint does not hold is corrected.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ladle.artifacts.files import pretty_json
from ladle.log import get_logger
from ladle.models.load import complete_config, load_model, model_dir, remove_half_written
from ladle.models.tokenizer import END_OF_TURN, convert_tokenizer, load_fast_tokenizer, read_json

logger = get_logger(__name__)

REPORT = "import_report.json"
MTP_LAYERS = "num_nextn_predict_layers"


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
    mtp = _mtp_tensors(folder, before.get("num_hidden_layers"))
    model = load_model(folder, dtype or "auto", ignored=mtp)
    if getattr(model.config, MTP_LAYERS, None):
        setattr(model.config, MTP_LAYERS, 0)
    model.save_pretrained(out)
    complete_config(out)
    remove_half_written(out)
    tokenizer = convert_tokenizer(folder, out)
    after = read_json(out / "config.json")
    config = {
        "changed": {
            key: [before[key], after[key]] for key in sorted(before.keys() & after) if before[key] != after[key]
        },
        "removed": {key: before[key] for key in sorted(before.keys() - after)},
        "added": {key: after[key] for key in sorted(after.keys() - before)},
    }
    stops = _stop_at_turn_end(out)
    # code, other formats of the weights, other vocabularies; the template moved into tokenizer_config.json
    names = {path.name for path in folder.iterdir() if path.is_file() and not (out / path.name).exists()}
    left_out = sorted(names - {"chat_template.jinja"})
    report = {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "config": config,
        "mtp": {"declared": before.get(MTP_LAYERS, 0), "tensors_left_out": len(mtp), "kept": 0},
        "tokenizer": tokenizer,
        "stops": stops,
        "files_left_out": left_out,
    }
    (out / REPORT).write_text(pretty_json(report), encoding="utf-8")
    logger.info(
        "imported as %s, %s parameters: config keys changed %s, removed %s, added %s; %d MTP tensors left out; "
        "tokenizer %s (%d tokens); files left out: %s",
        type(model).__name__,
        f"{model.num_parameters():,}",
        *(", ".join(config[kind]) or "none" for kind in ("changed", "removed", "added")),
        len(mtp),
        "converted" if tokenizer["converted"] else "kept",
        tokenizer["tokens"],
        ", ".join(left_out) or "none",
    )
    return report


def _mtp_tensors(folder: Path, num_layers: int | None) -> frozenset[str]:
    """Return the names of tensors of layers past the last one, which is where DeepSeek-V3 keeps its MTP modules."""
    if num_layers is None:
        return frozenset()
    names = [name for path in sorted(folder.glob("*.safetensors")) for name in safe_open(path, "pt").keys()]  # noqa: SIM118
    layer = re.compile(r"model\.layers\.(\d+)\.")
    return frozenset(name for name in names if (found := layer.match(name)) and int(found[1]) >= num_layers)


def _stop_at_turn_end(out: Path) -> list[int]:
    """Let generation stop at the end of a ChatML turn too, where the chat template never writes the eos token."""
    tokenizer = load_fast_tokenizer(out)
    stops = [tokenizer.eos_token_id]
    turn_end = tokenizer.get_vocab().get(END_OF_TURN)
    template = tokenizer.chat_template
    if turn_end is not None and turn_end not in stops and isinstance(template, str) and "im_end" in template:
        stops.append(turn_end)
        path = out / "generation_config.json"
        path.write_text(pretty_json(read_json(path) | {"eos_token_id": stops}), encoding="utf-8")
    return [stop for stop in stops if isinstance(stop, int)]
