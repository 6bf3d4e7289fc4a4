"""Ways to average members, each a process of its own so that its memory and CPU can be told apart.

python benchmarks/soup_contenders.py ladle|ladle_without_hash|load_all OUT MEMBER MEMBER…
"""

from __future__ import annotations

import sys
from pathlib import Path


def ladle(out: Path, members: list[Path], hash_inputs: bool = True) -> None:
    """Run the soup stage."""
    from ladle.soup.config import SoupConfig
    from ladle.stages.soup import run

    out.mkdir()
    run(SoupConfig(hash_inputs=hash_inputs), {"members": members}, out)


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


if __name__ == "__main__":
    way, out, *members = sys.argv[1:]
    folders = [Path(member) for member in members]
    if way == "load_all":
        load_all(Path(out), folders)
    else:
        ladle(Path(out), folders, hash_inputs=way == "ladle")
