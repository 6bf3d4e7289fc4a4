"""Does the machine have what the recipe asks for: GPUs, bf16, attention kernels, drivers, extra packages."""

from __future__ import annotations

from collections.abc import Iterator

from ladle.doctor.finding import Finding, error, ok, warning
from ladle.doctor.machine import Machine
from ladle.doctor.references import mixes_of
from ladle.doctor.trainings import Training
from ladle.recipe import Recipe

FAMILY = "devices"
BF16_FROM, FLASH_2_FROM, FLASH_3_FROM = (8, 0), (8, 0), (9, 0)
"""Compute capability: Ampere, Ampere, Hopper."""
DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
"""The oldest NVIDIA driver that runs a CUDA major version (CUDA's release notes, minor-version compatibility)."""

PACKAGE_OF_OPTIMIZER = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "stable_adamw": "optimi",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "8bit": "bitsandbytes",
    "paged": "bitsandbytes",
    "bnb": "bitsandbytes",
    "lion": "bitsandbytes",
    "ademamix": "bitsandbytes",
}
"""By a part of TrainingArguments' `optim`, the first that fits; torch and transformers bring the others."""


def check_devices(recipe: Recipe, trainings: list[Training], machine: Machine) -> Iterator[Finding]:
    """Yield a finding for each demand on the machine."""
    yield from _check_torch(machine)
    for training in trainings:
        yield from _check_processes(training, machine)
        yield from _check_precision(training, machine)
        yield from _check_attention(training, machine)
    yield from _check_workers(recipe, machine)
    yield from _check_packages(recipe, trainings, machine)


def _check_torch(machine: Machine) -> Iterator[Finding]:
    if machine.torch is None:
        yield error(FAMILY, "torch", "torch is not installed", "make setup, or pip install torch")
    elif not machine.gpus:
        yield ok(FAMILY, "torch", f"torch {machine.torch}, no GPU: {machine.cores} CPU core(s)")
    elif machine.cuda is None:
        yield error(
            FAMILY,
            "torch",
            f"this machine has {len(machine.gpus)} GPU(s), and torch {machine.torch} is built without CUDA",
            "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/…",
        )
    else:
        yield from _check_driver(machine)


def _check_driver(machine: Machine) -> Iterator[Finding]:
    needed = DRIVER_OF_CUDA.get(int(str(machine.cuda).split(".")[0]), 0)
    driver = machine.gpus[0].driver
    if int(driver.split(".")[0]) < needed:
        yield error(
            FAMILY,
            "driver",
            f"driver {driver} is too old for torch's CUDA {machine.cuda} (needs {needed} or later)",
            "update the driver, or install a torch built for an older CUDA",
        )
    else:
        gpus = ", ".join(sorted({gpu.name for gpu in machine.gpus}))
        yield ok(
            FAMILY,
            "torch",
            f"torch {machine.torch}, CUDA {machine.cuda}, driver {driver}: {len(machine.gpus)} x {gpus}",
        )


def _check_processes(training: Training, machine: Machine) -> Iterator[Finding]:
    wanted, key = training.config.processes, f"{training.key}.processes"
    if machine.gpus and wanted > len(machine.gpus):
        yield error(
            FAMILY,
            key,
            f"{wanted} processes, and this machine has {len(machine.gpus)} GPU(s)",
            f"set {key}={len(machine.gpus)}, or run it where there are {wanted}",
        )
    elif machine.gpus and wanted < len(machine.gpus):
        yield warning(FAMILY, key, f"{wanted} of {len(machine.gpus)} GPUs are used", f"set {key}={len(machine.gpus)}")
    elif not machine.gpus and wanted > machine.cores:
        yield error(
            FAMILY,
            key,
            f"{wanted} processes, and this machine has no GPU and {machine.cores} core(s)",
            f"set {key}={machine.cores}, or run it on GPUs: ladle launch RECIPE --slurm",
        )
    if training.config.distributed == "zero2" and wanted == 1:
        yield error(
            FAMILY,
            f"{training.key}.distributed",
            "zero2 splits the optimizer among processes, and there is one",
            f"set {key} to the number of GPUs, or distributed: ddp",
        )


