"""A Ray cluster of two nodes, one of them removed in the middle: mixing, rollouts and evaluation end with the bytes of
this machine alone. Tasks have a GPU each (declared to Ray, not there), and their own errors are not tried again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SCRIPT = """
import json, sys, threading, time
from pathlib import Path

from ray.cluster_utils import Cluster

from tests.distributed.ray_jobs import JOBS, digests, finished

name, folder = sys.argv[1], Path(sys.argv[2])
run, out = JOBS[name](folder, "ray")
out.mkdir()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
import ray
ray.init(address=cluster.address, log_to_driver=False)
used = len([node for node in ray.nodes() if node["Alive"]])
seen = {}

def lose_a_node():
    while finished(name, out) < 2:
        time.sleep(0.02)
    seen["finished"] = finished(name, out)
    cluster.remove_node(second, allow_graceful=False)
    seen["finished_after"] = finished(name, out)

watcher = threading.Thread(target=lose_a_node, daemon=True)
watcher.start()
run()
watcher.join(60)
for _ in range(300):  # the cluster notices after some seconds
    left = len([node for node in ray.nodes() if node["Alive"]])
    if left < used:
        break
    time.sleep(0.2)
seen |= {"nodes": [used, left], "digests": digests(out)}
(folder / "seen.json").write_text(json.dumps(seen))  # Ray writes to standard output as it likes
ray.shutdown()
cluster.shutdown()
"""


def environment(folder: Path) -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 by default, which on a busy machine gets nothing done
    }


@pytest.mark.parametrize("name", ["mix", "rollout", "evaluate"])
def test_a_lost_node_changes_nothing(name, tmp_path):
    from tests.distributed.ray_jobs import JOBS, digests, items

    run, out = JOBS[name](tmp_path, "processes")
    out.mkdir()
    run()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(Path("/tmp")),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["nodes"] == [2, 1], "the node was not lost while the work ran"
    assert 2 <= seen["finished"] <= seen["finished_after"] < items(name), "the work was over before the node was lost"
    assert seen["digests"] == digests(out)
    assert seen["digests"], "nothing was compared"


TASKS = """
import json, os, sys, time
from pathlib import Path

from ray.cluster_utils import Cluster

from ladle.errors import UserError
from ladle.executors import make_executor

def work(item):
    if item == "wrong":
        (Path(sys.argv[1]) / f"tried-{os.getpid()}-{time.monotonic_ns()}").touch()
        raise UserError("the prompt is too long", "shorten it")
    time.sleep(0.2)
    return item, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2, "include_dashboard": False})
os.environ["RAY_ADDRESS"] = cluster.address
rows = list(make_executor("ray", 8, on_gpus=True).map(work, range(12)))
for _ in range(60):  # a needless cancel as the last task ended made Ray end this process within 40 rounds
    assert list(make_executor("ray", 8).map(str, range(3))) == ["0", "1", "2"]
try:
    list(make_executor("ray", 8, on_gpus=True).map(work, [1, "wrong", 2]))
except UserError as error:
    message = str(error)
(Path(sys.argv[1]) / "seen.json").write_text(json.dumps({"rows": rows, "message": message}))
import ray
ray.shutdown()
cluster.shutdown()
"""


def test_a_task_has_a_gpu_of_its_own_and_its_error_is_handed_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TASKS.replace("sys.argv[1]", repr(str(tmp_path)))],
        capture_output=True,
        text=True,
        env=environment(Path("/tmp")),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert [item for item, *_ in seen["rows"]] == list(range(12))
    assert {gpu for _, _, gpu, _ in seen["rows"]} == {"0", "1"}, "each has one of the two GPUs"
    assert {threads for *_, threads in seen["rows"]} == {"1"}
    assert seen["message"] == "the prompt is too long: shorten it"
    assert len(list(tmp_path.glob("tried-*"))) == 1


def test_without_a_cluster_the_way_out_is_named(tmp_path):
    code = (
        "from ladle.executors import make_executor\nfrom ladle.errors import UserError\n"
        "try:\n    list(make_executor('ray', 1).map(len, ['a']))\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(tmp_path))
    assert "there is no Ray cluster here: start one with `ray start --head`" in done.stdout, done.stderr[-2000:]
