"""How much memory a training will take, found without any of it: the true step on tensors that have no data.

The model is built and one microbatch of the true shape goes forward and backward under FakeTensorMode, while every
storage that comes to life and dies is counted. So activations, logits and the temporaries of every operator are those
of this very architecture, whatever it is; weights, gradients and the optimizer's state are counted beside them.

Not counted: what the Python process itself takes, the allocator's fragmentation, and kernels' private workspaces.
Where the trace follows CPU kernels and a GPU would run, attention may differ.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ladle.training.attention import use_fused_attention
from ladle.training.linear_cross_entropy import use_linear_cross_entropy

GIBIBYTE = 2**30
STATE_COPIES = {"adam": 2.0, "sgd": 0.0, "adafactor": 0.01, "lion": 1.0, "rmsprop": 1.0, "adagrad": 1.0, "8bit": 0.53}
"""Optimizer state, in copies of the trained weights, by what the optimizer's name holds; momentum counts one more.

8-bit AdamW keeps two bytes a weight and scales (2.1 of 4 bytes), Adafactor a row and a column of each matrix.
"""

Distributed = Literal["ddp", "zero2"]


@dataclass(frozen=True)
class TrainingShape:
    """What decides the memory of one process.

    Attributes:
        config: fields of the model's config.json, `model_type` and `vocab_size` too.
        dtype: of the weights.
        batch_size: rows of a microbatch.
        sequence_length: tokens of a row.
        optimizer: TrainingArguments' `optim`.
        autocast: dtype that operators run in where it is not the weights'.
        accumulates: several microbatches make a step, so that gradients are there from the second one's start.
        gradient_checkpointing: whether activations are computed again in the backward pass.
        attention: attn_implementation.
        distributed: how processes share the work.
        processes: how many in all.
    """

    config: dict[str, Any]
    dtype: str
    batch_size: int
    sequence_length: int
    optimizer: str = "adamw_torch_fused"
    autocast: str | None = None
    accumulates: bool = False
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    distributed: Distributed = "ddp"
    processes: int = 1


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, at the moment of its peak."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: int
    """Everything else that is alive at the peak: saved activations, logits, temporaries."""

    @property
    def total(self) -> int:
        """The peak, less the bare process."""
        return self.weights + self.gradients + self.optimizer + self.communication + self.activations


def estimate_training(shape: TrainingShape) -> MemoryEstimate:
    """Return what one process of a training takes, in bytes.

    The peak of a backward pass is where activations are; the gradients that it has made by then are part of the trace,
    so that the larger of the pass and of the optimizer's step (all gradients, no activations) counts.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = _build(shape)
        trained = [p for p in model.parameters() if p.requires_grad]
        weights = _bytes(model.parameters()) + _bytes(model.buffers())
        gradients = _bytes(trained)
        peak = _trace(model, shape)
    share = shape.processes if shape.distributed == "zero2" else 1
    optimizer = int(_state_bytes(trained, shape) / share)
    communication = _communication(gradients, shape)
    kept = int(gradients / share)
    return MemoryEstimate(
        parameters=sum(p.numel() for p in model.parameters()),
        weights=weights,
        gradients=kept,
        optimizer=optimizer,
        communication=communication,
        activations=max(0, peak - kept),
    )


def _build(shape: TrainingShape) -> PreTrainedModel:
    fields = dict(shape.config)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, shape.dtype), attn_implementation=shape.attention
    )
    model.config.use_cache = False
    model.train()
    if shape.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    use_linear_cross_entropy(model)
    use_fused_attention(model)
    return model


def _trace(model: PreTrainedModel, shape: TrainingShape) -> int:
    """Return the most bytes alive at once in a forward and backward pass, weights aside, gradients included."""
    size = (shape.batch_size, shape.sequence_length)
    with _LiveBytes(_storages(model)) as live, _autocast(shape):
        ids = torch.zeros(size, dtype=torch.long)
        positions = torch.arange(shape.sequence_length).repeat(shape.batch_size, 1)
        for _ in range(2 if shape.accumulates else 1):
            output = model(input_ids=ids, position_ids=positions, labels=ids, num_items_in_batch=ids.numel())
            output.loss.backward()
            del output
    return live.peak


def _autocast(shape: TrainingShape) -> Any:
    wanted = getattr(torch, shape.autocast) if shape.autocast else None
    return torch.autocast("cpu", dtype=wanted or torch.bfloat16, enabled=wanted is not None)


def _storages(model: PreTrainedModel) -> set[int]:
    return {id_of(tensor) for tensor in (*model.parameters(), *model.buffers())}


def id_of(tensor: torch.Tensor) -> int:
    """Return what tells a tensor's storage from others while it lives."""
    return tensor.untyped_storage()._cdata


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until they die; `peak` is the most there were at once."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = _without_data(func, args)
        if result is None:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _without_data(func: Any, args: Any) -> Any:
    """Return what an operator gives whose result's shape depends on data: a mask is taken to choose everything."""
    name = func.overloadpacket
    if name is torch.ops.aten.index and _masks(args[1]):
        mask = _masks(args[1])[0]
        return args[0].new_empty((mask.numel(), *args[0].shape[mask.dim() :]))
    if name in (torch.ops.aten.index_put, torch.ops.aten._index_put_impl_) and _masks(args[1]):
        return args[0].clone() if name is torch.ops.aten.index_put else args[0]
    if name is torch.ops.aten.index_put_ and _masks(args[1]):
        return args[0]
    if name is torch.ops.aten.nonzero:  # asked where packed documents begin: a row is taken to be one
        return args[0].new_empty((0, args[0].dim()), dtype=torch.long)
    if name is torch.ops.aten._local_scalar_dense:
        return 1
    if name is torch.ops.aten._grouped_mm:
        return args[0].new_empty(_grouped_shape(*args))
    return None


def _grouped_shape(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None = None, *_: Any) -> list[int]:
    """Return the shape of `torch._grouped_mm`, whose own description for tensors without data knows bfloat16 alone."""
    if left.dim() == 2 and right.dim() == 2:
        assert offsets is not None  # a group is a run of the shared dimension
        return [offsets.numel(), left.shape[0], right.shape[1]]
    batch = [left.shape[0]] if left.dim() == 3 and right.dim() == 3 else []
    return [*batch, left.shape[-2], right.shape[-1]]


def _masks(indices: Any) -> list[torch.Tensor]:
    return [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({id_of(t): t.numel() * t.element_size() for t in tensors}.values())


def _state_bytes(trained: list[torch.nn.Parameter], shape: TrainingShape) -> float:
    name = shape.optimizer
    copies = next((STATE_COPIES[key] for key in ("8bit", *STATE_COPIES) if key in name), STATE_COPIES["adam"])
    if shape.distributed == "zero2" and shape.dtype != "float32":
        return sum(p.numel() for p in trained) * 4 * (copies + 1)  # DeepSpeed keeps float32 weights beside them
    return _bytes(trained) * copies


def _communication(gradients: int, shape: TrainingShape) -> int:
    """Return what the processes' exchange takes: DDP's buckets hold every gradient once more."""
    if shape.processes == 1:
        return 0
    return gradients if shape.distributed == "ddp" else 0


def count_parameters(config: dict[str, Any]) -> int:
    """Return the number of weights of the model that config.json's fields describe."""
    fields = dict(config)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return model.num_parameters()