def _check_precision(training: Training, machine: Machine) -> Iterator[Finding]:
    wants = training.config.dtype == "bfloat16" or bool(training.arguments.get("bf16"))
    old = [gpu for gpu in machine.gpus if gpu.capability < BF16_FROM]
    if wants and old:
        capability = ".".join(map(str, old[0].capability))
        yield error(
            FAMILY,
            f"{training.key}.trainer.bf16",
            f"{old[0].name} (compute capability {capability}) has no bfloat16",
            "use float16 with trainer.fp16=true, float32, or Ampere and later GPUs",
        )
    if machine.gpus:
        return
    if training.arguments.get("fp16"):
        yield error(
            FAMILY,
            f"{training.key}.trainer.fp16",
            "fp16 needs a GPU: a CPU has no mixed precision in float16",
            f"set {training.key}.trainer.bf16=true, or leave both out",
        )
    if training.config.dtype == "float16":
        yield warning(
            FAMILY, f"{training.key}.dtype", "float16 on a CPU is slow and overflows", "use bfloat16 or float32"
        )
    if wants and not machine.multiplies_bfloat16:
        yield warning(
            FAMILY,
            f"{training.key}.trainer.bf16",
            "this CPU has no instructions for bfloat16 (avx512_bf16, amx_bf16): it is slower than float32",
            f"leave bf16 out and set {training.key}.dtype=float32, if memory allows",
        )


def _check_attention(training: Training, machine: Machine) -> Iterator[Finding]:
    wanted, key = training.config.attn_implementation, f"{training.key}.attn_implementation"
    package, since = {
        "flash_attention_2": ("flash_attn", FLASH_2_FROM),
        "flash_attention_3": ("flash_attn_interface", FLASH_3_FROM),
    }.get(wanted, ("", (0, 0)))
    if not package:
        return
    if not machine.gpus or any(gpu.capability < since for gpu in machine.gpus):
        yield error(
            FAMILY, key, f"{wanted} needs a GPU of compute capability {since[0]}.{since[1]} or later", f"set {key}=sdpa"
        )
    elif package not in machine.packages:
        yield error(
            FAMILY,
            key,
            f"{wanted} needs the package {package}, which is not installed",
            f"pip install {package.replace('_interface', '').replace('_', '-')}, or set {key}=sdpa",
        )
    elif training.config.dtype == "float32" and not training.arguments.get("bf16"):
        yield error(
            FAMILY,
            key,
            f"{wanted} takes bfloat16 or float16, and the training is in float32",
            f"set {training.key}.dtype=bfloat16, or {key}=sdpa",
        )


def _check_workers(recipe: Recipe, machine: Machine) -> Iterator[Finding]:
    evaluate = recipe.evaluate
    if evaluate is None or evaluate.executor == "ray":
        return
    room = len(machine.gpus) or machine.cores
    if evaluate.workers > room:
        what = "GPU(s)" if machine.gpus else "core(s)"
        yield warning(
            FAMILY,
            "evaluate.workers",
            f"{evaluate.workers} workers share {room} {what}, each with the whole model",
            f"set evaluate.workers={room}",
        )


def _check_packages(recipe: Recipe, trainings: list[Training], machine: Machine) -> Iterator[Finding]:
    evaluate, rollout = recipe.evaluate, recipe.rollout
    mixes = [mix for _, mix in mixes_of(recipe)]
    wanted = {
        "ray": any(getattr(section, "executor", "") == "ray" for section in (*mixes, evaluate, rollout)),
        "deepspeed": any(training.config.distributed == "zero2" for training in trainings),
        "vllm": "vllm" in {evaluate.sampling.backend if evaluate else "", rollout.backend if rollout else ""},
        "liger_kernel": any(training.arguments.get("use_liger_kernel") for training in trainings),
        "peft": any(section.peft is not None for section in recipe.alignments),
        "bitsandbytes": any(section.quantization is not None for section in recipe.alignments),
    }
    fixes = {
        "peft": "pip install 'ladle[peft]', or leave kto.peft out",
        "bitsandbytes": "pip install 'ladle[quantization]', or leave kto.quantization out",
        "deepspeed": "pip install --no-build-isolation 'ladle[deepspeed]'",
        "vllm": "pip install vllm",
        "ray": "pip install 'ladle[ray]'",
        "liger_kernel": "pip install liger-kernel, or leave use_liger_kernel out",
    }
    for package, is_wanted in wanted.items():
        if is_wanted and package not in machine.packages:
            yield error(FAMILY, package, f"the recipe asks for {package}, which is not installed", fixes[package])
    for training in trainings:
        yield from _check_optimizer(training, machine)


def _check_optimizer(training: Training, machine: Machine) -> Iterator[Finding]:
    name, key = str(training.arguments.get("optim", "")), f"{training.key}.trainer.optim"
    package = next((package for part, package in PACKAGE_OF_OPTIMIZER.items() if part in name), None)
    if package is not None and package not in machine.packages:
        yield error(
            FAMILY,
            key,
            f"{name} needs the package {package}, which is not installed",
            f"pip install {package.replace('_', '-')}, or set {key}=adamw_torch_fused",
        )
