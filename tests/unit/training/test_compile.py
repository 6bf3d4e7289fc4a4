"""Layers that torch.compile takes one by one: a graph for each kind and not for each layer, and the same training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from ladle.errors import Preempted
from ladle.models.probe import find_routers
from ladle.training.balance import SequenceAuxLoss
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.loop import Training
from tests.tiny_models import make_model
from tests.training_runs import make_rows, prepare

STEPS, LAYERS = 3, 5


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def make(folder: Path, trainer: dict[str, Any], aux_weight: float = 0.0) -> Training:
    model = make_model("deepseek_v3", num_hidden_layers=LAYERS)
    model.config.use_cache = False
    aux_loss = SequenceAuxLoss(find_routers(model), aux_weight) if aux_weight else None
    use_linear_cross_entropy(model, aux_loss=aux_loss)
    steps = {"max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
    return prepare(model, make_rows(8, 32), folder, steps | trainer, router_bias_update_rate=1e-2)


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.model.state_dict().items()}


WAYS = {
    "plain": ({"torch_compile_backend": "eager"}, 0.0),
    "sequence-wise loss": ({"torch_compile_backend": "eager"}, 1e-2),
    "checkpointed": ({"torch_compile_backend": "aot_eager", "activation_checkpointing": True}, 0.0),
}


@pytest.mark.parametrize(
    "way", [name if name == "plain" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_a_stopped_training_ends_with_the_weights_of_one_that_is_not_compiled(way, tmp_path, monkeypatch):
    """Loads and router biases too. One layer is dense and four have experts: two graphs, and none broken."""
    trainer, aux_weight = WAYS[way]
    plain = make(tmp_path / "plain", {**trainer, "torch_compile_backend": None}, aux_weight)
    plain.run()
    assert not counters["stats"]
    take_step = Training._take_step
    monkeypatch.setattr(Training, "_take_step", lambda *step: take_step(*step) or step[1] == STEPS - 1)
    stopped = make(tmp_path / "compiled", {**trainer, "torch_compile": True}, aux_weight)
    with pytest.raises(Preempted):
        stopped.run()
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    monkeypatch.undo()
    resumed = make(tmp_path / "compiled", {**trainer, "torch_compile": True}, aux_weight)
    resumed.run()
    assert resumed.resumed_from_step == STEPS - 1
    found, expected = weights_of(resumed), weights_of(plain)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert all(torch.equal(*loads) for loads in zip(resumed.balance.loads, plain.balance.loads, strict=True))
    whole = make(tmp_path / "whole", {**trainer, "torch_compile": True}, aux_weight)
    whole.run()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights_of(whole).items())
