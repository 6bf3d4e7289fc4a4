"""Generation by a server that speaks OpenAI's completions protocol: vLLM's, SGLang's, llama.cpp's.

Prompts are sent as token ids, so the server's own chat template or start token cannot change them. `top_k`,
`stop_token_ids` and `return_token_ids` are vLLM's additions to the protocol. Where a server does not return token
ids, they are made from the text.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ladle.errors import CheckFailed, UserError
from ladle.generation.request import Request, Sample
from ladle.generation.stopping import make_sample, stop_token_ids
from ladle.log import get_logger

logger = get_logger(__name__)

_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.5
_TIMEOUT_SECONDS = 3600.0
_BUSY = (408, 429, 500, 502, 503, 504)


class HttpGenerator:
    """Makes completions with a model that a server holds.

    Args:
        endpoint: the server's base URL, such as `http://localhost:8000/v1`.
        tokenizer: the tokenizer of the model that it serves.
        concurrency: requests in flight at once; the server batches them.
        model: the served model's name; None takes the first that the server lists.

    Raises:
        UserError: the server does not answer, or serves nothing.
    """

    def __init__(self, endpoint: str, tokenizer: Any, concurrency: int = 64, model: str | None = None) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.tokenizer = tokenizer
        self.concurrency = concurrency
        self.stop_ids = stop_token_ids(None, tokenizer)
        self.model = model or self._served_model()

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield a sample for each request as it finishes.

        Raises:
            CheckFailed: the server keeps failing.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._complete, request) for request in requests]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request) -> Sample:
        choice = self._post("/completions", self._body(request))["choices"][0]
        token_ids = choice.get("token_ids")
        if token_ids is not None:
            return make_sample(request, token_ids, self.stop_ids, self.tokenizer)
        token_ids = self.tokenizer.encode(choice["text"], add_special_tokens=False)
        reason = "length" if choice.get("finish_reason") == "length" else "stop"
        return Sample(request.id, token_ids, choice["text"], reason)

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": request.prompt_ids,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % 2**63,  # servers read a signed 64-bit number
            "stop": list(request.stop),
            "stop_token_ids": self.stop_ids,
            "return_token_ids": True,
        }
        return body | ({"top_k": request.top_k} if request.top_k else {})

    def _served_model(self) -> str:
        try:
            served = self._send(urllib.request.Request(f"{self.endpoint}/models", headers=_headers()))["data"]
        except (urllib.error.URLError, TimeoutError) as error:
            raise UserError(
                f"no server answers at {self.endpoint} ({error})", "start it, or set sampling.endpoint"
            ) from error
        if not served:
            raise UserError(f"the server at {self.endpoint} serves no model", "start it with one")
        return served[0]["id"]

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered, waiting twice as long after each failure that may pass."""
        wait = _FIRST_WAIT_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                data = json.dumps(body).encode()
                return self._send(urllib.request.Request(self.endpoint + path, data=data, headers=_headers()))
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:300]
                if error.code not in _BUSY:
                    raise UserError(
                        f"the server at {self.endpoint} refuses a request (HTTP {error.code}: {said})",
                        "check that it serves this model with room for the prompt and sampling.max_new_tokens",
                    ) from error
                problem = f"HTTP {error.code}: {said}"
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                problem = str(error)
            logger.warning("attempt %d of %d at %s failed (%s)", attempt, _ATTEMPTS, self.endpoint, problem)
            time.sleep(wait)
            wait *= 2
        raise CheckFailed(
            f"the server at {self.endpoint} failed {_ATTEMPTS} times; finished samples are kept: run this again"
        )

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            return json.load(response)


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
