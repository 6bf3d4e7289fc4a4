"""Generation by a server that speaks OpenAI's completions protocol: vLLM's, SGLang's, llama.cpp's.

Prompts are sent as token ids, so the server's own chat template or start token cannot change them. `top_k`,
`stop_token_ids` and `return_token_ids` are vLLM's additions to the protocol. Where a server does not return token
ids, its samples have none: the text's own are not always those that were sampled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
from tenacity import before_sleep_log, retry, retry_if_exception, stop_after_attempt, wait_exponential

from ladle.errors import CheckFailed, UserError
from ladle.generation.request import Request, Sample, make_sample, openai_settings, stop_token_ids
from ladle.log import get_logger

logger = get_logger(__name__)

ATTEMPTS = 6
_TIMEOUT_SECONDS = 3600.0
_BUSY = (408, 429, 500, 502, 503, 504)


def _may_pass(error: BaseException) -> bool:
    """Whether the server cannot answer now, and may later."""
    is_busy = isinstance(error, httpx2.HTTPStatusError) and error.response.status_code in _BUSY
    return is_busy or isinstance(error, httpx2.TransportError)


class HttpGenerator:
    """Makes completions with a model that a server holds.

    Args:
        endpoint: the server's base URL, such as `http://localhost:8000/v1`.
        tokenizer: the tokenizer of the model that it serves.
        concurrency: requests in flight at once; the server batches them.

    Raises:
        UserError: the server does not answer, or serves nothing.
    """

    def __init__(self, endpoint: str, tokenizer: Any, concurrency: int = 64) -> None:
        self.endpoint, self.tokenizer, self.concurrency = endpoint, tokenizer, concurrency
        self.report = lambda count: None
        self._returns_ids = True
        self.stop_ids = stop_token_ids(None, tokenizer)
        key = os.environ.get("OPENAI_API_KEY")
        self.client = httpx2.Client(
            base_url=endpoint,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_SECONDS,
            limits=httpx2.Limits(max_connections=concurrency),
        )
        try:
            served = self.client.get("/models").raise_for_status().json()["data"]
        except httpx2.HTTPError as error:
            problem = f"no server answers at {endpoint} ({error})"
            raise UserError(problem, "start it, or set sampling.endpoint") from error
        if not served:
            raise UserError(f"the server at {endpoint} serves no model", "start it with one")
        self.model = served[0]["id"]

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield a sample for each request as it finishes.

        Raises:
            CheckFailed: the server keeps failing.
            UserError: it refuses a request.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            limits = {pool.submit(self._complete, request): request.max_new_tokens for request in requests}
            try:
                for future in as_completed(limits):
                    self.report(limits[future])
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> Sample:
        body = {"model": self.model, "prompt": request.prompt_ids, "return_token_ids": True}
        try:
            choice = self._post(body | openai_settings(request, self.stop_ids))["choices"][0]
        except httpx2.HTTPError as error:
            response = getattr(error, "response", None)  # of an HTTPStatusError
            said = f"HTTP {response.status_code}: {response.text[:300]}" if response is not None else error
            if _may_pass(error):
                problem = f"the server at {self.endpoint} failed {ATTEMPTS} times ({said})"
                raise CheckFailed(f"{problem}; finished samples are kept: run this again") from error
            fix = "check that it serves this model with room for the prompt and sampling.max_new_tokens"
            raise UserError(f"the server at {self.endpoint} refuses a request ({said})", fix) from error
        token_ids = choice.get("token_ids")
        if token_ids is not None:
            return make_sample(request, token_ids, self.stop_ids, self.tokenizer)
        if self._returns_ids:
            self._returns_ids = False
            logger.warning("the server at %s returns no token ids: its samples are kept as text alone", self.endpoint)
        # Only where there are stop texts it is not known whether one of them or an end token was the end.
        reason = "length" if choice.get("finish_reason") == "length" else "stop" if request.stop else "eos"
        return Sample(request.id, None, choice["text"], reason)

    @retry(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.5),  # 0.5 s, 1 s, 2 s …
        before_sleep=before_sleep_log(logger, logging.WARNING),
        reraise=True,
    )
    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.client.post("/completions", json=body).raise_for_status().json()
