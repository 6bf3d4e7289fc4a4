"""A training before it runs: what would stop it, what it writes, how it shrinks for a rehearsal, how long it takes.

Shared by pretraining and alignment; the stages add what is particular to each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ladle.artifacts.files import readable_size
from ladle.checkup import Checkup, Estimate, Finding, Level, Measured, Shrinking, error, guarded, ok, warning
from ladle.models.before import parameters_of, small_copy
from ladle.training.config import TrainerArguments, TrainingConfig

TrainingT = TypeVar("TrainingT", bound=TrainingConfig)

HIGH_LEARNING_RATE = 0.1
MOST_PASSES = 4.0
"""Up to four passes over the same text cost little (arXiv 2305.16264)."""

BF16_FROM = (8, 0)
"""Compute capability of Ampere."""
ATTENTION_KERNELS = {
    "flash_attention_2": ("flash_attn", (8, 0)),
    "flash_attention_3": ("flash_attn_interface", (9, 0)),
    "flex_attention": ("triton", (7, 0)),
}
"""The package and the compute capability that each takes: Ampere, Hopper, Volta."""
BARE_PROCESS_BYTES = 500_000_000
"""What Python, torch and transformers take before there is a model."""
TIGHT, TIGHT_ON_CPU = 0.9, 0.75
"""Above this share of what is free, memory that is kept though it was freed may tip it over: glibc's heap adds up to a
third, and oneDNN keeps compiled bfloat16 products (benchmarks/memory_estimate.py)."""
SMALL_CACHES = {"MALLOC_MMAP_THRESHOLD_": "1048576", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Keeps both small."""

STEPS = 2
"""Steps of a rehearsed training: one to save after, one to resume with."""
SHARE_OF_MEMORY = 0.6
"""Of the free memory, what a training may take in a rehearsal on a CPU: saving and other programs need some."""
GPU = "H100"
SHARE_OF_PEAK = 0.4
"""Llama 3's trainings reached 38 to 43 % of this GPU's bf16 peak (arXiv 2407.21783, table 4)."""
FORWARD = 1 / 3
"""A forward pass, of forward and backward passes together."""


# What would stop it.


def check_training(
    check: Checkup, length: int, rows: int | None, prepare: Callable[[Any], Any], pass_rows: int | None = None
) -> Iterator[Finding]:
    """Yield a finding for each demand of a training on its machine, arguments, data and memory.

    Args:
        check: its step, on a machine.
        length: tokens of its longest row; 0 if that is not known.
        rows: rows of its data; None if that is not known before the run.
        prepare: makes a model ready as the stage does, and returns its `Traits`.
        pass_rows: rows of a forward pass, if that is not the microbatch.
    """
    config, key = check.config, f"{check.key}.trainer"
    yield from _check_devices(check)
    arguments = list(guarded("arguments", key, lambda: _check_arguments(key, config)))
    yield from arguments
    if any(finding.level is not Level.OK for finding in arguments):
        return
    yield from _check_schedule(key, config, rows)
    model = list(guarded("model", check.key, lambda: _check_model(check, prepare)))
    yield from model
    if any(finding.level is Level.ERROR for finding in model):
        return
    if length and parameters_of(check) is not None:
        yield from guarded("memory", check.key, lambda: _check_memory(check, length, pass_rows or config.batch_size))


