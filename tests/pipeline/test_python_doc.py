"""The code of docs/python.md, run as one script; and the front door itself: light to import, with all its names."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_page_runs(repository, tmp_path):
    blocks = BLOCK.findall((repository / "docs/python.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 3
    setup = f"from pathlib import Path\nroot, folder = Path({str(tmp_path / 'runs')!r}), Path({str(tmp_path)!r})\n"
    script = tmp_path / "page.py"
    script.write_text(setup + "\n".join(blocks))
    done = subprocess.run([sys.executable, str(script)], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("correct") == 2
    assert "[]" in lines[lines.index(next(line for line in lines if line.endswith("[]")))]
    assert eval(next(line for line in lines if line.startswith("['done'"))) == ["done"] * 21


@pytest.mark.slow
def test_the_code_of_the_readme_runs(repository, tmp_path):
    (block,) = BLOCK.findall((repository / "README.md").read_text(encoding="utf-8"))
    (tmp_path / "recipes").symlink_to(repository / "recipes")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tiny" / "kto").is_dir()


def test_the_front_door_is_light_and_whole(repository):
    script = (
        "import sys, ladle\n"
        "heavy = [name for name in ('torch', 'transformers', 'datasets', 'numpy', 'pydantic') if name in sys.modules]\n"
        "names = {name: getattr(ladle, name) for name in ladle.__all__}\n"
        "assert all(callable(one) for one in names.values()), names\n"
        "import ladle.pipeline, ladle.stages.soup\n"
        "assert callable(ladle.soup) and callable(ladle.push)\n"
        "later = [name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules]\n"
        "print(heavy, later)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=repository)
    assert done.stdout.strip() == "[] []", done.stderr
