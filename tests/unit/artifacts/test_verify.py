from __future__ import annotations

import random
from pathlib import Path

import pytest

from ladle.artifacts.build import Workspace, build
from ladle.artifacts.files import list_files
from ladle.artifacts.inputs import InputFinder
from ladle.artifacts.record import verify
from ladle.artifacts.step import Step, StepOutput
from ladle.errors import UserError
from tests.unit.artifacts import toy


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The last of three artifacts, the first made from a local file as well."""
    toy.install(monkeypatch, [])
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "out.txt").write_text("from outside")
    inputs = {"file": (InputFinder(tmp_path).local((source,)),)}
    steps = [Step("s0", toy.STAGE, toy.ToyConfig(), inputs)]
    for name in ("s1", "s2"):
        steps.append(Step(name, toy.STAGE, toy.ToyConfig(text=name), {"above": (StepOutput(steps[-1]),)}))
    return [build(step, Workspace(tmp_path / "runs")) for step in steps][-1]


def everything(artifact: Path) -> list[Path]:
    root = artifact.parent.parent.parent
    return [path for path in list_files(root) if path.name != ".file-hashes.json"]


def test_untouched_artifacts_have_no_faults(artifact):
    assert list(verify(artifact)) == []


def test_every_single_bit_flip_anywhere_is_named(artifact):
    rng = random.Random(7)
    paths = everything(artifact)
    assert len([path for path in paths if path.name == "record.json"]) == 3
    for path in paths:
        original = path.read_bytes()
        positions = {0, len(original) - 1, *(rng.randrange(len(original)) for _ in range(60))}
        for position in positions:
            flipped = bytearray(original)
            flipped[position] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            assert any(str(path) in fault for fault in verify(artifact)), (path, position)
        path.write_bytes(original)
    assert list(verify(artifact)) == []


def test_a_missing_file_is_named(artifact):
    for path in everything(artifact):
        original = path.read_bytes()
        path.unlink()
        assert any(fault.startswith("missing") and str(path) in fault for fault in verify(artifact)), path
        path.write_bytes(original)


def test_an_extra_file_is_named(artifact):
    folders = {path.parent for path in everything(artifact)} - {artifact.parent.parent.parent / "source" / "sub"}
    for folder in folders:
        extra = folder / "extra.txt"
        extra.write_text("")
        assert f"extra: {extra}" in list(verify(artifact))
        extra.unlink()


def test_a_link_in_place_of_a_file_is_named(artifact):
    path = artifact / "log.txt"
    elsewhere = path.rename(artifact.parent / "elsewhere.txt")
    path.symlink_to(elsewhere)
    assert list(verify(artifact)) == [f"changed: {path}"]


def test_a_rebuilt_input_with_other_content_is_named(artifact):
    first = next(artifact.parent.parent.glob("s0/s0-*"))
    for path in list_files(first):
        path.unlink()
    assert any(str(first) in fault for fault in verify(artifact))


def test_a_folder_that_was_never_an_artifact_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no artifact"):
        list(verify(tmp_path / "nowhere"))


def test_a_folder_of_artifacts_names_the_newest_of_them(artifact):
    for folder in (artifact.parent, artifact.parent.parent, artifact.parent.parent.parent):
        with pytest.raises(UserError, match="is not an artifact, but holds") as caught:
            list(verify(folder))
        assert caught.value.fix == f"name one, such as the newest, {artifact}"
