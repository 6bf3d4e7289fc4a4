"""The state of the live rows: their tokens, limits and random numbers, and how rows come and go.

Everything a step touches is a tensor over rows, so that a step costs the same Python for one row as for hundreds;
Python looks at single rows only when they finish.

Shapes: N live rows, B slots, M the longest completion, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from ladle.generation.request import Request, Sample
from ladle.generation.sampling import draw, random_words
from ladle.generation.slots import SlotCache
from ladle.generation.stopping import decode, make_sample

_STOP_TEXT_EVERY = 8
"""Steps between looks for stop texts. What is found is cut where it first appears, so this moves cost, not results."""


class Rows:
    """Live rows 0…N-1 of a slot cache.

    Args:
        cache: the keys and values of the same rows.
        tokenizer: turns finished tokens into text.
        stop_ids: ids that end a completion.
        vocab_size: number of logits.
        max_new_tokens: M, the longest completion of any request.
        device: where the model is.
    """

    def __init__(
        self, cache: SlotCache, tokenizer: Any, stop_ids: list[int], vocab_size: int, max_new_tokens: int, device: Any
    ) -> None:
        self.cache = cache
        self.tokenizer = tokenizer
        self.num_slots = cache.num_slots
        self.live = 0
        self.requests: list[Request] = []
        self.stop_ids = frozenset(stop_ids)
        self.ends_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.ends_V[[id_ for id_ in stop_ids if id_ < vocab_size]] = True

        def column(dtype: torch.dtype, *shape: int) -> torch.Tensor:
            return torch.zeros(self.num_slots, *shape, dtype=dtype, device=device)

        self.token_B = column(torch.long)
        self.position_B = column(torch.long)
        self.count_B = column(torch.long)
        self.limit_B = column(torch.long)
        self.temperature_B = column(torch.float32)
        self.top_p_B = column(torch.float32)
        self.top_k_B = column(torch.long)
        self.word_BM = column(torch.long, max_new_tokens)
        self.output_BM = column(torch.long, max_new_tokens)
        self._steps_since_look = 0
        self._longest = 0

    def admit(self, requests: list[Request]) -> None:
        """Add rows whose prompts, but for the last token, are already in the cache."""
        device = self.token_B.device
        new = slice(self.live, self.live + len(requests))
        prompts = [request.prompt_ids for request in requests]
        self.token_B[new] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
        self.position_B[new] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self.count_B[new] = 0
        self.limit_B[new] = torch.tensor([request.max_new_tokens for request in requests], device=device)
        self.temperature_B[new] = torch.tensor([request.temperature for request in requests], device=device)
        self.top_p_B[new] = torch.tensor([request.top_p for request in requests], device=device)
        self.top_k_B[new] = torch.tensor([request.top_k for request in requests], device=device)
        for row, request in enumerate(requests, start=self.live):
            if request.temperature > 0:
                stream = random_words(request.seed, request.max_new_tokens)
                self.word_BM[row, : request.max_new_tokens] = stream.to(device)
        self.requests += requests
        self.live += len(requests)
        self._note_composition()

    @property
    def tokens_N1(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """The last token of each live row."""
        return self.token_B[: self.live, None]

    @property
    def positions_N1(self) -> torch.Tensor:  # noqa: N802 - shape suffix
        """Its position."""
        return self.position_B[: self.live, None]

    def begin_step(self) -> None:
        """Tell the cache where the live rows' tokens go."""
        self._longest += 1
        self.cache.begin_step(self.position_B[: self.live], self._longest)

    def advance(self, logits_NV: torch.Tensor) -> None:
        """Draw each live row's next token and append it."""
        live = slice(0, self.live)
        count_N = self.count_B[live]
        if self._all_greedy:
            token_N = logits_NV.argmax(dim=-1)
        else:
            word_N = self.word_BM[live].gather(1, count_N[:, None])[:, 0]
            token_N = draw(
                logits_NV,
                word_N,
                self.temperature_B[live],
                self.top_p_B[live] if self._any_top_p else None,
                self.top_k_B[live] if self._any_top_k else None,
            )
        self.output_BM[live].scatter_(1, count_N[:, None], token_N[:, None])
        self.token_B[live] = token_N
        self.position_B[live] += 1
        self.count_B[live] += 1

    def retire(self) -> list[Sample]:
        """Remove the rows that ended, closing the gaps, and return their samples."""
        done = self._finished()
        samples = [self._sample(row) for row in done]
        if done:
            self._close_gaps(done)
        return samples

    def _finished(self) -> list[int]:
        live = slice(0, self.live)
        is_done_N = self.ends_V[self.token_B[live]] | (self.count_B[live] >= self.limit_B[live])
        done = set(is_done_N.nonzero()[:, 0].tolist()) if bool(is_done_N.any()) else set()
        self._steps_since_look += 1
        if self._any_stop_text and self._steps_since_look >= _STOP_TEXT_EVERY:
            self._steps_since_look = 0
            done |= self._showing_stop_text()
        return sorted(done)

    def _showing_stop_text(self) -> set[int]:
        """Return the rows whose last tokens show a stop text."""
        stops = [request.stop for request in self.requests]
        # Every token but the special ones is a byte or more, so a stop text that ended since the last look lies in this
        # many last tokens.
        width = _STOP_TEXT_EVERY + max(len(end.encode()) for stop in stops for end in stop)
        count_N = self.count_B[: self.live]
        first_N = (count_N - width).clamp_(min=0)
        columns_NW = first_N[:, None] + torch.arange(width, device=count_N.device)
        tails = self.output_BM[: self.live].gather(1, columns_NW.clamp_(max=self.output_BM.shape[1] - 1)).tolist()
        lengths = (count_N - first_N).tolist()
        found = set()
        for row, (stop, tail, length) in enumerate(zip(stops, tails, lengths, strict=True)):
            text = decode(self.tokenizer, tail[:length]) if stop else ""
            if any(end in text for end in stop):
                found.add(row)
        return found

    def _sample(self, row: int) -> Sample:
        token_ids = self.output_BM[row, : int(self.count_B[row])].tolist()
        return make_sample(self.requests[row], token_ids, self.stop_ids, self.tokenizer)

    def _close_gaps(self, done: list[int]) -> None:
        """Move the last live rows into the places of finished ones."""
        remaining = self.live - len(done)
        gone = set(done)
        source = [row for row in range(remaining, self.live) if row not in gone]
        target = [row for row in done if row < remaining]
        if source:
            self.cache.move(source, target, self._longest)
            for state in (
                *(self.token_B, self.position_B, self.count_B, self.limit_B),
                *(self.temperature_B, self.top_p_B, self.top_k_B, self.word_BM, self.output_BM),
            ):
                state[target] = state[source]
            for to, from_ in zip(target, source, strict=True):
                self.requests[to] = self.requests[from_]
        del self.requests[remaining:]
        self.live = remaining
        self._note_composition()

    def _note_composition(self) -> None:
        self._longest = int(self.position_B[: self.live].max()) if self.live else 0
        self._all_greedy = all(request.temperature == 0 for request in self.requests)
        self._any_top_p = any(request.top_p < 1 for request in self.requests)
        self._any_top_k = any(request.top_k > 0 for request in self.requests)
        self._any_stop_text = any(request.stop for request in self.requests)
