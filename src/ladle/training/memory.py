"""How much memory a training will take, found without any of it: a true step on tensors that have no data.

The model is built, the optimizer steps, and beside the state that it leaves microbatches of the true shape go forward
and backward, all under FakeTensorMode, while every storage that comes to life and dies is counted. So activations,
logits, the optimizer's state and the temporaries of every operator are those of this very architecture, loss and
optimizer, whatever they are.

Not counted: what the Python process itself takes, the allocator's fragmentation, and kernels' private workspaces.
Where the trace follows CPU kernels and a GPU would run, attention may differ. An optimizer that cannot be traced
(8 bits, DeepSpeed's) is counted by what it keeps a weight.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments, masking_utils

from ladle.training.attention import use_fused_attention
from ladle.training.kto.batches import Bin
from ladle.training.kto.forward import use_kto_forward
from ladle.training.linear_cross_entropy import use_linear_cross_entropy
from ladle.training.live_bytes import LiveBytes, bytes_of

TRACED = frozenset(["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
"""Optimizers of torch and transformers, which run on tensors without data."""
STATE_COPIES = {"8bit": 0.53, "lion": 1.0}
"""What other optimizers keep, in copies of the trained weights, by a part of the name; 8-bit ones keep two bytes a
weight and scales (2.1 of 4 bytes)."""
ADAM_COPIES = 2.0

Distributed = Literal["ddp", "zero2"]


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
        autocast: dtype that operators run in where it is not the weights'.
        accumulates: several microbatches make a step, so that gradients are there from the second one's start.
        gradient_checkpointing: whether activations are computed again in the backward pass.
        attention: attn_implementation.
        adapter: peft's LoraConfig fields, where an adapter alone is trained.
        distributed: how processes share the work.
        processes: how many in all.
    """

    config: dict[str, Any]
    dtype: str
    batch_size: int
    sequence_length: int
    loss: Literal["cross_entropy", "kto"] = "cross_entropy"
    optimizer: str = "adamw_torch_fused"
    autocast: str | None = None
    accumulates: bool = False
    gradient_checkpointing: bool = False
    attention: str = "sdpa"
    adapter: dict[str, Any] | None = None
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
    share = shape.processes if shape.distributed == "zero2" else 1
    kept, state = int(gradients / share), traced_state
    if not _is_traced(shape):
        state = int(_state_bytes(trained, shape) / share)
        peak += state
    return MemoryEstimate(
        parameters=sum(p.numel() for p in model.parameters()),
        weights=weights,
        gradients=kept,
        optimizer=state,
        communication=_communication(gradients, shape),
        activations=max(0, peak - kept - state),
    )


def _build(shape: TrainingShape) -> Any:
    """Return the model as the stage prepares it, on the meta device."""
    fields = dict(shape.config)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, shape.dtype), attn_implementation=shape.attention
        )
    model.config.use_cache = False
    model.train()
    if shape.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if shape.loss == "kto":
        use_kto_forward(model)
    else:
        use_linear_cross_entropy(model)
        use_fused_attention(model)
    return model if shape.adapter is None else _add_adapter(model, shape.adapter)


def _add_adapter(model: PreTrainedModel, fields: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**fields, task_type="CAUSAL_LM"))


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
    forward = _kto_forward(shape) if shape.loss == "kto" else _cross_entropy_forward(shape)
    with LiveBytes((*model.parameters(), *model.buffers())) as live:
        optimizer = _make_optimizer(model, trained, shape) if _is_traced(shape) else None
        if optimizer is not None:
            _step_twice(optimizer, trained)
        for _ in range(2 if shape.accumulates else 1):
            with _autocast(shape):
                loss = forward(model)
            loss.backward()
            del loss
        return live.peak, bytes_of(_state_of(optimizer))


def _step_twice(optimizer: torch.optim.Optimizer, trained: list[torch.nn.Parameter]) -> None:
    """Clip and step, the second time with all of the state in place."""
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    for _ in range(2):
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _cross_entropy_forward(shape: TrainingShape) -> Callable[[Any], torch.Tensor]:
    def forward(model: Any) -> torch.Tensor:
        ids = torch.zeros((shape.batch_size, shape.sequence_length), dtype=torch.long)
        positions = torch.arange(shape.sequence_length).repeat(shape.batch_size, 1)
        return model(input_ids=ids, position_ids=positions, labels=ids, num_items_in_batch=ids.numel()).loss

    return forward


def _kto_forward(shape: TrainingShape) -> Callable[[Any], torch.Tensor]:
    rows, length = shape.batch_size, shape.sequence_length

    def forward(model: Any) -> torch.Tensor:
        ids = torch.zeros((rows, length), dtype=torch.long)
        predicts = torch.arange(rows * length).reshape(rows, length)[:, :-1].flatten()
        sizes = [length - 1] * rows
        one_bin = Bin(ids, None, predicts, torch.zeros(len(predicts), dtype=torch.long), sizes, list(range(rows)))
        with _rows_of_one_document():
            loss, _, _ = model(bin=one_bin, objective=lambda logp_b, _: torch.sigmoid(-logp_b))
        return loss

    return forward


@contextmanager
def _rows_of_one_document() -> Iterator[None]:
    """Let attention go without a mask: of positions without data, transformers assumes that they pack documents."""
    plain = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = plain


def _autocast(shape: TrainingShape) -> Any:
    wanted = getattr(torch, shape.autocast) if shape.autocast else None
    return torch.autocast("cpu", dtype=wanted or torch.bfloat16, enabled=wanted is not None)


# The optimizer.


def _is_traced(shape: TrainingShape) -> bool:
    return shape.optimizer in TRACED and shape.distributed == "ddp"


def _make_optimizer(model: Any, trained: list[torch.nn.Parameter], shape: TrainingShape) -> torch.optim.Optimizer:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, optim=shape.optimizer, use_cpu=True, report_to="none")
    make, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    return make(trained, **options)


def _state_of(optimizer: torch.optim.Optimizer | None) -> Iterator[torch.Tensor]:
    for entry in optimizer.state.values() if optimizer is not None else ():
        yield from (value for value in entry.values() if isinstance(value, torch.Tensor))


def _state_bytes(trained: list[torch.nn.Parameter], shape: TrainingShape) -> float:
    copies = next((STATE_COPIES[key] for key in STATE_COPIES if key in shape.optimizer), ADAM_COPIES)
    if shape.distributed == "zero2" and shape.dtype != "float32":
        return sum(p.numel() for p in trained) * 4 * (copies + 1)  # DeepSpeed keeps float32 weights beside them
    return bytes_of(trained) * copies


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
