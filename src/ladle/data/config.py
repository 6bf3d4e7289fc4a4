"""Recipe sections about data: the mixture (`mix:`), preference data (`kto.data`), and datasets to get (`datasets:`)."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ladle.config import Config, IsoDate, accepts_text, execution, location
from ladle.data.formats import columns_of_template
from ladle.errors import UserError
from ladle.executors import ExecutorKind

RATIO_TOLERANCE = Fraction(1, 10**9)
# In place of a dataset: the recipe's own rollouts.
ROLLOUTS = "rollouts"
TRAIN = "train"
EVERY_SPLIT = "*"
# Prompt and completion of the preference formats made of columns, where the source names none.
_TEMPLATES = {"template": ("{question}", "{answer}"), "thumbs": ("{prompt}", "{completion}")}
_COLUMNS = {
    "unpaired": ("prompt", "completion", "label"),
    "paired": ("chosen", "rejected"),
    "messages": ("messages",),
}


class _Dataset(Config):
    """A dataset of the Hub, or of this machine."""

    dataset: str = location()
    """Hub id `org/name[:subset]`, a `save_to_disk` folder, a path or glob of jsonl, json, csv, tsv, parquet files."""
    subset: str | None = None
    """Configuration of a Hub dataset, where the id does not name it."""
    revision: str | None = location(None)
    """Branch, tag or commit of a Hub dataset."""

    def hub_subset(self) -> str | None:
        """Return the configuration of the dataset, from `subset` or from `org/name:subset`."""
        return self.subset or self.dataset.partition(":")[2] or None


class SourceConfig(_Dataset):
    """One dataset of the mixture."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """What reports call it; also keys its shuffles, so a renamed source is drawn in another order."""
    split: str = "train"
    """Split to read."""
    format: Literal["text", "messages", "template", "function", "input_ids"] = "text"
    """How a row becomes a document: by the key of the same name, which belongs to this format alone."""
    text: str | None = None
    """Column of `format: text` (unset: `text`)."""
    messages: str | None = None
    """Column of `format: messages` (unset: `messages`): turns, written out by the tokenizer's chat template."""
    input_ids: str | None = None
    """Column of `format: input_ids` (unset: `input_ids`): token ids of the same tokenizer, without padding."""
    template_date: IsoDate | None = None
    """Day that a chat template writes as today's; one that writes the date is refused without it."""
    template: str | None = None
    """Format string of `format: template` (unset: question and answer, a line each), over the row's columns."""
    function: str | None = None
    """`module:function` of `format: function`: takes a row, returns text, messages, or None to leave it out."""
    ratio: float = Field(gt=0)
    """Share of the mixture's tokens."""
    max_epochs: float = Field(4.0, gt=0)
    """More passes over this source than this are refused; up to 4 cost little (arXiv 2305.16264)."""

    @property
    def reads(self) -> str:
        """The column, template or function that makes a row a document."""
        return getattr(self, self.format) or ("{question}\n{answer}" if self.format == "template" else self.format)

    @model_validator(mode="after")
    def _keys_belong_to_the_format(self) -> SourceConfig:
        for key in ("text", "messages", "input_ids", "template", "function"):
            if getattr(self, key) is not None and key != self.format:
                problem = f"source {self.name} has format={self.format}, and `{key}` belongs to `format: {key}`"
                raise UserError(problem, f"set `format: {key}`, or leave `{key}` out")
        if self.format == "function" and self.reads.count(":") != 1:
            raise UserError(f"source {self.name} has function={self.function!r}", "write it as `module:function`")
        if self.format == "template":
            self.template_columns()  # refuses what is not one
        return self

    def template_columns(self) -> list[str]:
        """Return the columns that the template names, in order of first use."""
        return columns_of_template(self.reads, f"the template of source {self.name}")


