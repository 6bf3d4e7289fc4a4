"""Shell completion: commands, the steps of a recipe and templates, without torch; and its installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

LADLE = "import sys; sys.argv = ['ladle', *sys.argv[1:]]; from ladle.cli import main; main()"


def complete(words: str, cwd) -> list[str]:
    code = LADLE.replace("main()", "") + "\ntry:\n  main()\nfinally:\n  assert 'torch' not in sys.modules"
    asked = {"_LADLE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, cwd=cwd, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ladle pre", ["pretrain", "prefer"]),
        ("ladle run recipes/tiny.yaml --only pre", ["pretrain", "prefer"]),
        ("ladle run recipes/tiny.yaml --only evaluate/p", ["evaluate/pretrained"]),
        ("ladle run recipes/no-such.yaml --only pre", []),
        ("ladle show recipes/tiny.yaml:sou", ["recipes/tiny.yaml:soup"]),
        ("ladle init my", ["my-benchmark"]),
    ],
)
def test_what_is_typed_is_completed(repository, words, expected):
    assert set(complete(words, repository)) == set(expected)


def test_completion_names_steps_of_a_recipe_whose_data_is_not_here(repository, tmp_path):
    text = "name: t\nmix: {sources: [{name: a, dataset: nowhere.jsonl, ratio: 1}], budget: {sequences: 8}}\n"
    (tmp_path / "r.yaml").write_text(text + "base: {model: ORG/NAME}\n")
    assert complete("ladle run r.yaml --only m", tmp_path) == ["mix"]


def test_bash_completes_once_it_is_installed(repository, tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is absent")
    ladle = tmp_path / "ladle"
    ladle.write_text(f"#!{sys.executable}\nfrom ladle.cli import main\nmain()\n")
    ladle.chmod(0o755)
    environment = os.environ | {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = 'ladle --install-completion >/dev/null; source "$HOME/.bashrc"; COMP_WORDS=(ladle init th); COMP_CWORD=2; '
    script += '_ladle_completion ladle; echo "${COMPREPLY[@]}"'
    done = subprocess.run([bash, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["thumbs-to-kto"], done.stderr
