"""A conversation with a model, whose answers can be read while they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ladle.errors import UserError
from ladle.evaluation.benchmark import Item, PromptStyle
from ladle.evaluation.evaluate import Prompt, make_prompt
from ladle.generation.complete import positions_of
from ladle.generation.request import Sample, SamplingConfig, decode, make_requests
from ladle.generation.transformers_backend import TransformersGenerator
from ladle.log import get_logger
from ladle.models.chat import prompt_ids
from ladle.models.tokenizer import load_fast_tokenizer

logger = get_logger(__name__)
ChatStyle = PromptStyle | Literal["plain"]


class Chat:
    """What was said to a model, and what it answered.

    Args:
        model: its folder.
        sampling: how to sample; each answer has random numbers of its own.
        dtype: floating-point type to run the weights in.
        style: how messages are put: as evaluations put questions, with earlier messages and answers as turns or worked
            examples; or `plain`, completed as they are, each alone. None is `chat` where the tokenizer has a template.
        system: the system turn of `chat`.

    Raises:
        UserError: a system prompt, and no chat template to write it.
    """

    def __init__(
        self, model: Path, sampling: SamplingConfig, dtype: str, style: ChatStyle | None, system: str | None
    ) -> None:
        self.tokenizer = load_fast_tokenizer(model)
        if style is None and not self.tokenizer.chat_template:
            logger.info("%s has no chat template: messages are completed as they are (see --prompt)", model)
        self.style: ChatStyle = style or ("chat" if self.tokenizer.chat_template else "plain")
        if system is not None and self.style != "chat":
            fix = "leave --system out, or use a model with a chat template"
            raise UserError(f"a {self.style} prompt has no turns, and there is a system prompt", fix)
        self.sampling, self.system, self.positions = sampling, system, positions_of(model)
        self.generator = TransformersGenerator(model, self.tokenizer, dtype, batch_size=1)
        self.turns: list[Item] = []
        self.num_answers = 0

    def answer(self, message: str, show: Callable[[str], object] = len) -> Sample:
        """Return the model's answer, and remember both; `show` gets the text, part by part, as soon as it is certain.

        Raises:
            UserError: the conversation leaves no room for an answer.
        """
        if self.style == "plain":
            prompt = Prompt(prompt_ids(self.tokenizer, message), message)
        else:
            prompt = make_prompt(self.style, message, self.tokenizer, self.turns, self.system)
        settings = self.num_answers, prompt.ids, prompt.stop, self.positions
        (request,) = make_requests(self.sampling, "chat", *settings)
        token_ids, shown = list[int](), ""

        def stream(token: int) -> None:
            nonlocal shown
            token_ids.append(token)
            new = certain(decode(self.tokenizer, token_ids), request.stop)[len(shown) :]
            shown += new
            show(new)

        self.generator.on_token = stream
        (sample,) = self.generator.generate([request])
        show(sample.text[len(shown) :])
        self.turns.append(Item(self.num_answers, message, sample.text.strip()))
        self.num_answers += 1
        return sample

    def reset(self) -> None:
        """Forget what was said."""
        self.turns = []


def certain(text: str, stop: Sequence[str] = ()) -> str:
    """Return the part of an unfinished text that stays: without half a character, a stop text, or how one begins."""
    text = text[: min((place for end in stop if (place := text.find(end)) >= 0), default=None)].rstrip("\ufffd")
    begun = max((size for end in stop for size in range(len(end)) if text.endswith(end[:size])), default=0)
    return text[: len(text) - begun]
