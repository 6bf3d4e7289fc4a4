"""What a worker process may not do, tried in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = "import os, sys, time\nfrom ladle.grading.worker import CodeGuard, CpuLimitReached, cpu_limit, limit_memory\n"


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, cwd=folder, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "eval('1+1')",
        "exec('x = 1')",
        "compile('1+1', '<answer>', 'eval')",
        "os.system('touch canary')",
        "__import__('subprocess').Popen(['touch', 'canary'])",
        "open('canary', 'w')",
        "os.open('canary', os.O_CREAT | os.O_WRONLY)",
        "os.fork()",
        "__import__('socket').socket()",
        "os.remove('kept')",
        "__import__('sympy').sympify('1+1')",
        "__import__('sympy').Number('12')",
    ],
)
def test_the_guard_refuses(code: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    imports = "import subprocess, socket, sympy\n" if "import" in code else ""
    done = run(f"{imports}guard = CodeGuard(); guard.install()\n{code}\n", tmp_path)
    assert "CodeRefused" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_guard_lets_mathematics_pass(tmp_path: Path) -> None:
    done = run(
        "import fractions, mpmath\nCodeGuard().install()\nprint(mpmath.mpf(2)**0.5)\nopen(os.devnull).read()\n",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_cpu_time_is_limited(tmp_path: Path) -> None:
    code = """
started = time.process_time()
try:
    with cpu_limit(0.2):
        while True:
            pass
except CpuLimitReached:
    print(time.process_time() - started)
time.sleep(0.5)
for _ in range(10**6):
    pass
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(done.stdout) < 0.5


def test_a_step_that_no_signal_interrupts_ends_the_process(tmp_path: Path) -> None:
    done = run("with cpu_limit(0.1):\n    sum(range(10**11))\n", tmp_path)  # one C loop, which looks at no signal
    assert done.returncode == -signal.SIGVTALRM


def test_sleeping_costs_nothing(tmp_path: Path) -> None:
    done = run("with cpu_limit(0.1):\n    time.sleep(0.6)\nprint('done')\n", tmp_path)
    assert done.stdout == "done\n", done.stderr


def test_memory_is_limited(tmp_path: Path) -> None:
    code = "limit_memory(256)\ntry:\n    bytearray(2**30)\nexcept MemoryError:\n    print('refused')\n"
    assert run(code, tmp_path).stdout == "refused\n"
