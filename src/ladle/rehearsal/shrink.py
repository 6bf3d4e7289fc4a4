"""A recipe in miniature: the same model, rows, tokenizer and stages, with next to no amounts.

What stays true: the model's shape, the length of rows, the dtype, the optimizer, the microbatch where there is a GPU.
What shrinks: how much data, how many steps, checkpoints, problems, items and new tokens. Each change is listed, so that
the rehearsal says what it did not try.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

STEPS = 2
PROBLEMS = 2
ITEMS = 2
NEW_TOKENS = 16
EXAMPLES = 4
ROWS_ON_CPU = 1
KTO_ROWS_ON_CPU = 2
"""KTO pairs each prompt with another's completion, so it takes two."""
SPARE_ROWS = 2
"""Rows of the mixture beyond those that the steps take."""
TOKENIZED = 2**21
"""Tokens of the sources' samples, where they have as many: a few seconds of work, beside which starting is little."""
SHARD_BYTES = 2**19
"""So that each source of a full sample has shards to go on from."""

Tree = dict[str, Any]
Sample = Callable[[str, Tree, int], str]
"""From the key of a source, the source and the tokens wanted to the path of a small copy of it."""


class Shrunk:
    """A recipe's tree made small; `changes` says what was changed and why."""

    def __init__(self, tree: Tree, gpus: int, sample: Sample) -> None:
        self.tree = copy.deepcopy(tree)
        self.gpus = gpus
        self.sample = sample
        self.changes: list[str] = []
        self.tree["name"] = f"{tree['name']}-rehearsal"
        base = self.tree.get("base")
        if isinstance(base, dict):
            self._training("base.pretrain", base.get("pretrain"))
            self._mix("base.mix", base.get("mix"), base.get("pretrain"))
        self._training("pretrain", self.tree.get("pretrain"))
        self._mix("mix", self.tree.get("mix"), self.tree.get("pretrain"))
        self._soup(self.tree.get("soup"))
        self._rollout(self.tree.get("rollout"))
        sections = self.tree.get("kto")
        for index, section in enumerate(sections if isinstance(sections, list) else [sections]):
            self._kto(f"kto.{index}" if isinstance(sections, list) else "kto", section)
        self._evaluate(self.tree.get("evaluate"))

    def _training(self, key: str, section: Tree | None, rows_on_cpu: int = ROWS_ON_CPU) -> None:
        if section is None:
            return
        trainer = section["trainer"] = dict(section.get("trainer") or {})
        trainer.pop("num_train_epochs", None)
        rows = trainer.get("per_device_train_batch_size", 8)
        if not self.gpus and rows > rows_on_cpu:
            self._say(f"{key}: {rows_on_cpu} row(s) a microbatch instead of {rows}, on a CPU")
            trainer["per_device_train_batch_size"] = rows_on_cpu
        trainer |= {
            "max_steps": STEPS,
            "gradient_accumulation_steps": 1,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "save_total_limit": 1,
            "report_to": "none",
        }
        if trainer.get("eval_strategy", "no") != "no":
            trainer["eval_steps"] = STEPS
        self._processes(key, section)

    def _processes(self, key: str, section: Tree) -> None:
        wanted, room = section.get("processes", 1), max(1, self.gpus)
        if wanted > room:
            self._say(f"{key}: {room} process(es) instead of {wanted}")
            section["processes"] = room
        if section.get("distributed") == "zero2" and section.get("processes", 1) == 1:
            self._say(f"{key}: one process, so the optimizer is not split (zero2)")
            section["distributed"] = "ddp"

    def _mix(self, key: str, section: Tree | None, training: Tree | None) -> None:
        if section is None:
            return
        length = section.get("sequence_length", 4096)
        trainer = (training or {}).get("trainer") or {}
        per_step = trainer.get("per_device_train_batch_size", 8) * (training or {}).get("processes", 1)
        rows = STEPS * per_step + SPARE_ROWS
        section["budget"] = {"sequences": rows}
        if section.get("validation") is not None:
            section["validation"] = {"sequences": SPARE_ROWS}
        for source in section["sources"]:
            needed = (rows + 2 * SPARE_ROWS) * length
            tokens = int(source["ratio"] * max(needed, TOKENIZED)) + length
            source["dataset"] = self.sample(f"{key}.{source['name']}", source, tokens)
            source |= {"max_epochs": 1000}
            if source.get("split") and source["dataset"] not in self.tree.get("datasets", {}):
                source.pop("split")
            source.pop("revision", None)
        section |= {"shard_size_bytes": SHARD_BYTES, "cache": None, "executor": "processes"}

    def _soup(self, section: Tree | None) -> None:
        if section is None:
            return
        if section.get("last") is not None:
            section["last"] = min(section["last"], STEPS)
        if section.get("weights"):
            section.pop("weights")
            section["method"] = "uniform"
            self._say("soup: uniform, since the number of checkpoints differs")

    def _rollout(self, section: Tree | None) -> None:
        if section is not None:
            section["prompts"] = dict(section["prompts"]) | {"limit": PROBLEMS}
            section |= {"samples": 2, "max_new_tokens": NEW_TOKENS, "workers": 1, "executor": "processes"}
            self._backend("rollout", section)

    def _kto(self, key: str, section: Tree | None) -> None:
        if section is None:
            return
        data = section.get("data") or []
        sources = [one if isinstance(one, dict) else {"dataset": one} for one in data]
        section["data"] = [one if one["dataset"] == "rollouts" else one | {"limit": EXAMPLES} for one in sources]
        section["allow_single_label"] = True
        section |= {"rounds": 1, "gate": None}
        saves = (section.get("trainer") or {}).get("save_strategy", "steps") != "no"
        self._training(key, section, KTO_ROWS_ON_CPU)
        section["trainer"] |= {"eval_strategy": "no"}
        section["trainer"].pop("eval_steps", None)
        if not saves:
            section["trainer"] |= {"save_strategy": "no"}
            for name in ("save_steps", "save_total_limit"):
                section["trainer"].pop(name)

    def _evaluate(self, section: Tree | None) -> None:
        if section is None:
            return
        sampling = section["sampling"] = dict(section.get("sampling") or {})
        sampling |= {"max_new_tokens": NEW_TOKENS}
        section |= {"limit": ITEMS, "workers": 1, "executor": "processes"}
        self._backend("evaluate.sampling", sampling)

    def _backend(self, key: str, section: Tree) -> None:
        if section.get("backend") == "vllm" and not self.gpus:
            self._say(f"{key}: transformers instead of vLLM, without a GPU")
            section["backend"] = "transformers"

    def save_memory(self, section: Tree, key: str, why: str) -> None:
        """Give a training an optimizer without per-weight state."""
        section["trainer"]["optim"] = "adafactor"
        self._say(f"{key}: Adafactor instead of the recipe's optimizer ({why})")

    def _say(self, change: str) -> None:
        self.changes.append(change)
