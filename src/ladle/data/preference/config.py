"""Recipe sections for preference data: the sources of labelled completions, and how they are joined."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ladle.config import Config, location

ROLLOUTS = "rollouts"
"""Stands for the recipe's own rollouts."""
TRAIN = "train"
EVERY_SPLIT = "*"
_TEMPLATES = {"template": ("{question}", "{answer}"), "thumbs": ("{prompt}", "{completion}")}
"""Prompt and completion of the formats made of columns, where the source names none."""


class PreferenceSource(Config):
    """One source of preference data."""

    dataset: str = location()
    """`rollouts`, a name of the recipe's `datasets:`, a Hub id, a `load_from_disk` folder, or a jsonl/parquet glob."""
    split: str = "train"
    """Split to read; `*` reads every one, each into the split of its own name."""
    into: str = TRAIN
    """Split of the result that the rows go to: `train` is trained on, `kto.eval_split` evaluated on."""
    revision: str | None = location(None)
    format: Literal["unpaired", "paired", "messages", "template", "thumbs"] = "unpaired"
    """`unpaired`: prompt, completion (one, or a list of alternatives, one row each), label. `paired`: chosen, rejected,
    and prompt unless they open with it. `messages`: first user turn, then answer. `template`: text made of the row's
    columns. `thumbs`: the same, labelled by a column of people's ratings."""
    prompt: str | None = None
    """Prompt of `template` (unset: `{question}`) and `thumbs` (unset: `{prompt}`), with columns in braces."""
    completion: str | None = None
    """Completion of `template` (unset: `{answer}`) and `thumbs` (unset: `{completion}`), with columns in braces."""
    rating: str = "rating"
    """Column of `format: thumbs` with the rating."""
    up: list[str] = ["up", "thumbs up", "thumbs_up", "thumbs-up", "👍", "+1", "1", "true"]
    """Ratings that mean desirable, in any case."""
    down: list[str] = [
        "down",
        "thumbs down",
        "thumbs_down",
        "thumbs-down",
        "👎",
        "-1",
        "0",
        "false",
        "no",
        "bad",
        "dislike",
    ]
    """Ratings that mean undesirable, in any case."""
    conversational: bool = False
    """Make the template's prompt a user turn and its completion an assistant turn, for a model that chats."""
    label: bool | None = None
    """The label of rows that have none (`messages`, `template`)."""
    keep_label: bool | None = None
    """Use only the examples with this label, to see what one side alone teaches; unset uses both."""
    limit: int | None = Field(default=None, gt=0)
    """Rows to use, from the first; unset uses all."""

    @property
    def templates(self) -> tuple[str, str]:
        """How a row's columns become prompt and completion."""
        prompt, completion = _TEMPLATES.get(self.format, ("", ""))
        return self.prompt or prompt, self.completion or completion

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"dataset": value} if isinstance(value, str) else value


class PreferConfig(Config):
    """Labelled completions in TRL's unpaired form: prompt, completion, label."""

    data: list[PreferenceSource] = Field(min_length=1)
    """Where labelled completions come from; `rollouts` stands for the recipe's own."""
    balance: bool | Literal["per_prompt"] = False
    """Keep as many desirable as undesirable examples, by dropping some of the larger side. `per_prompt` does so within
    each prompt, and so drops prompts whose completions are all alike: what right and wrong answers to one prompt have
    in common then cancels out of the gradient, and what is left is the difference."""
    deduplicate: bool = True
    """Keep one of the rows whose prompt, completion and label are all equal."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows (label not a boolean, empty completion, missing role) past which the data is refused."""
    seed: int = 233
