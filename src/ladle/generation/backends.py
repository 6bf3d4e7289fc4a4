"""Picks what makes the completions. Libraries are imported when a backend is chosen, so this module stays light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ladle.errors import UserError
from ladle.generation.config import SamplingConfig
from ladle.generation.request import Generator


def make_generator(
    sampling: SamplingConfig, model: Path, tokenizer: Any, worker: int = 0, dtype: str = "float32"
) -> Generator:
    """Return the generator that a run's settings name, with the model loaded.

    Args:
        sampling: the settings; `backend`, `batch_size` and `endpoint` are read here.
        model: the folder of the model.
        tokenizer: its tokenizer.
        worker: number of this process among those that generate side by side; each takes a GPU of its own, in turn.
        dtype: floating-point type to run the weights in.

    Raises:
        UserError: the backend is not installed, or lacks an endpoint.
    """
    if sampling.backend == "vllm":
        from ladle.generation.vllm_backend import VllmGenerator

        return VllmGenerator(model, tokenizer, dtype=dtype, batch_size=sampling.batch_size, worker=worker)
    if sampling.backend == "http":
        from ladle.generation.http_backend import HttpGenerator

        if sampling.endpoint is None:
            raise UserError("sampling.backend=http has no server", "set sampling.endpoint=http://HOST:PORT/v1")
        return HttpGenerator(sampling.endpoint, tokenizer, concurrency=sampling.batch_size)
    from ladle.generation.transformers_loop import TransformersGenerator

    return TransformersGenerator(model, tokenizer, dtype=dtype, batch_size=sampling.batch_size, worker=worker)