class _OneUnit(Config):
    """A size, by one of several keys."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if sum(value is not None for _, value in self) != 1:
            problem = f"it has {' and '.join(f'{name}={value}' for name, value in self)}"
            raise UserError(problem, f"set one of {' and '.join(f'`{name}: N`' for name, _ in self)}")
        return self


class BudgetConfig(_OneUnit):
    """How much to mix: one of the two."""

    sequences: int | None = Field(None, gt=0)
    """Rows of `sequence_length` tokens; with `packing: none`, rows of one document each."""
    tokens: int | None = Field(None, gt=0)
    """Tokens in all."""


class ValidationConfig(_OneUnit):
    """How much of each source is held out and never trained on: one of the two."""

    fraction: float | None = Field(None, gt=0, lt=1)
    """Share of each source's documents (at least one)."""
    sequences: int | None = Field(None, gt=0)
    """Rows in all, divided among the sources by ratio."""


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
    """A folder or Hub id with a tokenizer; left out where the recipe has a base model, whose tokenizer it is then."""
    tokenizer_revision: str | None = location(None)
    """Branch, tag or commit of a tokenizer of the Hub."""
    packing: Literal["best_fit", "wrapped", "none"] = "best_fit"
    """best_fit cuts only what is longer than a row; wrapped cuts one stream every row; none: a document, a row."""
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
    engine: Literal["hf", "fastokens"] = execution("fastokens")
    """fastokens is used only where a sample of the data has the ids of hf (`tokenizers`), which is much slower."""
    workers: int = execution(0, ge=0)
    """Processes; 0 is one for each core."""
    executor: ExecutorKind = execution("processes")
    """Where those processes are: on this machine, or on a Ray cluster that shares its files."""
    cache: str | None = execution(None)
    """Folder where token shards are kept by content, so that other ratios or sources tokenize nothing twice."""

    @model_validator(mode="after")
    def _names_differ_and_ratios_sum_to_one(self) -> MixConfig:
        (name, count), *_ = Counter(source.name for source in self.sources).most_common()
        if count > 1:
            raise UserError(f"{count} sources are named {name}", "give each source a name of its own")
        total = sum(self._ratios)
        if not self.normalize and abs(total - 1) > RATIO_TOLERANCE:
            change = f"take {float(total - 1):g} from" if total > 1 else f"add {float(1 - total):g} to"
            fix = f"{change} a source or set mix.normalize=true"
            raise UserError(f"mix ratios sum to {float(total):g}, not 1", fix)
        return self

    @property
    def budget_tokens(self) -> int:
        """Tokens that the mixture takes."""
        return self.budget.tokens or (self.budget.sequences or 0) * self.sequence_length

    def shares(self) -> list[Fraction]:
        """Return each source's share of the tokens, as written in decimal, divided by their sum."""
        return [ratio / sum(self._ratios) for ratio in self._ratios]

    @property
    def _ratios(self) -> list[Fraction]:
        return [Fraction(repr(source.ratio)) for source in self.sources]


# Preference data.


_DOWN = ["down", "thumbs down", "thumbs_down", "thumbs-down", "👎", "-1", "0", "false", "no", "bad", "dislike"]
_MADE_OF_COLUMNS = ("template", "thumbs")
# Keys of a preference source that only some formats use.
_FORMATS_OF_KEYS = {
    **dict.fromkeys(("prompt", "completion", "conversational"), _MADE_OF_COLUMNS),
    **dict.fromkeys(("rating", "up", "down"), ("thumbs",)),
    "label": ("unpaired", "messages", "template"),
}


