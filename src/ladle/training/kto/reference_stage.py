"""What a KTO training needs of its data and its reference model: `<split>/` with token ids and log-probabilities.

The reference is the policy before its first step. A finished artifact serves every training on the same model, data
and pairs, whatever its learning rate or β.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import DatasetDict, load_from_disk

from ladle.artifacts.files import pretty_json
from ladle.errors import UserError
from ladle.models.load import model_dir
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.kto.config import KtoReferenceConfig
from ladle.training.kto.data import KtoExamples, tokenize_examples
from ladle.training.kto.forward import use_kto_forward
from ladle.training.kto.labels import refuse_single_label
from ladle.training.kto.plan import KtoPlan, make_plan
from ladle.training.kto.reference import ReferencePass
from ladle.training.policy import load_policy_base, pad_id_of

TRAIN = "train"


def run(config: KtoReferenceConfig, inputs: Inputs, out: Path) -> StageResult:
    """Tokenize `preference` and compute log π_ref of what training on it from `model` will ask for."""
    data = load_from_disk(inputs["preference"][0] / "preference")
    refuse_single_label(np.array(_rows(data, TRAIN)["label"]), config.allow_single_label)
    state = PartialState(cpu=not torch.cuda.is_available())
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    model = load_policy_base(inputs["model"][0], config).eval()
    if config.quantization is None:  # quantized weights stand where they were loaded
        model.to(device=state.device)  # type: ignore[reportCallIssue]
    use_kto_forward(model)
    autocast = getattr(torch, config.autocast) if config.autocast else None
    reference = ReferencePass(model, pad_id_of(tokenizer), config.max_tokens_per_microbatch, autocast)
    counters: dict[str, int] = {}
    for split in [TRAIN, *([config.eval_split] if config.eval_split else [])]:
        examples, counts = tokenize_examples(_rows(data, split), tokenizer, config.max_length)
        counters |= counts if split == TRAIN else {f"{split}_{name}": count for name, count in counts.items()}
        plan = make_plan(config, examples.prompt_of, split == TRAIN)
        _write(reference, examples, plan, out / split, state)
    if state.is_main_process:
        is_conversational = tokenizer.chat_template is not None and not isinstance(data[TRAIN][0]["prompt"], str)
        (out / "data.json").write_text(pretty_json({"conversational": is_conversational}), encoding="utf-8")
    return StageResult(counters)


def _rows(data: Any, split: str) -> Any:
    if not isinstance(data, DatasetDict) or split not in data:
        there = ", ".join(map(str, data)) if isinstance(data, DatasetDict) else "no splits"
        raise UserError(
            f"the preference data has no split {split!r} (there is {there})",
            f"add a source with `into: {split}` to kto.data, or set kto.eval_split",
        )
    return data[split]


def _write(reference: ReferencePass, examples: KtoExamples, plan: KtoPlan, folder: Path, state: PartialState) -> None:
    journal = folder / ".items"
    result = reference.run(examples, plan, journal)
    state.wait_for_everyone()  # each process reads the whole journal
    if state.is_main_process:
        examples.save(folder)
        result.save(folder)
        shutil.rmtree(journal)
    state.wait_for_everyone()
