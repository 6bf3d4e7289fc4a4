"""Recipe sections of training, free of torch; KTO's is in `ladle.kto.config`.

`trainer:` takes transformers.TrainingArguments by its own names. They are read from the installed transformers' source
(a syntax tree, about 60 ms, no torch), so they are those of the installed version.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from ladle.config import Config, execution, location
from ladle.errors import UserError
from ladle.models.config import Dtype

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Distributed = Literal["ddp", "fsdp", "zero2"]

INSTEAD = {
    "warmup_ratio": "use warmup_steps (a value below 1 is a share of all steps: warmup_steps: 0.1)",
    "evaluation_strategy": "use eval_strategy",
    "no_cuda": "use use_cpu",
    "per_gpu_train_batch_size": "use per_device_train_batch_size",
    "per_gpu_eval_batch_size": "use per_device_eval_batch_size",
    "torch_dtype": "use dtype, beside `trainer:` and not in it",
    "adam_eps": "use adam_epsilon",
    "lr": "use learning_rate",
    "overwrite_output_dir": "leave it out: a step resumes or starts in a folder of its own",
    "output_dir": "leave it out: the step's folder is the output; --out or --root place it",
    "resume_from_checkpoint": "leave it out: a stopped step resumes by itself (a finished one: `extends`)",
    "model_name_or_path": "use model, beside `trainer:` and not in it",
    "attn_implementation": "set it beside `trainer:` and not in it",
    "trust_remote_code": "leave it out: no code of a repository is run",
    "dataset_name": "use data, beside `trainer:` and not in it",
    "use_liger_loss": "leave it out: the loss is one pass over the logits anyway",
    "load_best_model_at_end": "leave it out: `soup: {select: …}` chooses among checkpoints by their held-out loss",
    "deepspeed": "leave it out, and set distributed: zero2",
    "fsdp": "leave it out, and set distributed: fsdp",
    "label_smoothing_factor": "leave it out: it is not part of the one-pass loss",
    "auto_find_batch_size": "leave it out: it would depend on free memory; `ladle doctor` says what a size takes",
    "ignore_data_skip": "leave it out: it would train on other rows after a restart",
    "train_sampling_strategy": "leave it out: rows are taken in an order that a restart finds by arithmetic",
    "enable_jit_checkpoint": "leave it out: SIGTERM and SIGUSR1 save at the next step",
    "push_to_hub": "leave it out, and use `ladle push` at the end, when checkpoints are verified",
    "average_tokens_across_devices": "leave it out: a step's loss is always the mean over its tokens on all devices",
    "lr_scheduler_type": "name cosine, linear, constant or another one that follows from the step",
}
"""What to do instead of setting an argument of older transformers versions, or one that Ladle does not support."""
EXECUTION_ARGUMENTS = frozenset((
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "ddp_backend", "ddp_timeout", "disable_tqdm", "hub_model_id", "hub_private_repo",
    "hub_strategy", "hub_token", "log_level", "log_level_replica", "log_on_each_node", "logging_first_step",
    "logging_steps", "logging_strategy", "project", "push_to_hub", "report_to", "run_name", "trackio_space_id",
    "use_cpu",
))  # fmt: skip
"""Arguments that change how a run goes or what it says, never its weights: not part of a step's identity."""
HONOURED = EXECUTION_ARGUMENTS - {"push_to_hub"} | frozenset((
    "per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args",
    "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "gradient_accumulation_steps",
    "max_grad_norm", "bf16", "fp16", "tf32", "activation_checkpointing", "activation_checkpointing_kwargs",
    "gradient_checkpointing", "gradient_checkpointing_kwargs", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "use_liger_kernel", "liger_kernel_config", "eval_strategy", "eval_steps", "eval_delay",
    "eval_on_start", "save_strategy", "save_steps", "save_total_limit", "save_only_model", "full_determinism", "seed",
    "data_seed", "dataloader_drop_last", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers",
    "ddp_static_graph", "do_train", "do_eval",
))  # fmt: skip
"""Arguments that the training loop honours, or that change nothing; any other one is refused unless at its default."""
DEFAULT_TRACKER = "tensorboard"
AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
OFF_SCHEDULE = ("reduce_lr_on_plateau", "greedy")
COMPUTED_DEFAULTS = {"optim": "adamw_torch_fused"}


class Argument(NamedTuple):
    """A field of transformers.TrainingArguments: its type as written there, and its default."""

    annotation: str
    default: Any


