"""The progress of a training, as its log and bar show it: steps, tokens a second, model FLOPs utilisation, memory.

MFU = (FLOPs a token × tokens a second of one device) / the device's dense peak in the dtype that is multiplied in, as
in PaLM (arXiv 2204.02311, appendix B): 6 FLOPs for each active matrix weight, 12 · layers · heads · head size ·
sequence length / 2 for causal attention, nothing for recomputation. Of routed experts those that a token visits count.
A device whose peak is not listed (every CPU) gets no MFU.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

PEAK_BF16_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "B200": 2250e12, "A100": 312e12,
    "A800": 312e12, "H800": 989e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "RTX 4090": 165e12,
}  # fmt: skip
"""Dense bfloat16 and float16 peaks from NVIDIA's data sheets, by a part of the device's name; the first that fits."""
SHOWN = {"loss": "loss {:.3f}", "tokens_per_second": "{:,.0f} tokens/s", "mfu": "{:.1%} MFU", "memory_gb": "{:.1f} GB"}
"""What the bar says of a log line."""
SHOWN_LOSSES = 40
"""The last losses that were logged, for a curve a character each."""
SPEED_FIGURES = frozenset(["tokens_per_second", "mfu", "memory_gb"])
"""Names of the figures, which no two runs share."""


def flops_per_token(model: PreTrainedModel, sequence_length: int) -> float:
    """Return the FLOPs that one token of training costs, forward and backward.

    Args:
        model: its matrices are counted as they are used: an embedding not at all (unless tied to the head), a routed
            expert by the share of tokens that visit it.
        sequence_length: tokens that a row holds; a packed row's documents are shorter, so this is an upper bound.
    """
    config = model.config
    visited = getattr(config, "num_experts_per_tok", None) or 1
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    weights = float(head.weight.numel()) if head is not None else 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or parameter is embedding or (head is not None and parameter is head.weight):
            continue
        is_expert = ".experts." in name and parameter.dim() == 3
        weights += parameter.numel() * (visited / parameter.shape[0] if is_expert else 1.0)
    head_dims = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    head_dims = head_dims or config.hidden_size // config.num_attention_heads
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * head_dims * sequence_length
    return 6 * weights + attention


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a device's dense peak in a dtype, None where it is not listed."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in name), None)


class Speedometer:
    """Counts this process's tokens between two readings.

    Args:
        model: the model in training.
        device: what it runs on.
        dtype: what its matrices are multiplied in.
        num_processes: processes that train beside each other.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device, dtype: torch.dtype, num_processes: int) -> None:
        self.model, self.device, self.num_processes = model, device, num_processes
        self.peak = peak_flops(device, dtype)
        self.num_tokens = self.longest = 0
        self.started = time.perf_counter()
        self.step_times: list[float] = []
        """When training began and when each optimizer step ended."""

    def note_time(self) -> None:
        """Take the time: training begins, or an optimizer step ends."""
        self.step_times.append(time.perf_counter())

    def seconds_per_step(self) -> float | None:
        """Return the mean seconds from one step's end to the next, evaluation and saving included; None without steps.

        The first step, which warms up, counts only if it is the only one.
        """
        times = self.step_times[1:] if len(self.step_times) > 2 else self.step_times
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None

    def start(self) -> None:
        """Begin an interval."""
        self.num_tokens = 0
        self.started = time.perf_counter()

    def count(self, inputs: Mapping[str, Any]) -> None:
        """Count the tokens of a microbatch, padding included."""
        tokens_BT = inputs["input_ids"]
        self.num_tokens += tokens_BT.numel()
        self.longest = max(self.longest, tokens_BT.shape[-1])

    def read(self) -> dict[str, float]:
        """Return the figures of the interval that ends here, of all processes together, and begin another.

        A training that counts no tokens gets its memory alone.
        """
        rate = self.num_tokens / (time.perf_counter() - self.started)
        if self.device.type == "cuda":
            memory_bytes = torch.cuda.max_memory_allocated(self.device)
        else:
            memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        figures = {"memory_gb": memory_bytes / 1e9}
        if self.num_tokens:
            figures["tokens_per_second"] = rate * self.num_processes
        if self.num_tokens and self.peak is not None:
            figures["mfu"] = rate * flops_per_token(self.model, self.longest) / self.peak
        self.start()
        return figures
