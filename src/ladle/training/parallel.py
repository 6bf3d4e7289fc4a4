"""The processes of one training, and how they share its work: DDP, FSDP2 or DeepSpeed's ZeRO-2.

- `Parallel`: the model on one device, or whole on every process under DDP.
- `Sharded`: FSDP2 (`fully_shard`, arXiv 2304.11277 in its second form). Weights, gradients and optimizer state are
  split among the processes; or, with a mesh of replicas of one shard each, kept whole as under DDP. Its mixed precision
  is how bfloat16 trains here: float32 weights for the optimizer, a bfloat16 copy for the passes (routed experts
  included, which autocast leaves in float32), gradients summed and exchanged in float32.
- `Zero2`: DeepSpeed's ZeRO stage 2 (arXiv 1910.02054), without offload: weights whole, gradients and optimizer split.
"""

from __future__ import annotations

import importlib
import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import Trainer, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_pt_utils import get_parameter_names
from transformers.training_args import OptimizerNames

from ladle.artifacts.files import hash_bytes
from ladle.errors import UserError
from ladle.log import get_logger
from ladle.models.load import checkpoint_activations
from ladle.training.config import TrainingConfig

logger = get_logger(__name__)

OPTIMIZER, SHARDS = "optimizer.pt", "shards"
NOT_DECAYED = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Weights that weight decay leaves alone, as in transformers.Trainer."""


MOST_GRAPHS = 16
"""Compiled forms of a layer: dense or of experts, with a mask or without, with gradient or without, in some sizes. What
needs more runs as it is, and torch warns."""
PRODUCTS = [getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm")]
"""What `selective_checkpointing` keeps: most of a layer's work, in outputs that are small beside the rest."""


@dataclass(frozen=True)
class World:
    """The processes of a training, this one's rank among them, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of every process's `tensor`, of its shape, on every process."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def wait(self) -> None:
        """Wait until every process gets here."""
        if self.size > 1:
            dist.barrier()


def join_world(use_cpu: bool = False) -> World:
    """Return the processes that torchrun (or accelerate, or Slurm through them) started with this one."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available() and not use_cpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def leave_world() -> None:
    """Close the group of a process that is alone, so that another training can begin in it.

    One of several processes ends soon; gloo can wait for ever in taking a group down whose other members have gone.
    """
    if dist.is_initialized() and dist.get_world_size() == 1:
        dist.destroy_process_group()


def require_processes(wanted: int) -> None:
    """Check that a training runs in as many processes on this machine as its recipe says, each with a GPU if any has.

    Raises:
        UserError: it does not.
    """
    started = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if started != wanted:
        problem = f"the recipe sets {wanted} processes per machine and {started} were started"
        fix = f"set processes={started}, or start it with `ladle run`, which starts as many as the recipe sets"
        raise UserError(problem, fix)
    gpus = torch.cuda.device_count()
    if gpus and wanted > gpus:
        raise UserError(f"the recipe sets {wanted} processes and this machine has {gpus} GPUs", f"processes={gpus}")


