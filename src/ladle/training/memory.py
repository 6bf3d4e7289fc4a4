"""How much memory a training will take, found without any of it: a true step on tensors that have no data.

The model is built, the optimizer steps, and beside the state that it leaves microbatches of the true shape go forward
and backward, all under FakeTensorMode, while every storage that comes to life and dies is counted. So activations,
logits, the optimizer's state and the temporaries of every operator are those of this very architecture, loss and
optimizer, whatever they are.

Every storage that comes to life is counted until it dies (`LiveBytes`). Operators whose result's shape depends on data
are given one: a mask chooses all, rows are shared out among experts evenly, a packed row is one document.

Not counted: what the Python process itself takes, the allocator's fragmentation, and kernels' private workspaces.
Where the trace follows CPU kernels and a GPU would run, attention may differ. An optimizer that cannot be traced
(8 bits, DeepSpeed's) is counted by what it keeps a weight.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments, masking_utils
from transformers.modeling_layers import GradientCheckpointingLayer

from ladle.kto.data import Bin
from ladle.kto.loss import use_kto_forward
from ladle.models.probe import Traits
from ladle.training.attention import use_fused_attention
from ladle.training.config import Distributed
from ladle.training.cross_entropy import use_linear_cross_entropy

TRACED = frozenset(["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
"""Optimizers of torch and transformers, which run on tensors without data."""
STATE_COPIES = {"8bit": 0.53, "lion": 1.0}
"""What other optimizers keep, in copies of the trained weights, by a part of the name; 8-bit ones keep two bytes a
weight and scales (2.1 of 4 bytes)."""
ADAM_COPIES = 2.0


@dataclass(frozen=True)
class TrainingShape:
    """What decides the memory of one process.

    Attributes:
        config: fields of the model's config.json, `model_type` and `vocab_size` too.
        dtype: of the weights.
        batch_size: rows of a microbatch.
        sequence_length: tokens of a row.
        loss: `cross_entropy` of every token, or `kto` of completions, which are taken to fill their rows.
        optimizer: TrainingArguments' `optim`.
        keeps_masters: passes run on a copy of the weights in `dtype`, and the optimizer has float32 ones.
        accumulates: several microbatches make a step, so that gradients are there from the second one's start.
        gradient_checkpointing: whether activations are computed again in the backward pass.
        attention: attn_implementation.
        adapter: peft's LoraConfig fields, where an adapter alone is trained.
        distributed: how processes share the work.
        processes: how many in all.
        own_logits: the model computes all its logits at once.
    """

    config: dict[str, Any]
    dtype: str
    batch_size: int
    sequence_length: int
    loss: Literal["cross_entropy", "kto"] = "cross_entropy"
    optimizer: str = "adamw_torch_fused"
    keeps_masters: bool = False
    accumulates: bool = False
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    adapter: dict[str, Any] | None = None
    distributed: Distributed = "ddp"
    processes: int = 1
    own_logits: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, at the moment of its peak."""

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: int
    """Everything else that is alive at the peak: saved activations, logits, temporaries of the passes or the step."""

    @property
    def total(self) -> int:
        """The peak, less the bare process."""
        return self.weights + self.gradients + self.optimizer + self.communication + self.activations


