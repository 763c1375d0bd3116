"""The processes that compare expressions: when they start, what ends them, and who takes over."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rewards.grading.pool import GradingPool, GradingWorker, Verdict

ROOT = Path(__file__).resolve().parents[2]
EQUAL, UNEQUAL = (r"2\sqrt{2}", r"\sqrt{8}"), (r"2\sqrt{2}", r"\sqrt{9}")
ENDLESS = ("5", r"99999999!")


@pytest.fixture
def pool() -> Iterator[GradingPool]:
    pool = GradingPool(num_workers=2)
    yield pool
    pool.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_workers_start_when_first_needed_and_end_with_the_pool() -> None:
    before = children()
    pool = GradingPool(num_workers=2)
    assert children() == before
    assert pool.compare([EQUAL, UNEQUAL] * 4) == [Verdict.RIGHT, Verdict.WRONG] * 4
    started = children() - before
    assert 1 <= len(started) <= 2
    pool.close()
    assert children() & started == set()


def test_a_worker_that_dies_idle_is_replaced_and_no_pair_pays_for_it(pool: GradingPool) -> None:
    before = children()
    assert pool.compare([EQUAL]) == [Verdict.RIGHT]
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert pool.compare([EQUAL]) == [Verdict.RIGHT]


def test_a_pair_that_ends_its_process_fails_alone(pool: GradingPool, caplog: pytest.LogCaptureFixture) -> None:
    deadline = time.monotonic() + 60
    before = children()

    def kill_the_busy_one() -> None:
        while time.monotonic() < deadline:
            for pid in children() - before:
                if psutil.Process(pid).cpu_times().user > 1.5:  # it has started, and computes
                    os.kill(pid, signal.SIGSEGV)
                    return
            time.sleep(0.02)

    with caplog.at_level(logging.WARNING):
        killer = threading.Thread(target=kill_the_busy_one)
        killer.start()
        assert pool.compare([ENDLESS]) == [Verdict.FAILED]
        killer.join(60)
    assert "status -11" in caplog.text
    assert pool.compare([EQUAL]) == [Verdict.RIGHT]


def test_memory_is_limited() -> None:
    worker = GradingWorker(cpu_limit_s=1.0)
    try:
        assert worker.compare("5", r"10^{10^{10}}") is not Verdict.RIGHT
        if worker.is_alive:
            assert psutil.Process(worker.pid).memory_info().rss < 2**31
    finally:
        worker.kill()


def test_a_worker_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys; import rewards.grading.algebra, rewards.grading.worker\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'vllm', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_and_an_event_loop_share_the_pool(pool: GradingPool) -> None:
    async def grade() -> list[list[Verdict]]:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.005)

        beating = asyncio.create_task(beat())
        found = await asyncio.gather(*(asyncio.to_thread(pool.compare, [EQUAL, UNEQUAL] * 5) for _ in range(3)))
        beating.cancel()
        assert beats > 3
        return list(found)

    assert asyncio.run(grade()) == [[Verdict.RIGHT, Verdict.WRONG] * 5] * 3


def test_a_program_without_a_main_guard_can_grade(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import rewards\nprint(rewards.grade_batch(['2^{-1}', '3'], ['0.5', 'x']))\n")
    command = [sys.executable, str(program)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[True, False]", "")


def test_workers_end_when_their_owner_is_killed() -> None:
    program = (
        "import rewards, time\n"
        "rewards.grade_batch(['2^{-1}'], ['0.5'])\n"
        "print('graded', flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "graded\n"
    workers = psutil.Process(owner.pid).children()
    assert len(workers) == 1
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert psutil.wait_procs(workers, timeout=20)[1] == []
