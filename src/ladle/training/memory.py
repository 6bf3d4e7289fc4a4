"""How much memory a training takes, found without any of it: its own step on tensors that have no data.

The model is built under FakeTensorMode and shared out as the stage does it: by FSDP2 among as many processes as the
recipe sets, in a process group that only pretends to have them. The optimizer steps, and beside the state that it
leaves, microbatches and held-out rows of the true shape go through, while every storage is counted from its first use
to its last (`LiveBytes`). So activations, logits, gathered layers, the optimizer's state and the temporaries of every
operator are those of this very architecture, loss and optimizer, whatever they are.

Operators whose result's shape depends on data are given one: a mask chooses all, rows are shared out among experts
evenly, a packed row is one document.

Not counted: what the Python process itself takes, the allocator's fragmentation, and kernels' private workspaces.
Where the trace follows CPU kernels and a GPU would run, attention may differ. An optimizer that cannot be traced
(8 bits, DeepSpeed's) is counted by what it keeps a weight.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from ladle.kto.data import Bin
from ladle.kto.loss import use_kto_forward
from ladle.models.attention import attention_choices
from ladle.models.before import small_copy
from ladle.models.load import checkpoint_activations
from ladle.models.probe import Traits, why_not_linear
from ladle.training.arguments import check_arguments
from ladle.training.config import QuantizationConfig, TrainingConfig
from ladle.training.cross_entropy import use_linear_cross_entropy
from ladle.training.head import TRACED_FOR_GPU
from ladle.training.parallel import Parallel, Sharded, World

TRACED = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
"""Optimizers of torch and transformers, which run on tensors without data."""
STATE_COPIES = {"8bit": 0.53, "lion": 1.0, "": 2.0}
"""What other optimizers keep, in copies of the trained weights, by a part of the name; 8-bit ones keep two bytes a
weight and scales (2.1 of 4 bytes)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process, at the moment of its peak."""

    parameters: int
    """Weights of the model, in number."""
    weights: int
    gradients: int
    optimizer: int
    communication: int
    """Layers gathered by FSDP2, or DDP's buckets."""
    activations: int
    """Everything else that is alive at the peak: saved activations, logits, temporaries of the passes or the step."""

    @property
    def total(self) -> int:
        """The peak, less the bare process."""
        return self.weights + self.gradients + self.optimizer + self.communication + self.activations


def estimate_training(
    config: TrainingConfig, model_config: dict[str, Any], length: int, rows: int, on_gpu: bool = False
) -> MemoryEstimate:
    """Return what one process of a training takes.

    Args:
        config: its section.
        model_config: fields of the model's config.json, `model_type` and `vocab_size` too.
        length: tokens of a row.
        rows: of a forward pass; completions of KTO are taken to fill them.
        on_gpu: the head takes a GPU's blocks.
    """
    is_sharded = config.distributed == "fsdp" or config.keeps_masters
    is_traced = config.trainer.get("optim") in TRACED and config.distributed != "zero2"
    arguments = arguments_on_cpu(config, report_to="none", **({} if is_traced else {"optim": "sgd"}))
    small = small_copy(json.dumps(model_config))
    traits = Traits(why_own_logits=None if small is None else why_not_linear(small))
    with _pretended_world(config.processes if is_sharded else 1, on_gpu) as world:
        with torch.device("meta"):
            model = _build(config, model_config, traits)
        with (without_data := FakeTensorMode(allow_non_fake_inputs=True)):
            model.to_empty(device="cpu")
            model.tie_weights()
        model.to = lambda _: model  # it is where it should be, and what has no data cannot be moved
        num_parameters = sum(weight.numel() for weight in model.parameters())
        num_trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        kind, on_device = Sharded if is_sharded else Parallel, config.model_copy(update={"offload_to_cpu": False})
        parallel = kind(on_device, model, world, arguments)
        all_weights = [*model.parameters(), *model.buffers()]
        trained = [weight for weight in model.parameters() if weight.requires_grad]  # shares: later they are gathered
        with without_data, LiveBytes(all_weights) as live:
            state = _step_twice(parallel)
            accumulates = config.rows_per_step > rows * config.processes
            for is_last in (False, True) if accumulates else (True,):
                with parallel.accumulating(is_last):
                    parallel.backward(_loss(parallel.model, config, rows, length))
            parallel.drop_gradients()
            if config.trainer.get("eval_strategy") != "no" and config.objective == "cross_entropy":
                with torch.no_grad():
                    _loss(parallel.module, config, arguments.per_device_eval_batch_size, length)
            weights, optimizer = bytes_of(all_weights), bytes_of(state)
            gradients = bytes_of(trained)
    communication = live.most_gathered
    activations = max(0, live.peak - gradients - optimizer - communication)
    if config.distributed == "ddp" and config.processes > 1 and not is_sharded:
        communication = gradients  # its buckets hold each once more
    if config.distributed == "zero2":
        gradients //= config.processes
    if not is_traced:
        optimizer = int(num_trained * _state_bytes(config))
    if config.quantization is not None:
        weights = quantized_bytes(model, config.quantization)
    if config.offload_to_cpu and on_gpu:  # they are on the host, and a layer's at a time on the GPU
        weights = gradients = optimizer = 0
    return MemoryEstimate(num_parameters, weights, gradients, optimizer, communication, activations)


