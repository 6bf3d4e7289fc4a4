"""Does each training fit: weights, gradients, optimizer, activations and logits of a process, against what is free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ladle.doctor.finding import Finding, error, guarded, ok, warning
from ladle.doctor.machine import Machine
from ladle.doctor.trainings import Training
from ladle.kto.config import KtoConfig

FAMILY = "memory"
GIGABYTE = 10**9
BARE_PROCESS_BYTES = int(0.5 * GIGABYTE)
"""What Python, torch and transformers take before there is a model."""
TIGHT, TIGHT_ON_CPU = 0.9, 0.75
"""Above this share of what is there, what is kept though it was freed may tip it over: glibc's heap adds up to a third,
and oneDNN keeps compiled bfloat16 products (benchmarks/memory_estimate.py)."""
SMALL_CACHES = ("MALLOC_MMAP_THRESHOLD_=1048576", "ONEDNN_PRIMITIVE_CACHE_CAPACITY=64")


def check_memory(trainings: list[Training], config: dict[str, Any] | None, machine: Machine) -> Iterator[Finding]:
    """Yield a finding for each training of the base's shape."""
    for training in trainings:
        if config is not None and training.length:
            yield from guarded(FAMILY, training.key, lambda one=training: _check(one, config, machine))


def _check(training: Training, config: dict[str, Any], machine: Machine) -> Iterator[Finding]:
    from ladle.training.memory import MemoryEstimate, estimate_training

    estimate: MemoryEstimate = estimate_training(shape_of(training, config))
    needed = estimate.total + BARE_PROCESS_BYTES
    if machine.gpus:
        there, where = min(gpu.memory_bytes for gpu in machine.gpus), "each GPU has"
    else:
        there, where = machine.memory_bytes // training.config.processes, "each process could take"
    parts = {
        "weights": estimate.weights,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        "communication": estimate.communication,
        "activations and logits": estimate.activations,
    }
    listed = ", ".join(f"{name} {size / GIGABYTE:.2f}" for name, size in parts.items() if size)
    message = (
        f"{needed / GIGABYTE:.1f} GB a process ({listed}, bare process {BARE_PROCESS_BYTES / GIGABYTE:.1f}); "
        f"{where} {there / GIGABYTE:.1f} GB"
    )
    if needed > there:
        yield error(FAMILY, training.key, message, _fix(training, estimate))
    elif needed > (TIGHT if machine.gpus else TIGHT_ON_CPU) * there:
        caches = "" if machine.gpus else f"export {' '.join(SMALL_CACHES)}; "
        yield warning(FAMILY, training.key, f"tight: {message}", caches + _fix(training, estimate))
    else:
        yield ok(FAMILY, training.key, message)


def shape_of(training: Training, config: dict[str, Any]) -> Any:
    """Return the shape of one process of a training of a model with these config fields."""
    from ladle.training.memory import TrainingShape

    arguments, section = training.arguments, training.config
    rows = _rows_of_a_pass(training)
    low = "bfloat16" if arguments.get("bf16") else "float16" if arguments.get("fp16") else None
    whole = section.distributed == "zero2" and low is not None
    return TrainingShape(
        config=config,
        dtype=(low if whole and low else section.dtype),
        batch_size=rows,
        sequence_length=training.length,
        loss="kto" if isinstance(section, KtoConfig) else "cross_entropy",
        optimizer=str(arguments.get("optim", "adamw_torch_fused")),
        autocast=None if whole or low == section.dtype else low,
        accumulates=training.rows_per_step > rows * section.processes,
        gradient_checkpointing=bool(arguments.get("gradient_checkpointing", False)),
        attention="sdpa" if section.attn_implementation.startswith("flash") else section.attn_implementation,
        adapter=section.peft.model_dump() if isinstance(section, KtoConfig) and section.peft else None,
        distributed=section.distributed,
        processes=section.processes,
    )


def _rows_of_a_pass(training: Training) -> int:
    """Return the rows of a forward pass: KTO repacks a step's rows, at their longest here, to a budget of tokens."""
    if not isinstance(training.config, KtoConfig):
        return training.batch_size
    of_a_step = math.ceil(training.rows_per_step / training.config.processes)
    return max(1, min(of_a_step, training.config.max_tokens_per_microbatch // training.length))


def _fix(training: Training, estimate: Any) -> str:
    key = f"{training.key}.trainer"
    if estimate.activations > estimate.weights + estimate.gradients + estimate.optimizer:
        if not training.arguments.get("gradient_checkpointing"):
            return f"set {key}.gradient_checkpointing=true, or a smaller {key}.per_device_train_batch_size"
        return f"set a smaller {key}.per_device_train_batch_size with more {key}.gradient_accumulation_steps"
    fixes = []
    if training.config.distributed == "ddp" and training.config.processes > 1:
        fixes.append(f"{training.key}.distributed=zero2")
    if training.config.dtype == "float32":
        fixes.append(f"{training.key}.dtype=bfloat16")
    if training.arguments.get("optim") != "adafactor":
        fixes.append(f"{key}.optim=adafactor")
    return f"set {' or '.join(fixes)}" if fixes else "use more memory, or a smaller model"
