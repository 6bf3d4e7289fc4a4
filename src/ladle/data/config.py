"""The `mix:` section of a recipe: which documents, how much of each, and how they become rows."""

from __future__ import annotations

import string
from fractions import Fraction
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ladle.config import Config, execution, location
from ladle.errors import UserError
from ladle.executors import ExecutorKind

RATIO_TOLERANCE = Fraction(1, 10**9)


class SourceConfig(Config):
    """One dataset of the mixture."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """What reports call it; also keys its shuffles, so a renamed source is drawn in another order."""
    dataset: str = location()
    """Hub id `org/name[:subset]`, a `save_to_disk` folder, or a path or glob of .jsonl[.gz|.zst] or .parquet files."""
    subset: str | None = None
    """Configuration of a Hub dataset, where the id does not name it."""
    revision: str | None = location(None)
    """Branch, tag or commit of a Hub dataset."""
    split: str = "train"
    format: Literal["text", "messages", "template", "function", "input_ids"] = "text"
    """How a row becomes a document."""
    text: str = "text"
    """Column of `format: text`."""
    messages: str = "messages"
    """Column of `format: messages`: role/content pairs, written out by the tokenizer's chat template."""
    input_ids: str = "input_ids"
    """Column of `format: input_ids`: token ids of the same tokenizer."""
    template: str = "{question}\n{answer}"
    """Format string of `format: template`, over the row's columns."""
    function: str | None = None
    """`module:function` of `format: function`: takes a row as a dict, returns text, a list of messages, or None to
    leave it out."""
    ratio: float = Field(gt=0)
    """Share of the mixture's tokens."""
    max_epochs: float = Field(4.0, gt=0)
    """More passes over this source than this are refused; up to 4 cost little (arXiv 2305.16264)."""

    @model_validator(mode="after")
    def _format_is_complete(self) -> SourceConfig:
        if (self.format == "function") != (self.function is not None):
            raise UserError(
                f"source {self.name} has format={self.format} and function={self.function}",
                "set both `format: function` and `function: module:name`, or neither",
            )
        if self.function is not None and self.function.count(":") != 1:
            raise UserError(f"source {self.name} has function={self.function!r}", "write it as `module:function`")
        if self.format == "template" and not self.template_columns():
            raise UserError(
                f"the template of source {self.name} names no column: {self.template!r}", "write one as {question}"
            )
        return self

    def template_columns(self) -> list[str]:
        """Return the columns that the template names, in order of first use."""
        fields = (field for _, field, _, _ in string.Formatter().parse(self.template) if field)
        return list(dict.fromkeys(field.partition(".")[0].partition("[")[0] for field in fields))

    def hub_subset(self) -> str | None:
        """Return the configuration of the dataset, from `subset` or from `org/name:subset`."""
        return self.subset or self.dataset.partition(":")[2] or None


class BudgetConfig(Config):
    """How much to mix: one of the two."""

    sequences: int | None = Field(None, gt=0)
    """Rows of `sequence_length` tokens; with `packing: none`, rows of one document each."""
    tokens: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_unit(self) -> BudgetConfig:
        if (self.sequences is None) == (self.tokens is None):
            raise UserError(
                f"budget has sequences={self.sequences} and tokens={self.tokens}",
                "set one of `sequences: N` and `tokens: N`",
            )
        return self


class ValidationConfig(Config):
    """How much of each source is held out and never trained on: one of the two."""

    fraction: float | None = Field(None, gt=0, lt=1)
    """Share of each source's documents (at least one)."""
    sequences: int | None = Field(None, gt=0)
    """Rows in all, divided among the sources by ratio."""

    @model_validator(mode="after")
    def _one_unit(self) -> ValidationConfig:
        if (self.fraction is None) == (self.sequences is None):
            raise UserError(
                f"validation has fraction={self.fraction} and sequences={self.sequences}",
                "set one of `fraction: 0.001` and `sequences: N`",
            )
        return self


class ContaminationConfig(Config):
    """Search the documents for the text of benchmark items."""

    benchmarks: tuple[str, ...] = Field(min_length=1)
    """Names of benchmarks, as in `evaluate.benchmarks`."""
    data: str = location()
    """Folder with `<benchmark>/test.jsonl`."""
    ngram_words: int = Field(13, ge=4)
    """Words in a row that must be shared; 13 as in GPT-3's report (arXiv 2005.14165, appendix C)."""
    drop: bool = True
    """Leave the documents out; false only reports them."""


class MixConfig(Config):
    """A mixture of tokenized documents, packed into rows."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    budget: BudgetConfig
    sequence_length: int = Field(4096, ge=2)
    """Tokens of a row."""
    tokenizer: str | None = location(None)
    """A folder or Hub id with a tokenizer (tokenizer.json, `*.tiktoken`, sentencepiece); left out where
    the recipe has a base model, whose tokenizer it is then."""
    tokenizer_revision: str | None = location(None)
    packing: Literal["best_fit", "wrapped", "none"] = "best_fit"
    """best_fit cuts only documents longer than a row; wrapped cuts one stream every row; none gives each document a
    row."""
    seed: int = 233
    """Decides which documents are drawn, held out, and in which order the rows stand."""
    normalize: bool = False
    """Divide the ratios by their sum instead of refusing a sum other than 1."""
    validation: ValidationConfig | None = None
    contamination: ContaminationConfig | None = None
    add_bos: bool = False
    """Put the tokenizer's bos token before each document. An eos token always ends it."""
    max_bad_fraction: float = Field(0.001, ge=0, le=1)
    """Rows that may be unreadable (no text, bad JSON, bad UTF-8), of each source; they are counted and left out."""
    shard_size_bytes: int = Field(64 * 2**20, ge=2**10)
    """Input that becomes one token shard. Shards are cut by the data, so the worker count cannot show."""
    packing_window: int = Field(65_536, ge=1)
    """Documents that are packed together."""
    engine: Literal["hf", "fastokens"] = execution("hf")
    """fastokens (`pip install ladle[fast]`) is used only where it agrees with hf on a sample of the very data."""
    workers: int = execution(0, ge=0)
    """Processes; 0 is one for each core."""
    executor: ExecutorKind = execution("processes")
    """Where those processes are: on this machine, or on a Ray cluster that shares its files."""
    cache: str | None = execution(None)
    """Folder where token shards are kept by content, so that other ratios or sources tokenize nothing twice."""

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [source.name for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{names.count(name)} sources are named {name}", "give each source a name of its own")
        return sources

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> MixConfig:
        missing = 1 - sum(_exact(source.ratio) for source in self.sources)
        if self.normalize or abs(missing) <= RATIO_TOLERANCE:
            return self
        change = f"add {float(missing):g} to" if missing > 0 else f"take {float(-missing):g} from"
        raise UserError(
            f"mix ratios sum to {float(1 - missing):g}, not 1", f"{change} a source or set mix.normalize=true"
        )

    def shares(self) -> list[Fraction]:
        """Return each source's share of the tokens, as written in decimal, divided by their sum."""
        ratios = [_exact(source.ratio) for source in self.sources]
        return [ratio / sum(ratios) for ratio in ratios]


def _exact(ratio: float) -> Fraction:
    return Fraction(repr(ratio))