class TrainerArguments(Config):
    """Arguments of transformers.TrainingArguments, as they are; an unknown or renamed one is refused."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "properties": {name: {"description": "As in TrainingArguments."} for name in sorted(HONOURED)}
        },
    )

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            known = training_arguments().get(str(name))
            if known is None and name not in INSTEAD:
                close = difflib.get_close_matches(str(name), training_arguments(), n=1, cutoff=0.5)
                fix = f"did you mean {close[0]!r}?" if close else "see TrainingArguments"
                raise UserError(f"unknown argument trainer.{name}", fix)
            is_honoured = value not in OFF_SCHEDULE if name == "lr_scheduler_type" else name in HONOURED
            if known is None or not (is_honoured or value in (None, known.default)):
                fix = INSTEAD.get(name, "leave it out: the training loop does nothing with it")
                raise UserError(f"trainer.{name} is not an argument that Ladle takes", fix)
            _check_type(name, value, known.annotation)
        return values

    def values(self) -> dict[str, Any]:
        """Return the arguments that the recipe sets."""
        return dict(self.model_extra or {})

    def get(self, name: str) -> Any:
        """Return an argument as the recipe sets it, else transformers' default."""
        return self.values().get(name, training_arguments()[name].default)

    def identity(self) -> dict[str, Any]:
        """Return the arguments that decide the weights."""
        return {name: value for name, value in sorted(self.values().items()) if name not in EXECUTION_ARGUMENTS}


def _check_type(name: str, value: Any, annotation: str) -> None:
    """Refuse a value of another kind than a number or a boolean, where the argument is one."""
    kinds = set(annotation.split(" | "))
    wanted = next((kind for kind in ("float", "int", "bool") if kind in kinds), None)
    if wanted is None or kinds - {"float", "int", "bool", "None"} or (value is None and "None" in kinds):
        return
    taken = {"float": (int, float), "int": (int,), "bool": (bool,)}[wanted]
    if not isinstance(value, taken) or (isinstance(value, bool) and wanted != "bool"):
        kind = {"float": "a number", "int": "a whole number", "bool": "true or false"}[wanted]
        seen = "text, " if isinstance(value, str) else ""
        fix = "write the number without quotes" if wanted != "bool" and seen else f"write {kind}"
        raise UserError(f"trainer.{name}={value!r} is {seen}not {kind}", fix)
    least = 1 if name in AT_LEAST_ONE else 0
    is_default = value == training_arguments()[name].default
    if isinstance(value, (int, float)) and value < least and not is_default and wanted != "bool":
        raise UserError(f"trainer.{name}={value!r} is too small", f"write {least} or more")


@functools.cache
def training_arguments() -> dict[str, Argument]:
    """Return the fields of the installed transformers.TrainingArguments.

    Raises:
        UserError: transformers is not installed.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise UserError("transformers is not installed", "pip install ladle")
    tree = ast.parse((Path(spec.origin).parent / "training_args.py").read_text(encoding="utf-8"))
    fields = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    arguments = {}
    for node in fields.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            name, default = node.target.id, node.value.keywords[0].value
            is_literal = isinstance(default, (ast.Constant, ast.UnaryOp))
            value = ast.literal_eval(default) if is_literal else COMPUTED_DEFAULTS.get(name)
            arguments[name] = Argument(ast.unparse(node.annotation), value)
    return arguments


HEADS = ("lm_head", "embed_out", "output_layer")


class LoraConfig(Config):
    """A low-rank adapter (arXiv 2106.09685), by peft's names."""

    r: int = Field(16, gt=0)
    """Rank of the adapter's matrices."""
    lora_alpha: float = Field(16, gt=0)
    """The adapter's output is scaled by `lora_alpha / r`."""
    lora_dropout: Literal[0] = 0
    """Only 0: KTO compares two models, not two dropout masks, and a resumed run has the same passes."""
    target_modules: str | list[str] = "all-linear"
    """Modules with an adapter, by name or pattern; the output head is none of them."""

    @field_validator("target_modules")
    @classmethod
    def _spare_the_head(cls, modules: str | list[str]) -> str | list[str]:
        named = [modules] if isinstance(modules, str) else modules
        if head := [name for name in named if name.rpartition(".")[2] in HEADS]:
            problem = f"peft.target_modules names {head[0]}, the output head, which is computed together with the loss"
            raise UserError(problem, "leave it out (all-linear does)")
        return modules