def _check_model(check: Checkup, prepare: Callable[[Any], Any]) -> Iterator[Finding]:
    from ladle.models.probe import find_routers
    from ladle.training.memory import arguments_on_cpu
    from ladle.training.parallel import make_optimizer

    config, key = check.config, check.key
    if check.model_config is None:
        return
    model = small_copy(json.dumps(check.model_config))
    if model is None:
        message = f"no small copy of a {check.model_config.get('model_type')} can be built to probe it before the run"
        yield warning(
            "model", key, message, "nothing to set: the training probes the model itself before its first step"
        )
        return
    name = type(model).__name__
    if config.attn_implementation == "sdpa" and model.config._attn_implementation == "eager":
        fix = f"set {key}.attn_implementation=eager to say so"
        yield warning("model", f"{key}.attn_implementation", f"{name} has no sdpa attention: it takes eager", fix)
    if config.attn_implementation == "eager":
        model.set_attn_implementation("eager")
    if getattr(config, "sequence_aux_loss", 0) and not find_routers(model):
        message = f"sequence_aux_loss has no effect: {name} has no router with a balancing bias"
        yield error("model", f"{key}.sequence_aux_loss", message, "leave it out")
    for sentence in prepare(model).sentences():
        yield warning("model", key, f"{name}: {sentence}", "nothing to set; it takes more time or memory")
    make_optimizer(model, arguments_on_cpu(config))  # refuses one whose package is not installed


def _check_devices(check: Checkup) -> Iterator[Finding]:
    config, machine, key = check.config, check.machine, check.key
    gpus, processes, trainer = len(machine.gpus), config.processes, config.trainer
    if gpus and processes > gpus:
        message = f"{processes} processes, and this machine has {gpus} GPU(s)"
        fix = f"set {key}.processes={gpus}, or run it where there are {processes}"
        yield error("devices", f"{key}.processes", message, fix)
    elif gpus and processes < gpus:
        fix = f"set {key}.processes={gpus}"
        yield warning("devices", f"{key}.processes", f"{processes} of {gpus} GPUs are used", fix)
    elif not gpus and processes > machine.cores:
        message = f"{processes} processes, and this machine has no GPU and {machine.cores} core(s)"
        fix = f"set {key}.processes={machine.cores}, or run it on GPUs: ladle launch RECIPE --slurm"
        yield error("devices", f"{key}.processes", message, fix)
    if config.distributed == "zero2":
        yield from check.needs("deepspeed", "pip install --no-build-isolation 'ladle[deepspeed]'")
        if processes == 1:
            message = "zero2 splits the optimizer among processes, and there is one"
            fix = f"set {key}.processes to the number of GPUs, or distributed: ddp"
            yield error("devices", f"{key}.distributed", message, fix)
    if config.pure_bf16:
        message = "pure bfloat16 weights: most updates of a usual learning rate round to nothing"
        yield warning("devices", f"{key}.pure_bf16", message, "leave it out to train float32 weights beside them")
    if trainer.get("use_liger_kernel"):
        yield from check.needs("liger_kernel", "pip install liger-kernel, or leave use_liger_kernel out")
    yield from _check_precision(check)
    yield from _check_attention(check)


def check_packed_training(check: Checkup, length: int, rows: int | None) -> Iterator[Finding]:
    """Yield what would stop a training on the next token of packed rows; as `check_training`."""

    def prepare(model: Any) -> Any:
        from ladle.models.probe import probe

        return probe(model, check.config.batch_size)

    yield from check_training(check, length, rows, prepare)


def _check_precision(check: Checkup) -> Iterator[Finding]:
    config, machine, key = check.config, check.machine, check.key
    wants_bf16 = config.runs_in_bf16
    old = [gpu for gpu in machine.gpus if gpu.capability < BF16_FROM]
    if wants_bf16 and old:
        capability = ".".join(map(str, old[0].capability))
        message = f"{old[0].name} (compute capability {capability}) has no bfloat16"
        fix = "use float16 with trainer.fp16=true, float32, or Ampere and later GPUs"
        yield error("devices", f"{key}.trainer.bf16", message, fix)
    if machine.gpus:
        return
    if config.trainer.get("fp16"):
        message = "fp16 needs a GPU: a CPU has no mixed precision in float16"
        yield error("devices", f"{key}.trainer.fp16", message, "leave it out")
    if config.dtype == "float16":
        message = "float16 on a CPU is slow and overflows"
        yield warning("devices", f"{key}.dtype", message, f"set {key}.dtype=float32")
    if wants_bf16 and not machine.multiplies_bfloat16:
        message = "this CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16): it is slower than float32"
        fix = f"leave bf16 out and set {key}.dtype=float32, if memory allows"
        yield warning("devices", f"{key}.trainer.bf16", message, fix)


