from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ladle.artifacts.build import Workspace, build
from ladle.artifacts.plan import State, compare_records, make_plan
from ladle.artifacts.record import RECORD_NAME, read_record
from ladle.errors import UserError
from tests.unit.artifacts import toy


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []
    toy.install(monkeypatch, log)
    return log


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "runs")


def build_all(steps, workspace):
    return [build(step, workspace) for step in steps]


def test_a_built_step_is_not_run_again(runs, workspace):
    steps = toy.chain("a", "b")
    first = build_all(steps, workspace)
    assert build_all(toy.chain("a", "b"), workspace) == first
    assert runs == ["a", "b"]
    assert (first[1] / "sub" / "out.txt").read_text() == "ab"


def test_a_changed_step_rebuilds_itself_and_what_is_downstream(runs, workspace):
    build_all(toy.chain("a", "b", "c"), workspace)
    plan = make_plan(toy.chain("a", "B", "c"), workspace)
    assert [planned.state for planned in plan] == [State.CACHED, State.CHANGED, State.CHANGED]
    assert plan[1].reasons == ("sections.s1.text: b → B",)
    assert plan[2].reasons == ("downstream of s1",)


def test_a_key_that_is_new_and_unset_is_the_reason_for_building_again(runs, workspace):
    class Wider(toy.ToyConfig):
        more: str | None = None

    build_all(toy.chain("a"), workspace)
    (planned,) = make_plan([toy.Step("s0", toy.STAGE, Wider(text="a"))], workspace)
    assert (planned.state, planned.reasons) == (State.CHANGED, ("more: added or removed",))


def test_execution_fields_leave_the_fingerprint_alone():
    step, other = toy.chain("a")[0], toy.Step("s0", toy.STAGE, toy.ToyConfig(text="a", workers=8))
    assert step.fingerprint == other.fingerprint
    assert step.fingerprint != toy.chain("b")[0].fingerprint


def test_equal_results_have_equal_digests_although_volatile_files_differ(runs, tmp_path):
    one, two = (read_record(build(toy.chain("a")[0], Workspace(tmp_path / name))) for name in ("one", "two"))
    assert one["files"]["log.txt"]["blake3"] != two["files"]["log.txt"]["blake3"]
    assert one["digest"] == two["digest"]


def test_a_failed_stage_leaves_no_artifact_and_resumes_in_its_partial_folder(runs, workspace):
    step = toy.chain("fails")[0]
    with pytest.raises(OSError, match="No space"):
        build(step, workspace)
    assert not workspace.path_of(step).exists()
    assert workspace.partial_of(step).is_dir()
    assert make_plan([step], workspace)[0].state is State.RESUME


def test_a_half_done_build_with_other_settings_is_named_with_what_differs(runs, tmp_path):
    """As when `max_steps` of a stopped training is raised."""
    for workspace in (Workspace(tmp_path), Workspace(tmp_path, (("s0", tmp_path / "out"),))):
        (step,) = toy.chain("fails")
        with pytest.raises(OSError, match="No space"):
            build(step, workspace)
        (planned,) = make_plan(toy.chain("a"), workspace)
        assert planned.state is State.CHANGED
        left = f"{workspace.partial_of(step).name} is of other settings, and stays unfinished"
        assert planned.reasons == ("sections.s0.text: fails → a", left)


def test_a_name_that_another_stage_has_now_is_said_so_without_its_keys(runs, workspace):
    """As when a gate is taken from `kto:`, whose last training then has the gate's name."""
    (step,) = toy.chain("a")
    build(step, workspace)
    (planned,) = make_plan([replace(step, stage=replace(toy.STAGE, name="other"))], workspace)
    assert planned.reasons == ("the stage: toy → other",)


def test_what_a_stage_warns_of_is_in_its_record(runs, workspace):
    assert read_record(build(toy.chain("warns")[0], workspace))["warnings"] == ["94 of 100 prompts are too long"]
    assert read_record(build(toy.chain("a")[0], workspace))["warnings"] == []


HEAVY = """
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from ladle.artifacts.build import Workspace, build
from ladle.artifacts.step import Step
from ladle.stage import Stage, StageResult
from tests.unit.artifacts.toy import ToyConfig

def run(config, inputs, out):
    held = [np.ones(2**14) for _ in range(2000)]  # 262 MB in pieces that glibc keeps
    held.append(held)  # and that only the collector frees
    between = [bytes(100) for _ in range(2000)]
    return StageResult()

before = psutil.Process().memory_info().rss
build(Step("heavy", Stage("heavy", run), ToyConfig()), Workspace(Path(sys.argv[1])))
print(psutil.Process().memory_info().rss - before)
"""


def test_the_memory_of_a_finished_stage_is_given_back(tmp_path):
    done = subprocess.run([sys.executable, "-c", HEAVY, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20e6


def test_an_occupied_out_folder_is_refused_and_left_as_it_was(runs, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not an artifact"):
        build(toy.chain("a")[0], Workspace(tmp_path, (("s0", out),)))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_out_with_other_settings_is_refused(runs, tmp_path):
    place = Workspace(tmp_path, (("s0", tmp_path / "out"),))
    build(toy.chain("a")[0], place)
    with pytest.raises(UserError, match="other settings"):
        build(toy.chain("b")[0], place)


def test_a_missing_file_makes_the_artifact_damaged_not_cached(runs, workspace):
    step = toy.chain("a")[0]
    (build(step, workspace) / "sub" / "out.txt").unlink()
    with pytest.raises(UserError, match="damaged"):
        build(step, workspace)


HOLD_LOCK = """
import sys, time
from dataclasses import replace
from pathlib import Path
from ladle.artifacts.build import _locked
with _locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_live_holder_is_named_and_a_dead_ones_lock_is_taken_over(runs, workspace):
    step = toy.chain("a")[0]
    final = workspace.path_of(step)
    final.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(final)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"being built by process {holder.pid} on "):
        build(step, workspace)
    holder.kill()
    holder.wait()
    assert (build(step, workspace) / RECORD_NAME).is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_no_artifact(runs, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let tests mount a tmpfs")
    try:
        step = toy.Step("s0", toy.STAGE, toy.ToyConfig(text="a" * 200_000))
        with pytest.raises(OSError, match="No space left"):
            build(step, Workspace(disk))
        assert not Workspace(disk).path_of(step).exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_records_say_what_went_in(runs, workspace):
    first, second = build_all(toy.chain("a", "b"), workspace)
    record = json.loads((second / RECORD_NAME).read_text())
    assert (second.parent / record["inputs"]["above"][0]["artifact"]).resolve() == first.resolve()
    assert record["counters"] == {"letters": 1}
    assert record["environment"]["packages"]["torch"]
    assert record["environment"]["cpu"]


def test_two_records_say_whether_results_are_equal_and_what_differs(runs, tmp_path):
    one, same, other = (
        build(toy.chain(text)[0], Workspace(tmp_path / name)) for name, text in (("a", "x"), ("b", "x"), ("c", "y"))
    )
    assert compare_records(one, same) == (True, [])
    is_equal, differences = compare_records(one, other)
    assert not is_equal
    assert ("config.text", "x", "y") in differences
    assert {place.partition(".")[0] for place, _, _ in differences} == {"config", "files"}


def test_the_lock_leaves_nothing_behind(runs, workspace):
    final = build(toy.chain("a")[0], workspace)
    assert [path.name for path in final.parent.iterdir()] == [final.name]
