"""FSDP2 among 64 processes, in one: torch's "fake" group exchanges nothing, and shards have their true shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainingArguments

from ladle.training import parallel as parallel_module
from ladle.training.config import PretrainConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.parallel import Sharded, World, make_optimizer

PROCESSES = 64


@pytest.fixture
def world() -> Iterator[World]:
    dist.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    yield World(0, PROCESSES, torch.device("cpu"))
    dist.destroy_process_group()


def openseek(repository: Path, **changes: Any) -> PreTrainedModel:
    """Return a model of OpenSeek's shape, without memory."""
    recipe = yaml.safe_load((repository / "recipes" / "openseek" / "init.yaml").read_text())
    fields = recipe["architecture"] | {"vocab_size": 151_936} | changes
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float32)
    model.config.use_cache = False
    use_linear_cross_entropy(model)
    return model


def share_out(
    model: Any, world: World, folder: Path, shards: bool, prepare: Callable[[nn.Module], Any] = lambda model: None
) -> Sharded:
    """Return the model among the processes, computing in bfloat16, `prepare`d before it has an optimizer."""
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    config = PretrainConfig(dtype="bfloat16", distributed="fsdp" if shards else "ddp", processes=PROCESSES)

    def make(module: nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
        prepare(module)
        return make_optimizer(module, arguments)

    model.to = lambda *_, **__: model  # it is on no device yet
    with mock.patch.object(parallel_module, "make_optimizer", make):
        return Sharded(config, model, world, arguments)


def weights_of(model: nn.Module) -> dict[str, DTensor]:
    return {name: cast(DTensor, weight) for name, weight in model.named_parameters()}


def materialize(model: nn.Module) -> None:
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()


def test_each_process_has_a_64th_of_every_weight(world, repository, tmp_path):
    model = openseek(repository)
    num_weights = sum(weight.numel() for weight in model.parameters())
    weights = weights_of(share_out(model, world, tmp_path, shards=True).module)
    assert 1.39e9 < num_weights < 1.4e9
    assert sum(weight.to_local().numel() for weight in weights.values()) == num_weights / PROCESSES
    for name, weight in weights.items():
        size, *others = weight.shape
        assert tuple(weight.to_local().shape) == (size // PROCESSES, *others), name
    experts = weights["model.layers.1.mlp.experts.down_proj"]
    assert experts.to_local().shape[0] == 1, "64 experts, one a process"


def test_replicas_keep_every_weight_whole(world, repository, tmp_path):
    weights = weights_of(share_out(openseek(repository), world, tmp_path, shards=False).module)
    assert all(weight.to_local().shape == weight.shape for weight in weights.values())
    assert {tuple(map(str, weight.placements)) for weight in weights.values()} == {("R", "S(0)")}


@pytest.mark.slow
def test_gradients_and_optimizer_are_shared_out_too(world, repository, tmp_path):
    """A step of two layers of that shape, in bfloat16: what the optimizer has is float32, a 64th of each weight."""
    model = openseek(repository, num_hidden_layers=2, vocab_size=1024)
    parallel = share_out(model, world, tmp_path, shards=True, prepare=materialize)
    token_ids = torch.arange(16)[None]
    with parallel.accumulating(is_last=True):
        loss = parallel.model(input_ids=token_ids, position_ids=token_ids, labels=token_ids).loss
    parallel.backward(loss)
    shapes = {name: weight.to_local().shape for name, weight in weights_of(parallel.module).items()}
    gradients = {name: cast(DTensor, weight.grad) for name, weight in weights_of(parallel.module).items()}
    assert {name: gradient.to_local().shape for name, gradient in gradients.items()} == shapes
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    parallel.clip()
    parallel.step()
    moments = [state["exp_avg"] for state in parallel.optimizer.state.values()]
    assert sum(moment.to_local().numel() for moment in moments) == sum(shape.numel() for shape in shapes.values())
    assert {moment.dtype for moment in moments} == {torch.float32}