def _check_attention(check: Checkup) -> Iterator[Finding]:
    config, machine, key = check.config, check.machine, f"{check.key}.attn_implementation"
    wanted = config.attn_implementation
    if wanted not in ATTENTION_KERNELS:
        return
    package, since = ATTENTION_KERNELS[wanted]
    if not machine.gpus or any(gpu.capability < since for gpu in machine.gpus):
        message = f"{wanted} needs a GPU of compute capability {since[0]}.{since[1]} or later"
        yield error("devices", key, message, f"set {key}=sdpa")
    elif package not in machine.packages:
        message = f"{wanted} needs the package {package}, which is not installed"
        fix = f"pip install {package.replace('_interface', '').replace('_', '-')}, or set {key}=sdpa"
        yield error("devices", key, message, fix)
    elif wanted != "flex_attention" and config.autocast is None and config.weights_dtype == "float32":
        message = f"{wanted} takes bfloat16 or float16, and the training is in float32"
        yield error("devices", key, message, f"set {check.key}.dtype=bfloat16, or {key}=sdpa")


def _check_arguments(key: str, config: TrainingConfig) -> Iterator[Finding]:
    """Have the stage itself look at the values, on a CPU: what depends on the device is looked at elsewhere."""
    from ladle.training.memory import arguments_on_cpu

    values = config.trainer.values()
    if values.get("bf16") and values.get("fp16"):
        yield error("arguments", key, "bf16 and fp16 are both set", "keep one: bf16 on Ampere and later")
        return
    arguments_on_cpu(config)
    yield ok("arguments", key, f"{len(values)} arguments that transformers takes")


def _check_schedule(key: str, config: TrainingConfig, rows: int | None) -> Iterator[Finding]:
    """Yield whether steps, saves, warm-up, rows and learning rate add up."""
    trainer, steps, per_step = config.trainer, config.num_steps(rows), config.rows_per_step
    rate = float(trainer.get("learning_rate"))
    if not 0 < rate < HIGH_LEARNING_RATE:
        message = f"the learning rate is {rate:g}"
        yield error("arguments", f"{key}.learning_rate", message, "set one between 1e-7 and 1e-2")
    if steps is None:
        return
    if num_saved(config, steps) == 0 and trainer.get("save_strategy") == "steps":
        message = f"a checkpoint every {save_every(config, steps):g} steps, of {steps:,}: a stopped run starts again"
        yield warning("arguments", f"{key}.save_steps", message, f"set {key}.save_steps={max(1, steps // 5)}")
    warmup = float(trainer.get("warmup_steps"))
    if warmup >= 1 and warmup >= steps:
        message = f"{warmup:g} steps of warm-up, of {steps:,} in all: the learning rate never gets there"
        yield warning("arguments", f"{key}.warmup_steps", message, f"set {key}.warmup_steps=0.1")
    if rows is None:
        return
    passes = steps * per_step / rows
    if rows < per_step:
        message = f"a step takes {per_step:,} rows, and the mixture has {rows:,}"
        fix = f"lower {key}.gradient_accumulation_steps or per_device_train_batch_size, or mix more"
        yield error("arguments", key, message, fix)
    elif passes > MOST_PASSES and config.max_steps is not None:
        message = f"{steps:,} steps of {per_step:,} rows are {passes:.1f} passes over the mixture's {rows:,}"
        yield warning("arguments", f"{key}.max_steps", message, "raise the mix budget, or lower max_steps")


