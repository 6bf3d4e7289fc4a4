"""Generation by a server that speaks OpenAI's completions protocol: vLLM's, SGLang's, llama.cpp's.

Prompts are sent as token ids, so the server's own chat template or start token cannot change them. `top_k`,
`stop_token_ids` and `return_token_ids` are vLLM's additions to the protocol. Where a server does not return token
ids, they are made from the text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx2
from tenacity import RetryCallState, retry, retry_if_exception, stop_after_attempt, wait_exponential

from ladle.errors import CheckFailed, UserError
from ladle.generation.request import Request, Sample, make_sample, stop_token_ids
from ladle.log import get_logger

logger = get_logger(__name__)

ATTEMPTS = 6
_TIMEOUT_SECONDS = 3600.0
_BUSY = (408, 429, 500, 502, 503, 504)


def _may_pass(error: BaseException) -> bool:
    """Return whether a later attempt may succeed: the server is busy, or the connection broke."""
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in _BUSY
    return isinstance(error, httpx2.TransportError)


def _describe(error: BaseException | None) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"HTTP {error.response.status_code}: {error.response.text[:300]}"
    return str(error)


def _warn(state: RetryCallState) -> None:
    problem = _describe(state.outcome.exception() if state.outcome else None)
    logger.warning("attempt %d of %d failed, trying again (%s)", state.attempt_number, ATTEMPTS, problem)


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
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.concurrency = concurrency
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
            problem = f"no server answers at {endpoint} ({_describe(error)})"
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
            futures = [pool.submit(self._complete, request) for request in requests]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> Sample:
        body = {
            "model": self.model,
            "prompt": request.prompt_ids,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % 2**63,  # servers read a signed 64-bit number
            "stop": list(request.stop),
            "stop_token_ids": self.stop_ids,
            "return_token_ids": True,
        } | ({"top_k": request.top_k} if request.top_k else {})
        try:
            choice = self._post(body)["choices"][0]
        except httpx2.HTTPError as error:
            if _may_pass(error):
                raise CheckFailed(
                    f"the server at {self.endpoint} failed {ATTEMPTS} times ({_describe(error)}); "
                    "finished samples are kept: run this again"
                ) from error
            raise UserError(
                f"the server at {self.endpoint} refuses a request ({_describe(error)})",
                "check that it serves this model with room for the prompt and sampling.max_new_tokens",
            ) from error
        token_ids = choice.get("token_ids")
        if token_ids is not None:
            return make_sample(request, token_ids, self.stop_ids, self.tokenizer)
        token_ids = self.tokenizer.encode(choice["text"], add_special_tokens=False)
        reason = "length" if choice.get("finish_reason") == "length" else "stop"
        return Sample(request.id, token_ids, choice["text"], reason)

    @retry(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.5),  # 0.5 s, 1 s, 2 s …
        before_sleep=_warn,
        reraise=True,
    )
    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.client.post("/completions", json=body).raise_for_status().json()
