"""What a soup is made of. Free of torch and numpy, because `ladle plan` reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ladle.config import Config, execution, location
from ladle.errors import UserError

Method = Literal["uniform", "last_n", "weighted", "linear", "ema", "wsm_linear", "wsm_cosine", "wsm_inverse_sqrt"]
Candidate = Literal[Method, "last", "greedy"]


class SoupConfig(Config):
    """Which models are averaged, with what weights, and which differences between them are accepted."""

    members: list[str] = location(["base", "checkpoints"])
    """Model folders, folders of checkpoints or globs in order, oldest first; `base` is the recipe's base,
    `checkpoints` those of its pretraining."""
    include_base: bool | None = location(None)
    """True puts `base` first where it is not named, False leaves it out, unset takes `members` as they are."""

    method: Method = "uniform"
    """How the coefficients follow from the order of the members; the formulas are in `ladle.soups.weights`."""
    last: int | None = Field(None, ge=1)
    """For last_n: how many of the newest members are averaged."""
    weights: list[float] | None = None
    """For weighted: one non-negative number per member, in order; they are divided by their sum."""
    ema_alpha: float = Field(0.2, gt=0, le=1)
    """For ema: the share of each newer member in the running average."""
    dtype: Literal["float32"] | None = None
    """The floating-point format of the result; unset keeps each tensor's own."""

    select: Literal["none", "greedy", "best"] = "none"
    """`greedy` and `best` choose the soup by loss on the validation split, instead of `method`."""
    candidates: list[Candidate] = Field(["last", "uniform", "last_n", "greedy"], min_length=1)
    """For select: best, what is tried. last_n tries `last`, or where that is unset 2, 4, 8… below the number of
    members."""

    allow_missing: bool = False
    """Average only the tensors that all members have; keep the first member's others as they are, leave out the
    rest."""
    allow_shapes: bool = False
    """Keep the first member's tensor where shapes differ."""
    allow_dtypes: bool = False
    """Average tensors of different floating-point formats, into the narrowest format that holds them all."""
    allow_unequal: bool = False
    """Keep the first member's tensor where integer, boolean or 8-bit float ones, which are never averaged, differ."""
    allow_config: bool = False
    """Use the first member's config.json where members differ in something that changes the function."""
    allow_tokenizer: bool = False
    """Use the first tokenizer where members have different ones."""
    allow_nonfinite: bool = False
    """Let NaN and infinity through as IEEE arithmetic does."""

    allow_order: bool = execution(False)
    """Take checkpoints of one folder whose numbers do not rise, where the method or the selection depends on order (a
    shell's * puts checkpoint-1000 before checkpoint-200)."""

    allow_repeats: bool = execution(False)
    """Take a folder that is named twice as two members."""

    hash_inputs: bool = True
    """Record the blake3 of every member file, taken from the bytes that are averaged; about a third of the work."""

    workers: int = execution(1, ge=0)
    """Processes that average weight files side by side; 0 means one for each core."""
    ignore_free_space: bool = execution(False)
    """Start even if the file system says that the result will not fit (it may compress or deduplicate)."""

    @model_validator(mode="after")
    def _method_has_its_numbers(self) -> SoupConfig:
        tries_weighted = self.method == "weighted" or (self.select == "best" and "weighted" in self.candidates)
        if tries_weighted and not self.weights:
            raise UserError("soup method weighted has no weights", "add `weights`, one per member: weights=[1,2,3]")
        if self.method == "last_n" and self.select == "none" and self.last is None:
            raise UserError("soup method last_n does not say how many", "add `last`, for example last=4")
        if any(weight < 0 for weight in self.weights or []) or (self.weights and not sum(self.weights)):
            raise UserError(f"soup.weights are {self.weights}", "give numbers of 0 or more, not all 0")
        return self

    @property
    def ordered_members(self) -> list[str]:
        """The members, with `include_base` applied."""
        others = [member for member in self.members if member != "base"]
        if self.include_base is None:
            return list(self.members)
        return ["base", *others] if self.include_base else others
