"""Recipe section of KTO, and what its reference pass depends on. Free of torch."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from ladle.config import Config, IsoDate, execution
from ladle.errors import UserError
from ladle.training.config import Attention, Dtype, QuantizationConfig, TrainerArguments, TrainingConfig

LEARNING_RATE = 1e-6
"""TRL's default for KTO; transformers' own is 5e-5."""


class KtoConfig(TrainingConfig):
    """Kahneman-Tversky alignment (arXiv 2402.01306).

    Names and defaults are those of TRL's KTOConfig where the meaning is. `model` is the policy's start and the
    reference.
    """

    objective: ClassVar[Literal["cross_entropy", "kto"]] = "kto"

    seed: int = 233
    """Key of the pairs, and of which examples are left out to balance labels."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`apo_zero_unpaired` (arXiv 2408.06266) is KTO with z0 = 0."""
    beta: float = Field(0.1, gt=0)
    """KTO's β: how strongly the policy is held to the reference."""
    desirable_weight: float | Literal["auto"] = 1.0
    """KTO's λ_D; `auto` sets λ_D n_D = λ_U n_U, the lower end of the paper's range [1, 4/3]."""
    undesirable_weight: float = Field(1.0, gt=0)
    """KTO's λ_U."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of a second term of the loss: the mean over a step's desirable completions of -log π(y|x) / |y|
    (LLaMA-Factory's `pref_ftx`; RPO's term, arXiv 2404.19733). It keeps right answers likely where wrong ones push."""
    kl_scope: Literal["step", "microbatch", "none"] = "step"
    """Examples whose mismatched pairs make one z0: those of an optimizer step, or of a microbatch over all processes
    (TRL's way); `none` sets z0 = 0."""
    kl_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the examples whose mismatched pair enters z0: fewer cost less and make z0 noisier."""
    pairs: Literal["per_epoch", "fixed"] = "per_epoch"
    """Mismatched pairs: new ones each epoch, or the same in all (TRL's way, and one reference pass less an epoch)."""
    max_length: int = Field(1024, gt=0)
    """Prompt and completion together, in tokens; a longer completion loses its end, a prompt is never cut."""
    max_tokens_per_microbatch: int = Field(8192, gt=0)
    """Tokens of one forward pass, padding included; an optimizer step's sequences are repacked to it. It bounds memory,
    as the microbatch does elsewhere, and changes results by rounding alone."""
    allow_single_label: bool = False
    """Train although every label is the same: z0 then grows with the reward and the policy drifts as unbounded SFT."""
    max_bad_fraction: float = execution(0.01, ge=0, le=1)
    """Share of the examples that the chat template may refuse; they are counted and left out."""
    template_date: IsoDate | None = execution(None)
    """Day (`2026-01-31`) that a chat template writes which writes today's. The reference pass, which tokenizes, depends
    on it."""
    eval_split: str = "test"
    """Split of the preference data that `trainer.eval_strategy` evaluates on."""
    keep_models: int | None = Field(0, ge=0)
    """Checkpoints past `trainer.save_total_limit` to keep as models alone; unset keeps all."""

    @field_validator("trainer")
    @classmethod
    def _learn_slowly(cls, trainer: TrainerArguments) -> TrainerArguments:
        return TrainerArguments(**{"learning_rate": LEARNING_RATE} | trainer.values())

    @model_validator(mode="before")
    @classmethod
    def _explain_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, (problem, fix) in ABSENT.items():
            if values.get(name):
                raise UserError(f"kto.{name}: {problem}", fix)
        return {key: value for key, value in values.items() if key not in ABSENT}

    @model_validator(mode="after")
    def _know_the_epochs(self) -> Self:
        if self.max_steps is not None and self.trainer.get("dataloader_drop_last"):
            problem = "kto.trainer sets max_steps and dataloader_drop_last, and the reference pass counts whole epochs"
            fix = "leave dataloader_drop_last out: a last step that is not full counts its rows evenly"
            raise UserError(problem, fix)
        return self

    @property
    def estimates_kl(self) -> bool:
        """Whether the loss has a z0."""
        return self.loss_type == "kto" and self.kl_scope != "none"


_MOVING_REFERENCE = (
    "the reference's log-probabilities are computed once, so it cannot move during training",
    "leave it out, and align in several rounds (kto.rounds) or stages (a list under kto:)",
)
ABSENT = {
    "sync_ref_model": _MOVING_REFERENCE,
    "ref_model_mixup_alpha": _MOVING_REFERENCE,
    "ref_model_sync_steps": _MOVING_REFERENCE,
    "ref_model": ("the reference is always the policy's start", "name the start as kto.model"),
    "precompute_ref_log_probs": ("this is what Ladle always does", "leave it out"),
}
"""TRL's options that Ladle has no counterpart of, and what to do instead; false or null is as good as leaving out."""


COPIED = (
    "max_length", "pairs", "max_tokens_per_microbatch", "attn_implementation", "quantization", "allow_single_label",
    "processes", "max_bad_fraction", "template_date",
)  # fmt: skip
"""What a reference pass takes of its training as it is."""


class KtoReferenceConfig(Config):
    """The reference pass of a KTO training: what of its settings the examples and log-probabilities depend on."""

    max_length: int
    pairs: Literal["per_epoch", "fixed"]
    seed: int
    """Key of the pairs."""
    kl_fraction: float
    """0 for a loss without z0."""
    epochs: int | None
    """Epochs begun; None where `max_steps` says it."""
    max_steps: int | None
    rows_per_step: int | None
    """Examples of an optimizer step, where `max_steps` counts them."""
    order_seed: int | None
    """Key of the order of rows, where fewer than all are needed."""
    eval_split: str | None
    max_tokens_per_microbatch: int
    dtype: Dtype
    autocast: Literal["float16"] | None
    """Mixed precision of the forward passes, as in training."""
    attn_implementation: Attention
    quantization: QuantizationConfig | None
    template_date: IsoDate | None = None
    max_bad_fraction: float = execution(0.01)
    allow_single_label: bool = execution(False)
    """Changes nothing here; without it labels that are all the same are refused before the pass, not after it."""
    processes: int = execution(1, ge=1)

    @classmethod
    def of(cls, config: KtoConfig, seed: int) -> KtoReferenceConfig:
        """Return the reference pass that a training needs."""
        trainer = config.trainer
        needs_order = config.max_steps is not None or config.kl_fraction < 1
        order_seed = trainer.get("seed") if trainer.get("data_seed") is None else trainer.get("data_seed")
        return cls(
            **{name: getattr(config, name) for name in COPIED},
            seed=seed,
            kl_fraction=config.kl_fraction if config.estimates_kl else 0.0,
            epochs=None if config.max_steps else math.ceil(config.num_epochs),
            max_steps=config.max_steps,
            rows_per_step=config.rows_per_step if config.max_steps else None,
            order_seed=order_seed if needs_order else None,
            eval_split=config.eval_split if trainer.get("eval_strategy") != "no" else None,
            dtype="bfloat16" if config.keeps_masters else config.weights_dtype,
            autocast="float16" if config.autocast == "float16" else None,
        )
