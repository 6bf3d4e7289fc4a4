"""What float32 weights behind bfloat16 are worth: 200 steps in float32, in bfloat16 over them, and in pure bfloat16.

    python benchmarks/bf16_masters.py

The same tiny model on the same rows of generated problems, at the learning rate of a fine-tuning and at one usual in
pretraining: the mean loss of the last 20 steps, how far it is from float32's, and the share of the weights with a
gradient that the last step moved.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ladle import log
from ladle.data.config import MixConfig, WordProblemsConfig
from ladle.data.word_problems import write_word_problems
from ladle.models.tokenizer import train_tokenizer
from ladle.stages import mix
from ladle.training.arguments import make_arguments
from ladle.training.config import PretrainConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.loop import Training
from ladle.training.parallel import join_world, leave_world
from ladle.training.pretrain import MixedDataset, PretrainTask

LAST = 20
RATES = (5e-5, 1e-3)
WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 over float32": {"dtype": "bfloat16"},
    "pure bfloat16": {"dtype": "bfloat16", "pure_bf16": True},
}
SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


class _Watched(Training):
    """Notes which share of the weights with a gradient its last step moves."""

    moved = 0.0

    def _take_step(self, number: int, rows: Any) -> bool:
        if number == self.max_steps:
            step = self.parallel.step

            def compare() -> None:
                weights = [weight for weight in self.model.parameters() if weight.grad is not None]
                masks = [_local(weight.grad) != 0 for weight in weights]
                before = [_local(weight).clone() for weight in weights]
                step()
                changed = zip(weights, before, masks, strict=True)
                moved = sum(int((_local(weight) != old)[mask].sum()) for weight, old, mask in changed)
                self.moved = moved / sum(int(mask.sum()) for mask in masks)

            self.parallel.step = compare  # type: ignore[method-assign]
        return super()._take_step(number, rows)


def _local(tensor: Any) -> torch.Tensor:
    return getattr(tensor, "to_local", lambda: tensor)().detach()


def make_mixture(folder: Path) -> tuple[Path, Any]:
    """Write rows of 128 tokens of generated problems, and return them with their tokenizer."""
    problems, mixture = folder / "problems", folder / "mixture"
    write_word_problems(WordProblemsConfig(train=4000, worksheets=2, prompts=2, validation=2, test=2), problems)
    lines = (problems / "worked.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = train_tokenizer([json.loads(line)["text"] for line in lines], 512)
    tokenizer.save_pretrained(folder / "tokenizer")
    mixture.mkdir()
    source = {"name": "worked", "dataset": "problems", "split": "worked", "ratio": 1.0, "max_epochs": 50}
    fields = {"sources": [source], "budget": {"sequences": 1600}, "sequence_length": 128, "workers": 1}
    inputs = {"tokenizer": [folder / "tokenizer"], "source:worked": [problems]}
    mix.run(MixConfig.model_validate(fields), inputs, mixture)
    return mixture, tokenizer


def train(way: str, rate: float, steps: int, mixture: Path, tokenizer: Any, folder: Path) -> tuple[float, float]:
    """Train once, and return the mean loss of the last steps and the share of weights that the last one moved."""
    trainer = {
        "max_steps": steps, "per_device_train_batch_size": 8, "learning_rate": rate, "warmup_steps": 10,
        "lr_scheduler_type": "constant_with_warmup", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
    }  # fmt: skip
    config = PretrainConfig.model_validate({"trainer": trainer, **WAYS[way]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), **SHAPE))
    model = model.to(getattr(torch, config.weights_dtype))
    model.config.use_cache = False
    use_linear_cross_entropy(model)
    arguments, task = make_arguments(config, folder), PretrainTask(MixedDataset(mixture))
    training = _Watched(config, task, model, tokenizer, join_world(), arguments)
    training.run()
    leave_world()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    return sum(losses[-LAST:]) / LAST, training.moved


def main() -> None:
    """Train all ways and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    log.configure(quiet=True)
    results = []
    sys.stdout.write("| learning rate | precision | loss | to float32 | weights moved |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as name:
        mixture, tokenizer = make_mixture(Path(name))
        for rate in RATES:
            reference = None
            for way in WAYS:
                out = Path(name) / f"{way}-{rate}"
                loss, moved = train(way, rate, options.steps, mixture, tokenizer, out)
                reference = loss if reference is None else reference
                apart = loss / reference - 1
                results.append({"rate": rate, "way": way, "loss": loss, "relative": apart, "moved": moved})
                sys.stdout.write(f"| {rate:g} | {way} | {loss:.4f} | {apart:+.3%} | {moved:.1%} |\n")
                sys.stdout.flush()
    sys.stdout.write(json.dumps({"name": "bf16_masters", "runs": results}) + "\n")


if __name__ == "__main__":
    main()
