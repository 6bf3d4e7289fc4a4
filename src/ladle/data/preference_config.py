"""Recipe sections for preference data: the sources of labelled completions, and how they are joined."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ladle.config import Config, location


class PreferenceSource(Config):
    """One source of preference data."""

    dataset: str = location()
    """`rollouts`, a name of the recipe's `datasets:`, a Hub id, a `load_from_disk` folder, or a jsonl/parquet glob."""
    split: str = "train"
    revision: str | None = location(None)
    format: Literal["unpaired", "paired", "messages", "template"] = "unpaired"
    """`unpaired`: prompt, completion, label. `paired`: prompt, chosen, rejected. `messages`: first user turn, then
    answer. `template`: text made of the row's columns."""
    prompt: str = "{question}"
    """Prompt of `format: template`, with columns in braces."""
    completion: str = "{answer}"
    """Completion of `format: template`, with columns in braces."""
    conversational: bool = False
    """Make the template's prompt a user turn and its completion an assistant turn, for a model that chats."""
    label: bool | None = None
    """The label of rows that have none (`messages`, `template`)."""
    limit: int | None = Field(default=None, gt=0)
    """Rows to use, from the first; unset uses all."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"dataset": value} if isinstance(value, str) else value


class PreferConfig(Config):
    """Labelled completions in TRL's unpaired form: prompt, completion, label."""

    data: list[PreferenceSource] = Field(min_length=1)
    """Where labelled completions come from; `rollouts` stands for the recipe's own."""
    balance: bool = False
    """Keep as many desirable as undesirable examples, by dropping some of the larger side."""
    deduplicate: bool = True
    """Keep one of the rows whose prompt, completion and label are all equal."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable rows (label not a boolean, empty completion, missing role) past which the data is refused."""
    seed: int = 233