class Parallel:
    """A model and its optimizer on one device, or whole on every process under DDP.

    Args:
        config: the training's section.
        model: the model, or an adapter on it.
        world: the processes.
        arguments: optimizer, clipping, DDP's options, fp16.

    Attributes:
        model: what the passes with gradient call.
        module: what other passes call.
        restores_weights: `load` restores the weights too.
        splits_optimizer: each process has a share of the optimizer's state, and float32 weights in it.
        resumes_other_worlds: what one number of processes saved, another can load.
        compute_dtype: of the passes, where it is not the weights'.
    """

    restores_weights = splits_optimizer = False
    resumes_other_worlds = True
    compute_dtype: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, config: TrainingConfig, model: nn.Module, world: World, arguments: TrainingArguments) -> None:
        self.config, self.world, self.arguments = config, world, arguments
        self.module = self.model = model
        self._place()

    def _place(self) -> None:
        arguments, device = self.arguments, self.world.device
        if not getattr(self.module, "is_quantized", False):  # quantized weights stay where they were loaded
            self.module.to(device)
        if self.world.size > 1:
            names = ("find_unused_parameters", "bucket_cap_mb", "broadcast_buffers", "static_graph")
            given = {name: value for name in names if (value := getattr(arguments, f"ddp_{name}")) is not None}
            self.model = DistributedDataParallel(self.module, **given)
        self.optimizer = make_optimizer(self.module, arguments)
        if arguments.fp16:
            self.scaler = torch.amp.GradScaler(device.type)

    @property
    def wrapper(self) -> str:
        """Name of the class that holds the model in training."""
        return type(self.model).__name__

    def computing(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass: float16 autocast where `fp16` is set."""
        return torch.autocast(self.world.device.type, torch.float16) if self.arguments.fp16 else nullcontext()

    def accumulating(self, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context of a pass; gradients are exchanged in a step's last one alone."""
        if is_last or self.world.size == 1:
            return nullcontext()
        return cast(DistributedDataParallel, self.model).no_sync()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip(self) -> torch.Tensor:
        """Clip the gradients to `max_grad_norm` and return the norm they had, over all processes."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        weights = [weight for weight in self.module.parameters() if weight.grad is not None]
        norm = get_total_norm([cast(torch.Tensor, weight.grad) for weight in weights])
        if self.arguments.max_grad_norm:
            clip_grads_with_norm_(weights, self.arguments.max_grad_norm, norm)
        return norm

    def step(self) -> None:
        """Let the optimizer use the gradients, and drop them."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.drop_gradients()

    def skip(self) -> None:
        """Drop the gradients that `clip` has seen, without a step."""
        if self.scaler is not None:
            self.scaler.update()  # the scaler refuses to unscale twice without an update
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients."""
        self.module.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """Write the optimizer's state; every process calls it."""
        if self.world.is_main:
            state = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler and self.scaler.state_dict()}
            torch.save(state, folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        state = torch.load(folder / OPTIMIZER, map_location=self.world.device, weights_only=True)
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """Return all weights on the first process where no process holds them as they are; every process calls it."""
        return None

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Return the optimizer's tensors by name, of this process."""
        return {
            f"{index}.{name}": value
            for index, entry in sorted(self.optimizer.state_dict()["state"].items())
            for name, value in sorted(entry.items())
            if torch.is_tensor(value)
        }

    def digest(self) -> str:
        """Return the blake3 over the optimizer's tensors: equal runs give equal digests; every process must call this.

        Where processes hold shares of it, over all of them.
        """
        parts = []
        for name, tensor in self.state_tensors().items():
            data = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            parts.append([name, hash_bytes(data)])
        digest = hash_bytes(json.dumps(parts).encode())
        if not self.splits_optimizer:
            return digest
        digests = [""] * self.world.size
        dist.all_gather_object(digests, digest)
        return hash_bytes(json.dumps(digests).encode())


class Sharded(Parallel):
    """A model under FSDP2, its trainable weights in float32, one group for each decoder layer and one for the rest.

    Without `distributed: fsdp` each process keeps all weights, as under DDP.
    """

    restores_weights = splits_optimizer = True

    def _place(self) -> None:
        kind, size, config = self.world.device.type, self.world.size, self.config
        self.shards = config.distributed == "fsdp"
        self.compute_dtype = torch.bfloat16 if config.keeps_masters else None
        if not dist.is_initialized():  # one process: FSDP2 needs a group all the same
            store = dist.HashStore()  # type: ignore[reportPrivateImportUsage]  # documented, not listed in __all__
            dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=store, rank=0, world_size=1)
        self.module.to(self.world.device)
        mesh = init_device_mesh(kind, (1, size) if self.shards else (size, 1), mesh_dim_names=("replicas", "shards"))
        accumulate = torch.float32 if self.compute_dtype is not None else None
        options: dict[str, Any] = {
            "mesh": mesh["shards"] if self.shards else mesh,
            "mp_policy": MixedPrecisionPolicy(self.compute_dtype, accumulate),
            "offload_policy": CPUOffloadPolicy(pin_memory=kind == "cuda") if config.offload_to_cpu else OffloadPolicy(),
        }
        for layer in self.module.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                fully_shard(layer, reshard_after_forward=self.shards, **options)
        fully_shard(self.module, reshard_after_forward=False, **options)
        self.optimizer = make_optimizer(self.module, self.arguments)

    def accumulating(self, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context of a pass; replicas exchange gradients in a step's last one alone, shards in each."""
        cast(Any, self.model).set_requires_gradient_sync(is_last or self.shards)
        return nullcontext()

    def clip(self) -> torch.Tensor:
        """Clip the gradients to `max_grad_norm` and return the norm they had, over all processes."""
        return cast(Any, super().clip()).full_tensor()

    def save(self, folder: Path) -> None:
        """Write a file of float32 weights and optimizer state for each process."""
        weights, optimizer = sharded.get_state_dict(self.module, self.optimizer)
        state_dict_saver.save({"weights": weights, "optimizer": optimizer}, checkpoint_id=folder / SHARDS)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on as many processes or another number."""
        weights, optimizer = sharded.get_state_dict(self.module, self.optimizer)
        state = {"weights": weights, "optimizer": optimizer}
        state_dict_loader.load(state, checkpoint_id=folder / SHARDS)
        sharded.set_state_dict(
            self.module, self.optimizer, model_state_dict=state["weights"], optim_state_dict=state["optimizer"]
        )

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """Return all weights on the first process, in the CPU's memory; every process calls it."""
        options = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, torch.Tensor], sharded.get_model_state_dict(self.module, options=options))

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Return this process's shards of the optimizer's tensors, and of the weights it keeps."""
        tensors: dict[str, Any] = super().state_tensors() | dict(self.module.named_parameters())
        return {name: value.to_local() if hasattr(value, "to_local") else value for name, value in tensors.items()}


class Zero2(Parallel):
    """A model under DeepSpeed's engine, which holds the optimizer and clips."""

    restores_weights = splits_optimizer = True
    resumes_other_worlds = False

    def _place(self) -> None:
        if self.world.device.type == "cpu":
            # Keeps DeepSpeed from compiling its shared-memory operator, which only inference uses: that takes 40 s and
            # a compiler, and a process killed meanwhile leaves a lock that hangs the next ones.
            importlib.import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
        import deepspeed

        dtypes = {weight.dtype for weight in self.module.parameters()}
        self.optimizer = make_optimizer(self.module, self.arguments)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": self.arguments.max_grad_norm,
            "bf16": {"enabled": torch.bfloat16 in dtypes},
            "fp16": {"enabled": torch.float16 in dtypes},
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**60,
        }
        self.is_adapter = hasattr(self.module, "peft_config")
        self.model, *_ = deepspeed.initialize(model=self.module, optimizer=self.optimizer, config=config)

    def accumulating(self, is_last: bool) -> AbstractContextManager[Any]:
        """Tell the engine whether this is the step's last pass."""
        cast(Any, self.model).set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss."""
        cast(Any, self.model).backward(loss)

    def clip(self) -> torch.Tensor:
        """Return the norm of the gradients over all processes; the engine clips them in its step."""
        return torch.as_tensor(cast(Any, self.model).optimizer.scaled_global_norm())

    def step(self) -> None:
        """Let the engine clip, step and drop the gradients."""
        cast(Any, self.model).step()

    def save(self, folder: Path) -> None:
        """Write a file for each process, in DeepSpeed's form."""
        cast(Any, self.model).save_checkpoint(str(folder), exclude_frozen_parameters=self.is_adapter)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        cast(Any, self.model).load_checkpoint(str(folder), load_module_strict=not self.is_adapter)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Return this process's shares of the float32 weights and of the optimizer's tensors."""
        shares = cast(Any, self.model).optimizer.single_partition_of_fp32_groups
        return super().state_tensors() | {f"weights.{index}": share for index, share in enumerate(shares)}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, every tensor in the dtype it was saved in.

    torch casts each to its parameter's dtype. An optimizer that keeps float32 state for bfloat16 weights (Adafactor
    does) would resume from rounded values, and its run would no longer be the uninterrupted one.
    """
    optimizer.load_state_dict(state)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, entry in state["state"].items():
        held = optimizer.state[weights[index]]
        for name, value in entry.items():
            if isinstance(value, torch.Tensor) and value.dtype != held[name].dtype:
                held[name] = value.to(held[name].device)


