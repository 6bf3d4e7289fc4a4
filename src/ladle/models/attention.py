"""Which attention a model can be given here: what is asked for if it can run, otherwise sdpa, said aloud."""

from __future__ import annotations

import torch
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from ladle.log import get_logger

logger = get_logger(__name__)

FALLBACK = "sdpa"


def usable_attention(requested: str) -> str:
    """Return `requested` where it can run on this machine, and `sdpa` with a warning that says why where it cannot."""
    why = _why_not(requested)
    if why is None:
        return requested
    logger.warning("attn_implementation: %s cannot run here (%s): using %s", requested, why, FALLBACK)
    return FALLBACK


def _why_not(requested: str) -> str | None:
    if not requested.startswith("flash_attention"):
        return None
    if not torch.cuda.is_available():
        return "it needs a GPU"
    installed = is_flash_attn_3_available() if requested == "flash_attention_3" else is_flash_attn_2_available()
    return None if installed else "the package flash-attn is not installed, or not for this GPU"