@contextmanager
def _pretended_world(size: int, on_gpu: bool) -> Iterator[World]:
    """Let this process take itself for the first of several, and take a GPU's blocks."""
    dist.init_process_group("fake", rank=0, world_size=size)
    previous = TRACED_FOR_GPU.set(on_gpu)
    try:
        yield World(0, size, torch.device("cpu"))
    finally:
        TRACED_FOR_GPU.reset(previous)
        dist.destroy_process_group()


def arguments_on_cpu(config: TrainingConfig, **changes: Any) -> TrainingArguments:
    """Return the arguments of a training, checked, for a CPU: what depends on the device is set aside."""
    ours = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None, "output_dir": "."}
    return check_arguments(config, config.trainer.values() | ours | changes)


def _build(config: TrainingConfig, model_config: dict[str, Any], traits: Traits) -> Any:
    """Return the model as the stage prepares it."""
    model = AutoModelForCausalLM.from_config(
        _config_of(model_config),
        dtype=getattr(torch, config.weights_dtype),
        attn_implementation="eager" if config.attn_implementation == "eager" else None,
    )
    model.config.use_cache = False
    model.train()
    if config.checkpoints_activations and not config.selective_checkpointing:
        checkpoint_activations(model, use_reentrant=False)
    model.set_attn_implementation(attention_choices(model, each_document=config.objective == "kto")[0])
    if config.objective == "kto":
        use_kto_forward(model)
    else:
        use_linear_cross_entropy(model, traits)
    if (adapter := config.peft) is None:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**adapter.model_dump(), task_type="CAUSAL_LM"))


def quantized_bytes(model: Any, quantization: QuantizationConfig) -> int:
    """Return what the weights take as QLoRA holds them: matrices in 4 or 8 bits, the rest and the head in float32."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    matrices -= {id(model.get_output_embeddings().weight)}
    # of 64 weights of 4 bits: in float32, or in a byte with a float32 scale for 256 of them
    scale_bytes = 1 + 4 / 256 if quantization.bnb_4bit_use_double_quant else 4
    weight_bytes = 0.5 + scale_bytes / 64 if quantization.load_in_4bit else 1.0
    return sum(
        int(weight.numel() * (weight_bytes if id(weight) in matrices and not weight.requires_grad else 4))
        for weight in model.parameters()
    )


def _step_twice(parallel: Parallel) -> list[torch.Tensor]:
    """Clip and step, the second time with all of the optimizer's state in place; returns that state."""
    for weight in parallel.module.parameters():
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    for _ in range(2):
        parallel.clip()
        parallel.optimizer.step()
    parallel.drop_gradients()
    return [value for entry in parallel.optimizer.state.values() for value in entry.values() if torch.is_tensor(value)]


def _loss(model: Any, config: TrainingConfig, rows: int, length: int) -> torch.Tensor:
    """Return the loss of one microbatch of a shape."""
    ids = torch.zeros((rows, length), dtype=torch.long)
    if config.objective == "cross_entropy":
        positions = torch.arange(length).repeat(rows, 1)
        return model(input_ids=ids, position_ids=positions, labels=ids, num_items_in_batch=ids.numel()).loss
    predicts = torch.arange(rows * length).reshape(rows, length)[:, :-1].flatten()
    target = torch.zeros(len(predicts), dtype=torch.long)
    one_bin = Bin(ids, None, predicts, target, [length - 1] * rows)
    return model(bin=one_bin, objective=lambda logp_b, _: torch.sigmoid(-logp_b))[0]


def _state_bytes(config: TrainingConfig) -> float:
    """Return what an optimizer that is not traced keeps a weight."""
    copies = next(copies for part, copies in STATE_COPIES.items() if part in config.trainer.get("optim"))
    width = getattr(torch, config.weights_dtype).itemsize
    if config.distributed != "zero2":
        return copies * width
    # DeepSpeed keeps float32 weights beside narrower ones
    return 4 * (copies + (width < 4)) / config.processes


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

    Attributes:
        most_gathered: the most bytes that storages held which are emptied and filled again: FSDP2's gathered weights.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        weights = list(known)
        self.shapes = {tensor.shape for tensor in weights}
        self.sizes = dict.fromkeys(map(storage_id, weights), 0)
        self.gathered: dict[int, int] = {}
        self.now = self.peak = self.most_gathered = 0

    def __enter__(self) -> LiveBytes:
        plain_resize = self.plain_resize = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> None:
            plain_resize(storage, size)
            self._resized(id(storage), size)

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self.plain_resize  # type: ignore[method-assign]
        super().__exit__(*error)

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
        storage = _local(tensor).untyped_storage()
        if id(storage) not in self.sizes:
            self._change(id(storage), storage.nbytes())
            weakref.finalize(storage, self._forget, id(storage))

    def _change(self, key: int, size: int) -> None:
        self.now += size - self.sizes.get(key, 0)
        self.sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _resized(self, key: int, size: int) -> None:
        if key in self.sizes:
            self._change(key, size)
            self.gathered[key] = size
            self.most_gathered = max(self.most_gathered, sum(self.gathered.values()))

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)
        self.gathered.pop(key, None)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def storage_id(tensor: torch.Tensor) -> int:
    """Return the identity of a tensor's storage, of this process's share, while it lives."""
    return id(_local(tensor).untyped_storage())


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of tensors on this process, each storage once."""
    return sum({storage_id(one): _local(one).untyped_storage().nbytes() for one in tensors}.values())


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