class PreferenceSource(Config):
    """One source of preference data."""

    answers: ClassVar[Literal["last", "all"]] = "last"
    """Which of the assistant's turns in `messages` are the completion: the last, or all of them and what is between."""

    dataset: str = location()
    """`rollouts`, a name of the recipe's `datasets:`, a Hub id, a `load_from_disk` folder, a path or glob of files."""
    split: str = "train"
    """Split to read; `*` reads every one, each into the split of its own name."""
    into: str = TRAIN
    """Split of the result that the rows go to: `train` is trained on, `kto.eval_split` evaluated on."""
    revision: str | None = location(None)
    """Branch, tag or commit of a Hub dataset."""
    format: Literal["unpaired", "paired", "messages", "template", "thumbs"] = "unpaired"
    """`unpaired`: prompt, completion (one, or a list of alternatives, one row each), label. `paired`: chosen, rejected,
    and prompt unless they open with it. `messages`: the last answer, and all before it as prompt. `template`: text made
    of the row's columns. `thumbs`: the same, labelled by a column of people's ratings."""
    prompt: str | None = None
    """Prompt of `template` (unset: `{question}`) and `thumbs` (unset: `{prompt}`), with columns in braces."""
    completion: str | None = None
    """Completion of `template` (unset: `{answer}`) and `thumbs` (unset: `{completion}`), with columns in braces."""
    rating: str = "rating"
    """Column of `format: thumbs` with the rating."""
    up: list[str] = ["up", "thumbs up", "thumbs_up", "thumbs-up", "👍", "+1", "1", "true"]
    """Ratings that mean desirable, in any case."""
    down: list[str] = _DOWN
    """Ratings that mean undesirable, in any case."""
    conversational: bool = False
    """Make the template's prompt a user turn and its completion an assistant turn, for a model that chats."""
    label: bool | None = None
    """The label of rows that have none (`unpaired`, `messages`, `template`)."""
    keep_label: bool | None = None
    """Use only the examples with this label, to see what one side alone teaches; unset uses both."""
    limit: int | None = Field(default=None, gt=0)
    """Rows to use, from the first; unset uses all."""

    @property
    def templates(self) -> tuple[str, str]:
        """How a row's columns become prompt and completion."""
        given = zip((self.prompt, self.completion), _TEMPLATES[self.format], strict=True)
        prompt, completion = (default if text is None else text for text, default in given)
        return prompt, completion

    @property
    def columns(self) -> set[str]:
        """Columns that the format needs of every row."""
        if self.format not in _MADE_OF_COLUMNS:
            return set(_COLUMNS[self.format]) - ({"label"} if self.label is not None else set())
        names = ("data.prompt", "data.completion")
        columns = {one for pair in zip(self.templates, names, strict=True) for one in columns_of_template(*pair)}
        return columns | ({self.rating} if self.format == "thumbs" else set())

    @model_validator(mode="after")
    def _every_key_is_used(self) -> PreferenceSource:
        for key, formats in _FORMATS_OF_KEYS.items():
            if self.format not in formats and getattr(self, key) != type(self).model_fields[key].default:
                problem = f"`{key}` belongs to `format: {' or '.join(formats)}`, and {self.dataset} has {self.format}"
                raise UserError(problem, f"set its format, or leave `{key}` out")
        if self.split == EVERY_SPLIT and self.into != TRAIN:
            problem = f"{self.dataset} has `split: *`, which keeps the splits' names, and `into: {self.into}`"
            raise UserError(problem, "name one split, or leave `into` out")
        if self.dataset == ROLLOUTS and (self.split, self.format, self.revision) != (TRAIN, "unpaired", None):
            problem = "rollouts have one split and one form, and the source sets `split`, `format` or `revision`"
            raise UserError(problem, "leave them out, or name a dataset")
        if both := {word.strip().lower() for word in self.up} & {word.strip().lower() for word in self.down}:
            problem = f"ratings of {self.dataset} are in both `up` and `down`: {', '.join(sorted(both))}"
            raise UserError(problem, "set both lists; one that is left out is made for thumbs, 1 and 0")
        self.columns  # noqa: B018 - refuses what is not a template
        return self


class SftSource(PreferenceSource):
    """One source of conversations and completions to imitate; those labelled False are left out."""

    answers: ClassVar[Literal["last", "all"]] = "all"

    label: bool | None = True
    """The label of rows that have none."""
    keep_label: bool | None = True
    """The label of the examples that are used."""


def _named(dataset: str) -> dict[str, str]:
    return {"dataset": dataset}


