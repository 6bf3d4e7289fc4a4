"""How completions are sampled: the part of a recipe that evaluation and rollouts share. Free of torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ladle.config import Config, execution


class SamplingConfig(Config):
    """Sampling settings of one run; every field but `batch_size`, `backend` and `endpoint` decides the result."""

    temperature: float = Field(default=1.0, ge=0)
    """Divisor of the logits; 0 takes the most likely token (greedy)."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest probability mass to keep, most likely tokens first (nucleus sampling, arXiv 1904.09751); 1 keeps all."""

    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens to keep before `top_p` applies; 0 keeps all."""

    samples: int = Field(default=1, ge=1)
    """Completions for each prompt."""

    max_new_tokens: int = Field(default=1024, ge=1)
    """Tokens after which a completion is cut (finish reason `length`)."""

    seed: int = 1
    """Root of every sample's own seed: see `ladle.generation.request.sample_seed`."""

    stop: list[str] = []
    """Texts that end a completion and are cut from it, beside the model's end-of-sequence ids."""

    batch_size: int = execution(64, ge=1)
    """Completions in flight at once."""

    backend: Literal["transformers", "vllm", "http"] = execution("transformers")
    """What runs the model: transformers here, vLLM (extra `vllm`), or a server that speaks OpenAI's protocol."""

    endpoint: str | None = execution(None)
    """For `backend: http`: the server's base URL, such as `http://localhost:8000/v1`."""