def estimate_training(shape: TrainingShape) -> MemoryEstimate:
    """Return what one process of a training takes, in bytes."""
    model = _build(shape)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _place_on_cpu(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        weights, gradients = bytes_of((*model.parameters(), *model.buffers())), bytes_of(trained)
        peak, traced_state = _trace(model, trained, shape)
    parameters = sum(p.numel() for p in model.parameters())
    if shape.keeps_masters or shape.distributed == "fsdp":
        return _of_shards(shape, model, sum(p.numel() for p in trained), peak - gradients - traced_state)
    kept, state = gradients // (shape.processes if shape.distributed == "zero2" else 1), traced_state
    if not _is_traced(shape):
        state = int(_state_bytes(trained, shape)) // (shape.processes if shape.distributed == "zero2" else 1)
        peak += state
    return MemoryEstimate(
        parameters=parameters,
        weights=weights,
        gradients=kept,
        optimizer=state,
        # DDP's buckets hold every gradient once more
        communication=gradients if shape.distributed == "ddp" and shape.processes > 1 else 0,
        activations=max(0, peak - kept - state),
    )


def _of_shards(shape: TrainingShape, model: Any, num_trained: int, activations: int) -> MemoryEstimate:
    """Return what FSDP2 takes: a share of weights, gradients and optimizer state, and what is gathered to compute.

    Replicas keep the copy that they compute with; shards gather a layer at a time, the next one meanwhile, and what is
    outside of layers for the whole step. Gradients are exchanged as wide as they are kept, a layer at a time.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    in_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers] or [0]
    parameters, narrow = sum(p.numel() for p in model.parameters()), getattr(torch, shape.dtype).itemsize
    wide = 4 if shape.keeps_masters else narrow
    shards = shape.processes if shape.distributed == "fsdp" else 1
    gathered = parameters if shards == 1 else parameters - sum(in_layers) + 2 * max(in_layers)
    outside = parameters - sum(in_layers)
    return MemoryEstimate(
        parameters=parameters,
        weights=parameters * wide // shards,
        gradients=num_trained * wide // shards,
        optimizer=int(num_trained * _state_copies(shape) * wide) // shards,
        communication=gathered * narrow + max(outside, *in_layers) * (narrow + wide),
        activations=max(0, activations),
    )


def _build(shape: TrainingShape) -> Any:
    """Return the model as the stage prepares it, on the meta device."""
    dtype = getattr(torch, shape.dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            _config_of(shape.config),
            dtype=dtype,
            attn_implementation=None if shape.attention == "sdpa" else shape.attention,
        )
    model.config.use_cache = False
    model.train()
    if shape.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if shape.loss == "kto":
        use_kto_forward(model)
    else:
        use_linear_cross_entropy(model, Traits(why_own_logits="as probed" if shape.own_logits else None))
        use_fused_attention(model)
    if shape.adapter is None:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**shape.adapter, task_type="CAUSAL_LM"))


def _place_on_cpu(model: torch.nn.Module) -> None:
    """Put a CPU tensor in the place of each meta tensor; shared ones stay shared."""
    placed: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device="cpu")
            fresh = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = placed.setdefault(id(parameter), fresh)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = placed.setdefault(id(buffer), torch.empty_like(buffer, device="cpu"))


def _trace(model: Any, trained: list[torch.nn.Parameter], shape: TrainingShape) -> tuple[int, int]:
    """Return the most bytes alive at once, weights aside and gradients included, and the optimizer's state."""
    with LiveBytes((*model.parameters(), *model.buffers())) as live:
        state = _step_twice(model, trained, shape) if _is_traced(shape) else []
        for _ in range(2 if shape.accumulates else 1):
            loss = _loss(model, shape)
            loss.backward()
            del loss
        return live.peak, bytes_of(state)


def _step_twice(model: Any, trained: list[torch.nn.Parameter], shape: TrainingShape) -> list[torch.Tensor]:
    """Clip and step, the second time with all of the optimizer's state in place; returns that state."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, optim=shape.optimizer, use_cpu=True, report_to="none")
    make, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    optimizer = make(trained, **options)
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    for _ in range(2):
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return [value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, torch.Tensor)]


def _loss(model: Any, shape: TrainingShape) -> torch.Tensor:
    """Return the loss of one microbatch of the shape."""
    rows, length = shape.batch_size, shape.sequence_length
    ids = torch.zeros((rows, length), dtype=torch.long)
    if shape.loss == "cross_entropy":
        positions = torch.arange(length).repeat(rows, 1)
        return model(input_ids=ids, position_ids=positions, labels=ids, num_items_in_batch=ids.numel()).loss
    predicts = torch.arange(rows * length).reshape(rows, length)[:, :-1].flatten()
    target = torch.zeros(len(predicts), dtype=torch.long)
    one_bin = Bin(ids, None, predicts, target, [length - 1] * rows, list(range(rows)))
    with _rows_of_one_document():
        return model(bin=one_bin, objective=lambda logp_b, _: torch.sigmoid(-logp_b))[0]


@contextmanager
def _rows_of_one_document() -> Iterator[None]:
    """Let attention go without a mask: of positions without data, transformers assumes that they pack documents."""
    plain = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = plain


def _is_traced(shape: TrainingShape) -> bool:
    return shape.optimizer in TRACED and shape.distributed == "ddp" and not shape.keeps_masters


def _state_copies(shape: TrainingShape) -> float:
    return next((STATE_COPIES[key] for key in STATE_COPIES if key in shape.optimizer), ADAM_COPIES)


def _state_bytes(trained: list[torch.nn.Parameter], shape: TrainingShape) -> float:
    copies = _state_copies(shape)
    if shape.distributed == "zero2" and shape.dtype != "float32":
        return sum(p.numel() for p in trained) * 4 * (copies + 1)  # DeepSpeed keeps float32 weights beside them
    return bytes_of(trained) * copies


def count_parameters(config: dict[str, Any]) -> int:
    """Return the number of weights of the model that config.json's fields describe."""
    with FakeTensorMode():
        return AutoModelForCausalLM.from_config(_config_of(config)).num_parameters()


def _config_of(fields: dict[str, Any]) -> Any:
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made under it, with data or without: those alive `now`, and the `peak`.

    Args:
        known: the weights, whose storages are counted elsewhere.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        weights = list(known)
        self.known = {storage_id(tensor) for tensor in weights}
        self.shapes = {tensor.shape for tensor in weights}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = None
        if any(isinstance(one, FakeTensor) for one in args):
            result = self._added_in_place(func, args)
            result = _without_data(func, args) if result is None else result
        if result is None:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result

    def _added_in_place(self, func: Any, args: Any) -> torch.Tensor | None:
        """Return the first of two gradients of a weight after adding the other to it; None for all else.

        So does autograd where a weight is used twice (a tied head) or in two microbatches; for tensors without data,
        which are of a subclass, it would make a third.
        """
        if func is not torch.ops.aten.add.Tensor or torch.is_grad_enabled() or args[0].shape not in self.shapes:
            return None
        both = all(isinstance(one, torch.Tensor) and one.shape == args[0].shape for one in args[:2])
        return args[0].add_(args[1]) if both and args[0].dtype == args[1].dtype else None

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


def storage_id(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage while it lives."""
    return tensor.untyped_storage()._cdata


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors, each storage once."""
    return sum({storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _without_data(func: Any, args: Any) -> Any:
    """Return what an operator gives whose result's shape depends on data; None for every other operator."""
    name = func.overloadpacket
    puts = (torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)
    if name is torch.ops.aten.index or name in puts:
        masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
        if not masks:
            return None
        if name is torch.ops.aten.index:
            return args[0].new_empty((masks[0].numel(), *args[0].shape[masks[0].dim() :]))
        return args[0].clone() if name is torch.ops.aten.index_put else args[0]
    if name is torch.ops.aten.nonzero:  # where packed documents begin: a row is taken to be one
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
