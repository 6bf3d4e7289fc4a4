"""A training that is over holds no memory: what comes after it in the same process has the machine to itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

RECIPE = """\
name: memory
datasets:
  problems: {kind: word_problems, train: 200, worksheets: 20, prompts: 4, validation: 4, test: 4}
base:
  init:
    architecture:
      {model_type: llama, hidden_size: 512, intermediate_size: 2048, num_hidden_layers: 6, num_attention_heads: 8}
    tokenizer: {dataset: problems, split: worked, vocab_size: 300}
mix:
  sources:
    - {name: worked, dataset: problems, split: worked, ratio: 1.0, max_epochs: 100}
  budget: {sequences: 4}
  sequence_length: 128
pretrain:
  trainer: {max_steps: 2, per_device_train_batch_size: 1, save_strategy: "no"}
"""
SCRIPT = """
import resource
import psutil
import ladle, ladle.training.pretrain

run = ladle.open("recipe.yaml", root="runs")
run.build("mix")
before = psutil.Process().memory_info().rss
run.build("pretrain")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, psutil.Process().memory_info().rss - before)
"""


@pytest.mark.slow
def test_the_memory_of_a_training_is_given_back(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    peak, after = map(int, done.stdout.splitlines()[-1].split())
    assert peak > 16 * 25e6  # weights, gradients and Adam of 25 million parameters in float32
    assert after < 0.3 * peak  # modules that are imported when a training runs, and no model