def save_every(config: TrainingConfig, steps: int) -> float:
    """Return the steps between two checkpoints."""
    every = float(config.trainer.get("save_steps"))
    return every * steps if every < 1 else every


def num_saved(config: TrainingConfig, steps: int) -> int:
    """Return how many checkpoints a training saves by the step."""
    return int(steps // save_every(config, steps)) if config.trainer.get("save_strategy") == "steps" else 0


# Memory and disk.


def _check_memory(check: Checkup, length: int, rows: int) -> Iterator[Finding]:
    from ladle.training.memory import estimate_training

    gpus = () if check.config.trainer.get("use_cpu") else check.machine.gpus
    estimate = estimate_training(check.config, check.model_config or {}, length, rows, on_gpu=bool(gpus))
    needed = estimate.total + BARE_PROCESS_BYTES
    free = min(gpu.memory_bytes for gpu in gpus) if gpus else check.machine.memory_bytes // check.config.processes
    parts = {
        "weights": estimate.weights,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        "communication": estimate.communication,
        "activations and logits": estimate.activations,
        "bare process": BARE_PROCESS_BYTES,
    }
    listed = ", ".join(f"{name} {readable_size(size)}" for name, size in parts.items() if size)
    where = "each GPU has" if gpus else "each process could take"
    message = f"{readable_size(needed)} a process ({listed}); {where} {readable_size(free)}"
    fix = _less_memory(check, estimate, length, rows, free)
    if needed > free:
        yield error("memory", check.key, message, fix)
    elif needed > (TIGHT if gpus else TIGHT_ON_CPU) * free:
        caches = "" if gpus else f"export {' '.join(f'{name}={value}' for name, value in SMALL_CACHES.items())}; "
        yield warning("memory", check.key, f"tight: {message}", caches + fix)
    else:
        yield ok("memory", check.key, message)


def _less_memory(check: Checkup, estimate: Any, length: int, rows: int, free: int) -> str:
    """Return what to set for a training to take less memory, the most useful first."""
    config, key = check.config, f"{check.key}.trainer"
    fixed = estimate.total - estimate.activations
    fixes = []
    if rows > 1 and hasattr(config, "max_tokens_per_microbatch"):
        fitting = rows * (TIGHT_ON_CPU * free - BARE_PROCESS_BYTES - fixed) / estimate.activations
        fixes.append(f"{check.key}.max_tokens_per_microbatch={max(1, int(fitting)) * length}")
    if estimate.activations > estimate.weights + estimate.gradients + estimate.optimizer:
        if not config.trainer.get("gradient_checkpointing"):
            fixes.append(f"{key}.gradient_checkpointing=true")
        if config.batch_size > 1 and not hasattr(config, "max_tokens_per_microbatch"):
            accumulated = int(config.trainer.get("gradient_accumulation_steps"))
            smaller = f"{key}.per_device_train_batch_size={config.batch_size // 2}"
            fixes.append(f"{smaller} with gradient_accumulation_steps={2 * accumulated}")
    else:
        fixes += [f"{check.key}.distributed=fsdp"] if config.distributed == "ddp" and config.processes > 1 else []
        is_sharded = config.distributed == "fsdp" or config.keeps_masters
        fixes += [f"{key}.optim=adafactor"] if config.trainer.get("optim") != "adafactor" and not is_sharded else []
    return f"set {', or '.join(fixes)}" if fixes else "use more memory, or a smaller model"


def training_bytes(check: Checkup, rows: int | None) -> int:
    """Return what a training's checkpoints take at most: whole ones, models alone, one being written, the result."""
    config, trainer, parameters = check.config, check.config.trainer, parameters_of(check) or 0
    width = 4 if config.dtype == "float32" else 2
    weights, optimizer = width * parameters, 2 * width * parameters  # Adam keeps two numbers a weight
    if trainer.get("save_strategy") == "no":
        return weights
    steps = config.num_steps(rows)
    saved = int(steps // save_every(config, steps)) if steps else 1
    whole = min(saved, int(trainer.get("save_total_limit") or saved)) + 1
    alone = max(0, saved - whole) if config.keep_models is None else config.keep_models
    return whole * (weights + optimizer) + alone * weights + weights


# The rehearsal.


def shrink_training(config: TrainingT, shrinking: Shrinking, length: int, rows_on_cpu: int) -> TrainingT:
    """Return a training of two steps, with a checkpoint after each.

    The model's shape, the length of rows, the dtype and the optimizer stay, and the microbatch if there is a GPU.
    """
    values = {name: value for name, value in config.trainer.values().items() if name != "num_train_epochs"}
    if not shrinking.gpus and config.batch_size > rows_on_cpu:
        shrinking.say(f"{rows_on_cpu} row(s) a microbatch instead of {config.batch_size}, on a CPU")
        values["per_device_train_batch_size"] = rows_on_cpu
    values |= {"max_steps": STEPS, "gradient_accumulation_steps": 1, "logging_steps": 1, "report_to": "none"}
    values |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    if values.get("eval_strategy", "no") != "no":
        values["eval_steps"] = STEPS
    processes, room, distributed = config.processes, max(1, shrinking.gpus), config.distributed
    if processes > room:
        shrinking.say(f"{room} process(es) instead of {processes}")
        processes = room
    if distributed == "zero2" and processes == 1:
        shrinking.say("one process, so the optimizer is not split (zero2)")
        distributed = "ddp"
    changes = {"trainer": TrainerArguments(**values), "processes": processes, "distributed": distributed}
    small = config.model_copy(update=changes)
    model = shrinking.true.model_config if shrinking.true is not None and not shrinking.gpus else None
    if model is not None and length:
        from ladle.training.memory import estimate_training

        needed = estimate_training(small, model, length, small.batch_size).total
        if needed > SHARE_OF_MEMORY * shrinking.free_bytes:
            free = readable_size(shrinking.free_bytes)
            shrinking.say(f"SGD instead of its optimizer: it takes {readable_size(needed)} of {free} free")
            small = small.model_copy(update={"trainer": TrainerArguments(**values | {"optim": "sgd"})})
    return small


def extrapolate_training(
    check: Checkup, measured: Measured, length: int, rows: int | None, forward_passes: int = 0
) -> Estimate:
    """Return what the true training takes: the rehearsal's seconds a row times its rows, and its FLOPs on GPUs.

    FLOPs are those of `ladle.training.speed`: 6 for each active weight of a token, and attention. Gradient
    checkpointing adds a forward pass.

    Args:
        check: the true training.
        measured: its rehearsal.
        length: tokens of a row, all of them taken to be full.
        rows: rows of its data, if they are known.
        forward_passes: those of a step beside its forward and backward pass.
    """
    config, small = check.config, measured.config
    steps = config.num_steps(rows)
    if steps is None:
        return Estimate()
    per_step = measured.record["timings"].get("seconds_per_step")
    seconds = None if per_step is None else per_step / small.rows_per_step * config.rows_per_step * steps
    if check.model_config is None:
        return Estimate(seconds)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ladle.training.progress import PEAK_BF16_FLOPS, flops_per_token

    fields = dict(check.model_config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    passes = 1 + FORWARD * (forward_passes + bool(config.trainer.get("gradient_checkpointing")))
    flops = steps * config.rows_per_step * length * passes * flops_per_token(model, length)
    return Estimate(seconds, flops / (SHARE_OF_PEAK * PEAK_BF16_FLOPS[GPU]) / 3600)


def rows_of_a_pass(config: Any) -> int:
    """Return the rows of a forward pass of KTO, which repacks a step's rows, at their longest here, by tokens."""
    of_a_step = math.ceil(config.rows_per_step / config.processes)
    return max(1, min(of_a_step, config.max_tokens_per_microbatch // config.max_length))