class PreferConfig(Config):
    """Labelled completions in TRL's unpaired form: prompt, completion, label."""

    data: list[Annotated[PreferenceSource, accepts_text(PreferenceSource, _named)]] = Field(min_length=1)
    """Where labelled completions come from; `rollouts` stands for the recipe's own."""
    balance: bool | Literal["per_prompt"] = False
    """Keep as many desirable as undesirable examples, by dropping some of the larger side. `per_prompt` does so within
    each prompt: what its right and wrong answers have in common then cancels out of the gradient."""
    deduplicate: bool = True
    """Keep one of the rows whose prompt, completion and label are all equal."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of a source's unusable rows (no label, empty completion, missing role) past which it is refused."""
    cut_completions: Literal["drop", "keep"] = "drop"
    """Completions cut before their end (`finish_reason: length`): left out, or trained on without an end token."""
    seed: int = 233
    """Decides which examples `balance` leaves out."""

    @property
    def takes_rollouts(self) -> bool:
        """Whether the recipe's rollouts are among the data."""
        return any(source.dataset == ROLLOUTS for source in self.data)

    @model_validator(mode="after")
    def _one_form(self) -> PreferConfig:
        texts = [one.dataset for one in self.data if one.format in _MADE_OF_COLUMNS and not one.conversational]
        turns = [one.dataset for one in self.data if one.format == "messages" or one.conversational]
        if texts and turns:
            raise mixed_forms(texts[0], turns[0])
        return self


class SftPreferConfig(PreferConfig):
    """Conversations and completions to imitate, in TRL's form of preference data, all labelled True."""

    data: list[Annotated[SftSource, accepts_text(SftSource, _named)]] = Field(min_length=1)  # type: ignore[assignment]
    """Where conversations come from: formats and keys are those of `kto.data`, with `messages` trained on in all their
    assistant turns; `rollouts` stands for the recipe's own right answers."""
    balance: Literal[False] = False
    """Of no use here: all examples are right ones."""


class SftDataConfig(Config):
    """Conversations as packed rows of tokens."""

    max_length: int = Field(1024, gt=1)
    """Tokens of a row; a longer conversation loses its end."""
    packing: bool = True
    """Fill rows with several conversations, which do not see each other; else each has a row of its own."""
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of conversations without a usable answer past which the data is refused."""
    template_date: IsoDate | None = None
    """Today's date, for chat templates that write it."""
    seed: int = 233
    """Decides the order of the rows."""


def mixed_forms(text_source: str, messages_source: str) -> UserError:
    """Return the refusal of text and messages in one dataset."""
    fix = "set `format: template, conversational: true` on the one with text, or leave one out"
    fix = "set rollout.prompt: chat, or leave one out" if text_source == ROLLOUTS else fix
    return UserError(f"{text_source} holds text and {messages_source} messages, which cannot be trained together", fix)


# Datasets.


class FetchDatasetConfig(_Dataset):
    """Bring a dataset of the Hub to disk, every split it has."""

    kind: Literal["dataset"] = "dataset"
    """A dataset of the Hub."""


class WordProblemsConfig(Config):
    """Two-step word problems with worked solutions, generated: see `ladle.data.word_problems`."""

    kind: Literal["word_problems"] = "word_problems"
    """Generated problems."""
    seed: int = 233
    """Decides the problems."""
    train: int = Field(default=20_000, gt=0)
    """Worked solutions to train on."""
    worksheets: int = Field(default=2_000, ge=0)
    """Documents of five problems with bare answers, from the training pool: what the base model sees."""
    prompts: int = Field(default=1_000, ge=0)
    """Problems for rollouts, from the training pool, with their answers."""
    validation: int = Field(default=400, ge=0)
    """Held-out problems for choices between models."""
    test: int = Field(default=500, ge=0)
    """Held-out problems to report on."""
    largest_operand: int = Field(default=12, ge=4)
    """The three operands of a problem run from 2 to this."""
    harder: int = Field(default=0, ge=0)
    """Problems of each harder kind, to test what carries over: with another wording, with larger operands, with three
    steps."""


def _kind_of(value: Any) -> str:
    return value.get("kind", "dataset") if isinstance(value, dict) else getattr(value, "kind", "dataset")


DatasetConfig = Annotated[
    Annotated[FetchDatasetConfig, Tag("dataset")] | Annotated[WordProblemsConfig, Tag("word_problems")],
    Discriminator(_kind_of),
]
"""A dataset of the Hub, unless its `kind` says otherwise."""
