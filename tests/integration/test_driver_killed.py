"""The driver dies by kill -9 at any moment: the run is resumed from its folder and nothing is lost or left."""

import random
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from settings.exit_codes import BAD_INPUT, FAILED, FINISHED
from tests.integration.killed_run import STEPS, KilledRun, frozen
from tests.integration.namespaces import ROOT, until

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def test_a_run_whose_driver_is_killed_is_resumed_and_its_orphans_are_ended(tmp_path: Path) -> None:
    run = KilledRun(tmp_path)
    chance = random.Random(0)
    with run.started("--resume=auto") as process:
        step = chance.randint(2, STEPS // 2)
        run.until(lambda: run.step() >= step, f"step {step}", process)
        time.sleep(0.2 * chance.random())
        process.send_signal(signal.SIGSTOP)
        run.note_session()
        again = run.run("--resume")
        assert (again.returncode, again.stdout) == (BAD_INPUT, "")
        assert again.stderr.startswith(f"error: --resume: the run is still running: pid {process.pid} (nearest")
        driver = psutil.Process(process.pid)
        workers = [each for each in driver.children(recursive=True) if "Worker" in each.name()]
        orphan = frozen(driver, "DashboardAgent")
    time.sleep(2)
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert orphan.is_running(), "Ray's agents stay for a minute, and this one for ever"
    assert run.run("--resume=auto").returncode == FINISHED
    assert not orphan.is_running()
    ended = {(row["pid"], row["name"]) for row in run.events("orphan_ended")}
    assert orphan.pid in {pid for pid, _ in ended}
    run.check()


def kill_at_random_moments(run: KilledRun, seed: int) -> list[str]:
    """Kill the run's driver five times, resuming it in between; the moments in words."""
    chance, moments = random.Random(seed), list[str]()

    def kill(moment: str, condition: object, wait_s: float) -> None:
        with run.started("--resume=auto") as process:
            run.until(condition, moment, process)
            time.sleep(wait_s)
        run.note_session()
        moments.append(f"{moment} + {wait_s:.2f} s: at step {run.step()}")

    def is_evaluated() -> bool:
        return any(row["step"] == STEPS for row in run.folder.valid_metrics())

    step = chance.randint(1, 3)
    saved = run.folder.checkpoints
    kill("the folder was just made", run.folder.path.is_dir, 0.0)
    kill("start-up", run.folder.cluster.is_file, 8 * chance.random())
    kill(f"step {step}", lambda: run.step() >= step, chance.random())
    kill("a checkpoint began", lambda: any(saved.glob("*.tmp")) or (saved / "step_4").is_dir(), 0.0)
    kill("the final evaluation", is_evaluated, chance.random())
    return moments


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_whose_driver_is_killed_five_times_in_a_row_trains_every_slot_once(
    tmp_path: Path, seed: int
) -> None:
    run = KilledRun(tmp_path)
    print("\n".join(kill_at_random_moments(run, seed)))
    assert run.run("--resume=auto").returncode == FINISHED
    run.check()


def test_a_supervised_run_goes_on_by_itself_after_kills(tmp_path: Path) -> None:
    run = KilledRun(tmp_path)
    chance = random.Random(2)
    with run.started("--retries=2") as supervisor:
        for step in (2, 5):
            run.until(lambda step=step: run.step() >= step, f"step {step}", supervisor)
            time.sleep(0.3 * chance.random())
            [driver] = psutil.Process(supervisor.pid).children()
            driver.kill()
            until(lambda driver=driver: not driver.is_running(), "the end of the driver")
        assert supervisor.wait(300) == FINISHED
    run.check()
    assert len(run.events("resumed")) == 2


@pytest.mark.isolated
def test_a_frozen_driver_that_wakes_up_after_another_host_resumed_ends_and_writes_nothing(tmp_path: Path) -> None:
    """The second driver calls its host by another name, so it cannot see that the first one is alive."""
    run = KilledRun(tmp_path)
    with run.started() as first:
        run.until(lambda: run.step() >= 3, "step 3", first)
        first.send_signal(signal.SIGSTOP)
        line = shlex.join(run.command("--resume"))
        elsewhere = ["unshare", "--uts", "bash", "-c", f"hostname elsewhere; exec {line}"]
        assert subprocess.run(elsewhere, cwd=ROOT, timeout=300).returncode == FINISHED
        before = {path: path.read_bytes() for path in run.folder.path.glob("*.json*")}
        first.send_signal(signal.SIGCONT)
        assert first.wait(120) == FAILED
    assert "was taken over by process" in (tmp_path / "log.txt").read_text()
    assert {path: path.read_bytes() for path in run.folder.path.glob("*.json*")} == before
    run.check()
