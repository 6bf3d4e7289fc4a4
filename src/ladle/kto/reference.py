"""Tokenize preference data and compute the reference model's log-probabilities, once: `<split>/` holds both.

The reference is the policy before its first step, so with these numbers on disk no second model is held in training.
A finished artifact serves every training on the same model, data and pairs, whatever its learning rate or β. Sequences
are sorted by length and dealt into items of the shard journal; an item's sequences and bins are fixed, so its bytes are
too, whatever was killed in between and whichever process works on it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import DatasetDict, load_from_disk
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ladle.artifacts.files import pretty_json
from ladle.artifacts.journal import ShardJournal
from ladle.data.prefer import read_examples
from ladle.errors import UserError
from ladle.executors import ProcessExecutor
from ladle.kto.config import KtoConfig, KtoReferenceConfig
from ladle.kto.data import KtoExamples, make_bin, plan_bins, refuse_single_label, tokenize_examples
from ladle.kto.loss import prepare_policy, use_kto_forward
from ladle.kto.pairs import KtoPlan, make_plan
from ladle.models.chat import set_template_date
from ladle.models.load import model_dir
from ladle.models.probe import can_share, require_positions, warn_of
from ladle.models.tokenizer import load_fast_tokenizer
from ladle.stage import Inputs, StageResult
from ladle.training.adapter import load_start
from ladle.training.parallel import World, join_world, leave_world

TRAIN = "train"
TOKENS_PER_ITEM = 2**16
MATCHED, MISMATCHED = "reference_logps.npy", "reference_kl_logps.npy"


def run(config: KtoReferenceConfig, inputs: Inputs, out: Path) -> StageResult:
    """Tokenize `preference` and compute log π_ref of the completions that training on it from `model` needs."""
    data = load_from_disk(inputs["preference"][0] / "preference")
    refuse_single_label(np.array(_rows(data, TRAIN)["label"]), config.allow_single_label)
    world = join_world()
    tokenizer = load_fast_tokenizer(model_dir(inputs["model"][0]))
    is_conversational = not isinstance(data[TRAIN][0]["prompt"], str)
    if is_conversational:
        set_template_date(tokenizer, config.template_date, "kto.template_date")
    splits: dict[str, KtoExamples] = {}
    counters: dict[str, int] = {}
    for split in [TRAIN, *([config.eval_split] if config.eval_split else [])]:
        rows = read_examples(_rows(data, split))
        splits[split], counts = tokenize_examples(rows, tokenizer, config.max_length, config.max_bad_fraction)
        if split == TRAIN:
            refuse_single_label(splits[split].is_desirable, config.allow_single_label, counts["dropped_long_prompts"])
        counters |= counts if split == TRAIN else {f"{split}_{name}": count for name, count in counts.items()}
    longest = max(
        int(np.diff(examples.prompt_bounds).max() + np.diff(examples.completion_bounds).max())
        for examples in splits.values()
    )
    num_tokens = min(longest, config.max_length)
    model, packed, choices = load_policy(inputs["model"][0], config, config.dtype, world.device, num_tokens)
    autocast = getattr(torch, config.autocast) if config.autocast else None
    pad_id = cast(int, tokenizer.pad_token_id or 0)
    reference = ReferencePass(model, packed, pad_id, config.max_tokens_per_microbatch, autocast)
    for split, examples in splits.items():
        _require_embeddings(examples, tokenizer, model)
        plan = make_plan(config, examples.prompt_of, split == TRAIN)
        journal = out / split / ".items"
        result = reference.run(share_prompts(examples, model, packed), plan, journal, world)
        world.wait()  # each process reads the whole journal
        if world.is_main:
            examples.save(out / split)
            result.save(out / split)
            shutil.rmtree(journal)
        world.wait()
    if world.is_main:
        (out / "data.json").write_text(pretty_json({"conversational": is_conversational}), encoding="utf-8")
    world.wait()
    leave_world()
    return StageResult(counters, choices)


def load_policy(
    path: Path,
    settings: KtoConfig | KtoReferenceConfig,
    dtype: str,
    device: torch.device,
    num_tokens: int = 0,
    checkpointing: bool = False,
) -> tuple[PreTrainedModel, bool, dict[str, Any]]:
    """Load the policy's start onto a device, made ready by `use_kto_forward`; in 4 or 8 bits where the settings say so.

    Args:
        path: the model's.
        settings: how to load it.
        dtype: of its weights.
        device: where it will run; quantized weights stay where they are loaded.
        num_tokens: of the longest sequence.
        checkpointing: whether training computes activations again.

    Returns:
        The model, whether to pack bins, and what is done otherwise than for most models, for the record.

    Raises:
        UserError: KTO cannot use the model, or quantization without bitsandbytes.
    """
    model = load_start(path, settings.quantization, dtype, settings.attn_implementation, device)
    require_positions(model, num_tokens)
    traits = warn_of(model, prepare_policy(model, checkpointing, settings.autocast))
    packed = use_kto_forward(model, traits)
    attention = {} if device.type == "cpu" else {"attn_implementation": model.config._attn_implementation}
    return model, packed, attention | traits.choices()


def share_prompts(examples: KtoExamples, model: PreTrainedModel, packed: bool) -> KtoExamples:
    """Return the examples with what all prompts begin with in a bin once, where that is long and the model can."""
    shared = examples.sharing()
    return shared if packed and shared.num_shared and can_share(model) else examples


def _require_embeddings(examples: KtoExamples, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    largest = int(max(examples.prompt_ids.max(), examples.completion_ids.max()))
    size = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    if largest >= size:
        token = tokenizer.convert_ids_to_tokens(largest)
        what = "its eos_token, which its vocabulary does not have" if token == tokenizer.eos_token else "an added token"
        problem = f"the tokenizer writes {token!r} (id {largest}), {what}, and the model has {size} embeddings"
        raise UserError(problem, "use the model's own tokenizer, or correct its tokenizer_config.json")


def _rows(data: Any, split: str) -> Any:
    if not isinstance(data, DatasetDict) or split not in data:
        there = ", ".join(map(str, data)) if isinstance(data, DatasetDict) else "no splits"
        problem = f"the preference data has no split {split!r} (there is {there})"
        raise UserError(problem, f"add a source with `into: {split}` to kto.data, or set kto.eval_split")
    return data[split]


@dataclass(frozen=True)
class KtoReference:
    """log π_ref of the completions that training needs, NaN elsewhere.

    Attributes:
        logp_N: of each example's own completion, float32.
        kl_logp_PN: of the mismatched completions, a row for each pairing.
    """

    logp_N: np.ndarray
    kl_logp_PN: np.ndarray

    def save(self, folder: Path) -> None:
        """Write both arrays."""
        np.save(folder / MATCHED, self.logp_N)
        np.save(folder / MISMATCHED, self.kl_logp_PN)

    @classmethod
    def load(cls, folder: Path) -> KtoReference:
        """Read what `save` wrote."""
        return cls(np.load(folder / MATCHED), np.load(folder / MISMATCHED))


@dataclass(frozen=True)
class ReferencePass:
    """How to run the reference model.

    Attributes:
        model: prepared by `use_kto_forward`.
        packed: whether sequences are packed into a row.
        pad_id: what padding is filled with.
        budget: tokens of one forward pass.
        autocast: dtype of mixed precision, the one that training uses; None for none.
    """

    model: PreTrainedModel
    packed: bool
    pad_id: int
    budget: int
    autocast: torch.dtype | None = None

    def run(self, examples: KtoExamples, plan: KtoPlan, folder: Path, world: World) -> KtoReference:
        """Compute all log-probabilities that `plan` needs, journalled in `folder`, shared out over the processes."""
        rows = [np.unique(np.concatenate([plan.used_rows(epoch) for epoch in range(plan.num_epochs)]))]
        completions = [rows[0]]
        for pairing in range(plan.num_pairings):
            rows.append(plan.rows_of_pairing(pairing))
            completions.append(plan.partners(pairing)[rows[-1]])
        logps = self._logps(examples, np.concatenate(rows), np.concatenate(completions), folder, world)
        parts = np.split(logps, np.cumsum([len(part) for part in rows])[:-1])
        spread = np.full((1 + plan.num_pairings, plan.num_rows), np.nan, dtype=np.float32)
        for line, part, indices in zip(spread, parts, rows, strict=True):
            line[indices] = part
        return KtoReference(spread[0], spread[1:])

    @torch.no_grad()
    def _logps(
        self, examples: KtoExamples, prompts: np.ndarray, completions: np.ndarray, folder: Path, world: World
    ) -> np.ndarray:
        """Return log π of each (prompt, completion), float32, in the order given."""
        device, packed, budget = self.model.device, self.packed, self.budget - examples.num_shared
        # whole lengths: a pass that was killed on a CPU, which shares prompts, may resume on a GPU, which does not
        lengths, costs = examples.lengths(prompts, completions), examples.costs(prompts, completions)
        order = np.argsort(-lengths, kind="stable")
        item_of = np.cumsum(lengths[order]) // TOKENS_PER_ITEM
        parts = np.split(order, np.flatnonzero(np.diff(item_of)) + 1)
        items = {f"{number:06d}.npy": part for number, part in enumerate(parts)}

        def work(indices: np.ndarray, path: Path) -> None:
            logps = np.empty(len(indices), dtype=np.float32)
            for places in plan_bins(costs[indices], budget, packed=packed):
                some = indices[places]
                one_bin = make_bin(examples, prompts[some], completions[some], self.pad_id, packed).to(device)
                with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                    logps[places] = self.model(bin=one_bin).cpu().numpy()
            with path.open("wb") as file:
                np.save(file, logps)

        journal = ShardJournal(folder)
        mine = dict(list(items.items())[world.rank :: world.size])
        journal.run(mine, work, ProcessExecutor(1), "reference log-probs", "batches")
        world.wait()
        result = np.empty(len(prompts), dtype=np.float32)
        for name, indices in items.items():
            result[indices] = np.load(folder / name)
        return result
