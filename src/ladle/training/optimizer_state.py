"""Loading an optimizer's state as it was saved.

torch casts every tensor of a loaded state to its parameter's dtype. An optimizer that keeps float32 state for bfloat16
weights (Adafactor does) would go on from rounded values, and its run no longer be the uninterrupted one.
"""

from __future__ import annotations

from typing import Any

import torch


def keep_dtypes_on_loading(optimizer: torch.optim.Optimizer) -> None:
    """Let `load_state_dict` give every tensor of the state the dtype it was saved in."""
    saved: dict[int, dict[str, Any]] = {}

    def remember(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        saved.update(state_dict["state"])

    def restore(optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, entry in saved.items():
            state = optimizer.state[parameters[index]]
            for name, value in entry.items():
                if isinstance(value, torch.Tensor) and value.dtype != state[name].dtype:
                    state[name] = value.to(state[name].device)
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(remember)
    optimizer.register_load_state_dict_post_hook(restore)