def share_out(config: TrainingConfig, model: nn.Module, world: World, arguments: TrainingArguments) -> Parallel:
    """Return the model and its optimizer, on the processes as the recipe says."""
    if arguments.gradient_checkpointing:  # of either name, which transformers keeps equal
        kwargs = {"use_reentrant": False} | cast(dict[str, Any], arguments.gradient_checkpointing_kwargs or {})
        if config.selective_checkpointing:
            kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, PRODUCTS)
        checkpoint_activations(model, **kwargs)
    if arguments.torch_compile:
        torch.compiler.reset()  # of what trainings before it have compiled
        how = {"backend": arguments.torch_compile_backend, "mode": arguments.torch_compile_mode}
        how |= {"recompile_limit": MOST_GRAPHS, "dynamic": config.objective == "kto" or None}
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.compile(**how)
        if how["dynamic"]:
            what = "kernels are made for the sizes of the first bins: a resumed run may not be bit-equal to a whole one"
            logger.warning("torch_compile: %s", what)
    kind = Zero2 if config.distributed == "zero2" else Sharded if config.distributed == "fsdp" else Parallel
    kind = Sharded if config.keeps_masters else kind
    if config.pure_bf16:
        logger.warning(
            "pure_bf16: weights, gradients and optimizer are all bfloat16, in which most updates of a usual learning "
            "rate round to nothing. Leave it out to train float32 weights beside them"
        )
    return kind(config, model, world, arguments)


def make_optimizer(model: nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return the optimizer of `trainer.optim` for a model's trainable weights, grouped as transformers.Trainer does.

    Raises:
        UserError: its package is not installed, or it does not take groups of weights.
    """
    name = OptimizerNames(arguments.optim).value
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)  # type: ignore[arg-type]
    except (ImportError, ValueError) as error:
        problem = f"trainer.optim={name} cannot run here: {str(error).splitlines()[0]}"
        raise UserError(problem, "install its package, or set optim: adamw_torch_fused") from error
    is_plain = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if not is_plain or options.keys() & {"optimizer_dict", "model"}:
        raise UserError(f"trainer.optim={name} takes its own steps", "set optim: adamw_torch_fused")
    decayed = set(get_parameter_names(model, [nn.LayerNorm], NOT_DECAYED))
    trained = [(weight_name, weight) for weight_name, weight in model.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if name in decayed], "weight_decay": arguments.weight_decay},
        {"params": [weight for name, weight in trained if name not in decayed], "weight_decay": 0.0},
    ]
    return kind(options.pop("params", groups), **options)
