from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from ladle.training.config import TrainingConfig
from ladle.training.guard import WINDOW, SpikeWatch
from ladle.training.parallel import Parallel, World


def watch_of(losses) -> SpikeWatch:
    watch = SpikeWatch()
    for loss in losses:
        assert watch.note(float(loss)) is None
    return watch


def test_a_jump_is_reported_with_what_it_is_compared_to():
    watch = watch_of(2.0 + 0.01 * np.random.default_rng(0).standard_normal(40))
    report = watch.note(3.1)
    assert report is not None
    assert report.startswith("a loss of 3.1 where the last 40 steps had a median of 1.999 ")


def test_noise_a_slow_rise_and_a_falling_loss_are_not():
    rng = np.random.default_rng(1)
    watch_of(2.0 + 0.05 * rng.standard_normal(500))
    watch_of(np.linspace(2.0, 2.5, 500) + 0.02 * rng.standard_normal(500))
    watch_of(10 * np.exp(-np.arange(200) / 50))


def test_the_first_steps_are_never_spikes():
    watch = SpikeWatch()
    assert [watch.note(loss) for loss in (1.0, 50.0, 1.0, 80.0)] == [None] * 4


def test_it_resumes_from_saved_losses():
    watch = watch_of([2.0 + 0.001 * (step % 7) for step in range(100)])
    again = SpikeWatch(list(watch.losses))
    assert len(again.losses) == WINDOW
    assert again.note(2.9) == watch.note(2.9) is not None


def test_a_skipped_step_of_mixed_precision_lets_the_next_one_be_taken(monkeypatch):
    arguments = TrainingArguments(use_cpu=True, report_to="none")
    monkeypatch.setattr(arguments, "fp16", True)  # which a CPU is refused
    parallel = Parallel(TrainingConfig(), nn.Linear(4, 4), World(0, 1, torch.device("cpu")), arguments)
    before = [weight.clone() for weight in parallel.module.parameters()]
    for value in (math.nan, 1.0):
        parallel.backward(parallel.model(torch.full((2, 4), value)).sum())
        norm = parallel.clip()
        parallel.step() if norm.isfinite() else parallel.skip()
    assert all((weight != old).any() for weight, old in zip(parallel.module.parameters(), before, strict=True))
