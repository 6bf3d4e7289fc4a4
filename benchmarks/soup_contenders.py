"""Ways to average members, each a process of its own so that its memory and CPU can be measured.

python benchmarks/soup_contenders.py ladle_without_hash|load_all OUT MEMBER MEMBER…
"""

from __future__ import annotations

import sys
from pathlib import Path


def ladle_without_hash(out: Path, members: list[Path]) -> None:
    """Run the soup stage alone, with no hash of what it reads."""
    from ladle.soups.config import SoupConfig
    from ladle.stages.soup import run

    out.mkdir()
    run(SoupConfig(hash_inputs=False), {"members": members}, out)


def load_all(out: Path, members: list[Path]) -> None:
    """Do what scripts do: load every state dict, take torch's mean in float32, save."""
    import torch
    from safetensors.torch import load_file, save_file

    states = [load_file(member / "model.safetensors") for member in members]
    mean = {
        name: torch.stack([state[name] for state in states]).float().mean(0).to(tensor.dtype)
        for name, tensor in states[0].items()
    }
    out.mkdir()
    save_file(mean, out / "model.safetensors", metadata={"format": "pt"})


WAYS = {"ladle_without_hash": ladle_without_hash, "load_all": load_all}

if __name__ == "__main__":
    way, out, *members = sys.argv[1:]
    WAYS[way](Path(out), [Path(member) for member in members])
