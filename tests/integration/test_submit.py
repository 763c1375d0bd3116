"""`launch.py submit` on a Ray cluster with token authentication: followed, stopped, continued, retried."""

import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.job_submission import JobSubmissionClient

from cluster.mailbox import actor_name
from commands.submit.ray_jobs import find_package
from settings.exit_codes import BAD_INPUT, DRAINED, FINISHED
from tests.integration.namespaces import ROOT, NodeOptions, driver, ray_nodes, until
from tests.integration.submitted_run import BATCH, JOBS, LAUNCH, SubmittedRun, asked, ran

pytestmark = [pytest.mark.timeout(900), pytest.mark.isolated, pytest.mark.slow]
MAX_UPLOAD_BYTES = 20 * 2**20
NODES = {"head": NodeOptions(num_cpus=4)}


def test_a_submitted_run_is_one_job_whose_steps_are_followed_and_drains_when_it_is_stopped(tmp_path: Path) -> None:
    run = SubmittedRun(tmp_path)
    with ray_nodes(tmp_path, NODES, with_jobs=True), run.followed("--grace=120") as (process, log):
        run.until_steps(2, process)
        again = run.submit("--grace=120")
        assert (again.returncode, again.stdout.splitlines()[0]) == (
            FINISHED,
            "job: is running already; nothing was changed",
        )
        stopped = run.ask("--stop")
        assert stopped.returncode == FINISHED
        assert process.wait(60) == DRAINED
        last = run.check_drained()
        assert f"job: drained at step {last}, checkpoint saved" in stopped.stderr
        assert {name: job["status"] for name, job in run.jobs().items()} == {"job": "STOPPED"}
        followed = log.read_text()
    assert [int(step) for step in re.findall(r"^step (\d+)/", followed, re.MULTILINE)] == list(range(1, last + 1))


def test_a_submitted_run_survives_kills_of_its_process_and_its_job_and_trains_every_slot_once(
    tmp_path: Path,
) -> None:
    run = SubmittedRun(tmp_path)
    with ray_nodes(tmp_path, NODES, with_jobs=True) as address:
        check_refusals(run, address)
        with run.followed("--retries=1", "--grace=120") as (process, log):
            run.until_steps(3, process)
            check_upload()
            check_another_job_of_the_run_is_refused(run)

            supervisor, child = run.drivers()
            assert child.ppid() == supervisor.pid
            child.kill()
            until(lambda: "retry 1 of 1" in log.read_text(), "the retry of the entry point", process)
            run.until_steps(run.num_steps() + 3, process)
            assert {name: job["status"] for name, job in run.jobs().items()}["job"] == "RUNNING"

            [actor] = [each for each in psutil.process_iter() if "JobSupervisor" in " ".join(each.cmdline())]
            actor.kill()
            until(lambda: "submitted again, 1 of 1" in log.read_text(), "the second job", process)
            until(lambda: not supervisor.is_running(), "the end of the first job's process")
            run.until_steps(run.num_steps() + 3, process)

            stop = ran([*LAUNCH, "stop", "--run=job", f"--runs-path={tmp_path}"])
            assert stop.stdout.startswith("job finishes the step in progress, saves it and ends with exit code 3")
            assert process.wait(120) == DRAINED
        last = run.check_drained()
        assert f"job: drained at step {last}, checkpoint saved" in log.read_text()

        run.settings["max_steps"] = last + 2
        with run.followed() as (process, log):
            assert process.wait(300) == FINISHED
        assert [line.replace(",", "").split()[:2] for line in run.ask("--status").stdout.splitlines()[:-1]] == [
            *(["job", "FAILED"], ["job.2", "FAILED"], ["job.3", "SUCCEEDED"]),
        ]
    assert len(run.events("resumed")) == 3
    assert run.trained_slots() == list(range((last + 2) * BATCH))


def check_refusals(run: SubmittedRun, address: str) -> None:
    """The jobs API asks for the token, and a mistake is one line, with nothing sent."""
    token = (run.path / "token").read_text()
    until(lambda: asked("/api/jobs/", token)[0] == 200, "the jobs API")
    assert asked("/api/jobs/", None)[0] == 401
    assert asked("/api/jobs/", "0" * 64)[0] == 403
    wrong = run.submit(RAY_AUTH_TOKEN="0" * 64)
    assert (wrong.returncode, wrong.stdout) == (BAD_INPUT, "")
    assert wrong.stderr.startswith(f"error: --address: {JOBS} does not take this token")
    with driver(address, 1):
        taken: Any = ray.remote(Nothing).options(name=actor_name("job"), namespace="poweropd", num_cpus=0).remote()
        ray.get(taken.is_there.remote(), timeout=60)
        refused = run.submit()
    assert (refused.returncode, refused.stdout) == (BAD_INPUT, "")
    assert refused.stderr.startswith(
        f"error: run_name: a run named job is running at {JOBS} already, and not as a job"
    )
    absent = run.ask("--stop")
    assert (absent.returncode, absent.stderr) == (
        BAD_INPUT,
        f"error: --run: no job of a run named job at {JOBS} (runs: none)\n",
    )
    assert run.jobs() == {}


class Nothing:
    """An actor that has the name of a run's."""

    def is_there(self) -> bool:
        """It is."""
        return True


def check_upload() -> None:
    """The job has what git does not ignore, once."""
    uploads = [*Path("/tmp/ray").glob("session_latest/runtime_resources/working_dir_files/*")]
    [uploaded] = [path for path in uploads if path.is_dir()]
    files = {path.relative_to(uploaded): path.stat().st_size for path in uploaded.rglob("*") if path.is_file()}
    assert files == find_package(ROOT).sizes
    assert sum(files.values()) < MAX_UPLOAD_BYTES
    assert not {".git", ".venv", "runs"} & {path.parts[0] for path in files}


def check_another_job_of_the_run_is_refused(run: SubmittedRun) -> None:
    """`submit` refuses it with other settings; a job past it ends by itself, and the run does not notice."""
    run.settings["seed"] = 1
    other = run.submit()
    del run.settings["seed"]
    assert (other.returncode, other.stdout) == (BAD_INPUT, "")
    assert other.stderr.startswith(
        "error: run_name: job is running as job job with other settings; choose another name"
    )
    job = run.jobs()["job"]
    client = JobSubmissionClient(JOBS)
    client.submit_job(
        entrypoint=job["entrypoint"],
        submission_id="by-hand",
        runtime_env={"working_dir": job["runtime_env"]["working_dir"]},
    )
    owner = (run.folder.path / "owner.json").read_bytes()
    until(lambda: run.jobs()["by-hand"]["status"] == "FAILED", "the end of the job past `submit`")
    assert run.jobs()["by-hand"]["driver_exit_code"] == BAD_INPUT
    assert "--resume: the run is still running: pid" in client.get_job_logs("by-hand")
    assert (run.folder.path / "owner.json").read_bytes() == owner