class QuantizationConfig(Config):
    """Weights held in 4 or 8 bits under an adapter (QLoRA, arXiv 2305.14314), by transformers' BitsAndBytesConfig."""

    load_in_4bit: bool = False
    """Hold weights in 4 bits."""
    load_in_8bit: bool = False
    """Hold weights in 8 bits (LLM.int8(), arXiv 2208.07339)."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Format of 4 bits: NormalFloat, or floating point."""
    bnb_4bit_use_double_quant: bool = False
    """Quantize the scales of 4-bit blocks too: about 0.4 bits a weight less."""
    bnb_4bit_compute_dtype: Dtype = "float32"
    """Dtype that 4-bit weights are expanded to for products."""

    @model_validator(mode="after")
    def _one_width(self) -> QuantizationConfig:
        if self.load_in_4bit == self.load_in_8bit:
            seen = "both" if self.load_in_4bit else "neither"
            raise UserError(f"quantization sets {seen} of load_in_4bit and load_in_8bit", "set one of them to true")
        return self


class TrainingConfig(Config):
    """What both kinds of training have."""

    objective: ClassVar[Literal["cross_entropy", "kto"]] = "cross_entropy"
    """What the loss is made of, for estimates."""

    model: str | None = location(None)
    """The model to start from: a name of the recipe's (`base`, `pretrained`, `soup`, `kto`), or a path; unset is the
    latest one."""
    dtype: Dtype = "float32"
    """Dtype of the weights as saved. `bfloat16`, like `trainer.bf16`, runs the passes in bfloat16; the optimizer has
    float32 weights all the same."""
    pure_bf16: bool = False
    """With `dtype: bfloat16`, keep no float32 weights: less memory, and most updates of a usual learning rate are lost
    to rounding."""
    attn_implementation: Attention = "sdpa"
    """How packed rows are attended to, each document by itself. `sdpa` is torch's kernels: on a GPU, in bfloat16 or
    float16, its flash attention for sequences of variable length. What would join documents is refused."""
    distributed: Distributed = "ddp"
    """How processes share the work. `ddp`: each holds all. `fsdp`: FSDP2, weights, gradients and optimizer split among
    them. `zero2`: DeepSpeed ZeRO stage 2 without offload, gradients and optimizer split."""
    offload_to_cpu: bool = False
    """With `distributed: fsdp`, keep shards and optimizer in the CPU's memory, where GPUs have too little."""
    processes: int = execution(1, ge=1)
    """Processes on this machine, one GPU each where there are GPUs; started with torchrun."""
    allow_other_world: bool = execution(False)
    """Resume a checkpoint of another number of processes: each step takes the same rows, with more or less
    accumulation, and the result is not bit-equal to that of an uninterrupted run, which the record says."""
    save_in_background: bool = execution(False)
    """Flush, hash and read back each checkpoint while training goes on; a run killed meanwhile resumes from the one
    before."""
    selective_checkpointing: bool = execution(False)
    """With `trainer.activation_checkpointing`, keep what matrix products give and compute only the rest again: between
    the two in time and in memory."""
    keep_models: int | None = Field(None, ge=0)
    """Checkpoints past `trainer.save_total_limit` to keep as models alone, for the soup; unset keeps all."""
    nan_policy: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does before the optimizer uses it: end the run with exit code 1, or
    skip the step, `nan_max_skips` times."""
    nan_max_skips: int = Field(10, ge=1)
    """Steps that `nan_policy: skip` may skip before the run ends."""
    peft: LoraConfig | None = None
    """Train an adapter; the result in `model/` has it merged, `adapter/` holds it alone."""
    quantization: QuantizationConfig | None = None
    """Hold the frozen weights in 4 or 8 bits; needs `peft` and the extra `quantization`."""
    trainer: TrainerArguments = TrainerArguments()
    """transformers.TrainingArguments, by its own names."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.pure_bf16 and self.dtype != "bfloat16":
            fix = "set dtype: bfloat16, or leave pure_bf16 out"
            raise UserError(f"pure_bf16 is set and dtype is {self.dtype}", fix)
        if self.offload_to_cpu and self.distributed != "fsdp":
            problem = f"offload_to_cpu does nothing with distributed: {self.distributed}"
            raise UserError(problem, "set distributed: fsdp")
        if self.selective_checkpointing and not self.checkpoints_activations:
            problem = "selective_checkpointing does nothing unless activations are checkpointed"
            raise UserError(problem, "set trainer.activation_checkpointing: true")
        if self.quantization is not None and self.peft is None:
            raise UserError("quantization freezes the weights, and there is no adapter to train", "add `peft: {}`")
        if self.quantization is not None and self.distributed == "zero2":
            raise UserError("quantized weights cannot be held by DeepSpeed", "set distributed: ddp")
        return self

    @property
    def checkpoints_activations(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return any(self.trainer.values().get(f"{what}_checkpointing") for what in ("activation", "gradient"))

    @property
    def runs_in_bf16(self) -> bool:
        """Whether passes run in bfloat16."""
        return self.dtype == "bfloat16" or bool(self.trainer.get("bf16"))

    @property
    def keeps_masters(self) -> bool:
        """Whether passes run on a bfloat16 copy of float32 weights. An adapter is float32 itself, on frozen weights;
        DeepSpeed keeps its own."""
        return self.runs_in_bf16 and not (self.pure_bf16 or self.peft is not None or self.distributed == "zero2")

    @property
    def autocast(self) -> Literal["bfloat16", "float16"] | None:
        """Dtype that passes run in where the weights are loaded in float32."""
        if self.keeps_masters:
            return "bfloat16"
        return "float16" if self.trainer.get("fp16") and self.distributed != "zero2" else None

    @property
    def weights_dtype(self) -> Dtype:
        """Dtype to load the weights in."""
        if self.keeps_masters:
            return "float32"
        if self.runs_in_bf16:
            return "bfloat16"
        return "float16" if self.distributed == "zero2" and self.trainer.get("fp16") else self.dtype

    @property
    def max_skipped_steps(self) -> int:
        """How many steps may be skipped; 0 stops at the first."""
        return self.nan_max_skips if self.nan_policy == "skip" else 0

    @property
    def batch_size(self) -> int:
        """Rows of a microbatch."""
        return int(self.trainer.get("per_device_train_batch_size"))

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, over all processes of one machine."""
        return self.batch_size * int(self.trainer.get("gradient_accumulation_steps")) * self.processes

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps that the recipe sets; None where the epochs decide."""
        steps = int(self.trainer.get("max_steps"))
        return steps if steps > 0 else None

    @property
    def num_epochs(self) -> float:
        """Passes over the data, where the recipe sets no `max_steps`."""
        return float(self.trainer.get("num_train_epochs"))

    def num_steps(self, rows: int | None) -> int | None:
        """Return the optimizer steps that training on `rows` rows takes; None where they depend on unknown rows."""
        if self.max_steps is not None or rows is None:
            return self.max_steps
        return math.ceil(self.num_epochs * math.ceil(rows / self.rows_per_step))


class NextTokenConfig(TrainingConfig):
    """Training on the next token of packed rows: what pretraining and SFT have."""

    extends: str | None = location(None)
    """A finished training, kept with `keep_training_state`, to take further (`trainer.max_steps` counts from its own
    beginning): its weights, optimizer and place in the data, in place of `model`."""
    keep_training_state: bool = execution(False)
    """Keep the last checkpoint whole in `training_state/`, for a training that extends this one."""
    router_bias_update_rate: float = Field(1e-3, ge=0)
    """How far a router's bias moves towards balance in a step (MoE only; DeepSeek-V3's and OpenSeek's); 0 leaves it."""
    sequence_aux_loss: float = Field(0.0, ge=0)
    """Weight of the sequence-wise balance loss beside it (MoE only; 1e-4 in DeepSeek-V3 and OpenSeek); 0 is none."""

    @model_validator(mode="after")
    def _check_extension(self) -> Self:
        if self.extends is not None and self.model is not None:
            raise UserError("extends and model both name the start of a training", "leave model out")
        if self.extends is not None and self.peft is not None:
            raise UserError("an adapter's training cannot be extended: its model has the adapter merged", "use model")
        saves_none = self.trainer.get("save_only_model") or self.trainer.get("save_strategy") == "no"
        if self.keep_training_state and saves_none:
            raise UserError("keep_training_state is set, and no checkpoint has any", "set trainer.save_strategy: steps")
        return self


class PretrainConfig(NextTokenConfig):
    """Continued pretraining on a mixture."""

    data: str | None = location(None)
    """The mixture: `mix`, or the path of one; unset is the recipe's mixture."""


class SftConfig(NextTokenConfig):
    """Supervised fine-tuning on the answers of conversations."""
