"""Jobs of submitted runs without Ray: their names, what their end means, and what follows from it."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from commands.submit import command
from commands.submit.command import exit_code_of, follow, submit_again
from commands.submit.ray_client import RUN, exit_code, is_lost, jobs_of, next_job_id, state_of
from commands.submit.ray_job_log import LogFollower
from commands.submit.request import JobState, Request, UnreachableError
from settings.exit_codes import BAD_INPUT, DRAINED, FAILED, FINISHED

REQUEST = Request("run", [], None, "", [], "/shared/runs", 0, {}, 600.0)


def job(submission_id: str | None = "run", *, status: str = "RUNNING", **told: Any) -> JobDetails:
    """What Ray tells about a job."""
    told = {"metadata": {RUN: "run"}, "start_time": 0, "entrypoint": "", "type": JobType.SUBMISSION} | told
    return JobDetails(submission_id=submission_id, status=JobStatus(status), **told)


def test_jobs_of_a_run_are_told_by_their_metadata_and_ordered_by_time() -> None:
    jobs = [
        job("run.2", start_time=20),
        job("run", start_time=10),
        job("run.3", metadata={RUN: "run.3"}),
        job("other", metadata=None),
        job(None),
    ]
    assert [each.submission_id for each in jobs_of("run", jobs)] == ["run", "run.2"]


def test_a_job_is_called_as_its_run_and_later_ones_are_numbered_past_names_of_others() -> None:
    assert next_job_id("run", 0, []) == "run"
    assert next_job_id("run", 1, ["run"]) == "run.2"
    assert next_job_id("run", 1, ["run", "run.2"]) == "run.3"
    assert next_job_id("run", 0, ["run"]) == "run.2"


DRAINED_LOG = "step 7\ndrained at step 7; continue with\n--resume\n"


@pytest.mark.parametrize(
    ("ended", "log", "code", "lost"),
    [
        (job(status="PENDING"), "", None, False),
        (job(status="RUNNING"), DRAINED_LOG, None, False),
        (job(status="SUCCEEDED", driver_exit_code=0), "", FINISHED, False),
        (job(status="FAILED", driver_exit_code=1), "", FAILED, False),
        (job(status="FAILED", driver_exit_code=3), DRAINED_LOG, DRAINED, False),
        (job(status="FAILED", driver_exit_code=-9), "", FAILED, True),
        (job(status="FAILED", driver_exit_code=137), "", FAILED, True),
        (job(status="FAILED", error_type="JOB_SUPERVISOR_ACTOR_DIED"), "", FAILED, True),
        (job(status="FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE"), "", FAILED, False),
        (job(status="STOPPED"), DRAINED_LOG, DRAINED, False),
        (job(status="STOPPED"), "interrupted; continue with --resume\n", DRAINED, False),
        (job(status="STOPPED"), "finished 9 steps in 4 s; student in x\n", FINISHED, False),
        (job(status="STOPPED"), "step 7\n", FAILED, False),
    ],
)
def test_the_end_of_a_job_is_the_exit_code_of_its_run_and_only_a_lost_one_is_submitted_again(
    ended: JobDetails, log: str, code: int | None, lost: bool
) -> None:
    assert (exit_code(ended, log), is_lost(ended)) == (code, lost)


def test_the_state_says_where_a_run_drained_or_why_it_failed() -> None:
    log = DRAINED_LOG + DRAINED_LOG.replace("7", "12")
    drained = state_of(job(status="STOPPED"), log)
    assert drained.message == "drained at step 12, checkpoint saved; submit the run again to continue"
    killed = state_of(job(status="STOPPED"), "")
    assert killed.message.startswith("was killed before it had drained")
    tail = (
        "failed with exit code 2, last available logs (truncated to 20,000 chars):\nstep 1\nerror: data: no file\n"
    )
    refused = state_of(job(status="FAILED", driver_exit_code=2, message=tail))
    assert refused.message == "exit code 2: error: data: no file"
    lost = state_of(job(status="FAILED", message="The actor died.\n  on node 4\n"))
    assert lost.message == "The actor died.; on node 4"


def test_a_place_that_tells_no_exit_code_is_read_by_its_status() -> None:
    codes = {
        status: exit_code_of(JobState("run", status, "", None)) for status in ("SUCCEEDED", "SUSPENDED", "FAILED")
    }
    assert codes == {"SUCCEEDED": FINISHED, "SUSPENDED": DRAINED, "FAILED": FAILED}


# -- following ----------------------------------------------------------------------------------------------


LOST = JobState("run", "FAILED", "its node died", FAILED, is_lost=True)


class Scripted:
    """A place whose jobs end as it is told, one after the other."""

    def __init__(self, *ends: JobState | BaseException, away: int = 0) -> None:
        self._ends, self._away = iter(ends), away
        self.num_submitted = 0

    def submit(self, request: Request) -> JobState:
        """Fails while the place is away."""
        if self._away:
            self._away -= 1
            raise UnreachableError("no answer")
        self.num_submitted += 1
        return JobState(f"run.{self.num_submitted + 1}", "PENDING", "submitted", None)

    def follow(self, run_name: str) -> JobState:
        """The next end."""
        end = next(self._ends)
        if isinstance(end, BaseException):
            raise end
        return end


def scripted(*ends: JobState | BaseException, away: int = 0) -> Any:
    """It is only asked for these two."""
    return Scripted(*ends, away=away)


@pytest.mark.parametrize("code", [FINISHED, FAILED, BAD_INPUT, DRAINED])
def test_a_run_that_ended_by_itself_is_not_submitted_again(code: int) -> None:
    place = scripted(JobState("run", "FAILED", "", code))
    assert follow(place, "run", REQUEST, retries=5) == code
    assert place.num_submitted == 0


def test_a_lost_job_is_submitted_again_as_often_as_it_may(capsys: pytest.CaptureFixture[str]) -> None:
    place = scripted(LOST, LOST, JobState("run.3", "SUCCEEDED", "finished", FINISHED))
    assert follow(place, "run", REQUEST, retries=2) == FINISHED
    assert place.num_submitted == 2
    assert "run was lost (its node died); submitted again, 2 of 2" in capsys.readouterr().err
    assert follow(scripted(LOST, LOST), "run", REQUEST, retries=1) == FAILED


def test_a_lost_job_of_a_run_that_is_only_followed_is_not_submitted_again() -> None:
    assert follow(scripted(LOST), "run", None, retries=0) == FAILED


def test_a_lost_head_is_waited_for_and_not_for_ever() -> None:
    assert submit_again(scripted(away=3), REQUEST, pause_s=0.001).job == "run.2"
    with pytest.raises(UnreachableError):
        submit_again(scripted(away=10**6), REQUEST, pause_s=0.001, give_up_s=0.05)


def test_ctrl_c_ends_following_and_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(scripted(KeyboardInterrupt()), "run", REQUEST, retries=1) == command.INTERRUPTED
    assert "the run continues" in capsys.readouterr().err


def test_a_cluster_that_stays_away_ends_following_with_a_word_that_the_run_may_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert follow(scripted(UnreachableError("no answer for 600 s")), "run", None, retries=0) == FAILED
    assert "the run may be running: launch.py submit --status --run run" in capsys.readouterr().err


class Tail:
    """A log that each connection brings from its start; connections break where they are told to."""

    def __init__(self, log: str, *breaks: int) -> None:
        self._log, self._breaks = log, [*breaks, len(log)]
        self.num_connections = 0

    async def __call__(self) -> AsyncIterator[str]:
        """Parts of three letters, up to where this connection breaks."""
        end = self._breaks[self.num_connections]
        self.num_connections += 1
        for start in range(0, end, 3):
            yield self._log[start : min(start + 3, end)]
        if end < len(self._log):
            raise RuntimeError("connection closed")


def test_a_log_is_printed_once_over_connections_that_break() -> None:
    log, out, said = "abcdefghijklmnop\n", io.StringIO(), list[str]()
    tail = Tail(log, 7, 5, 12, 0)
    follower = LogFollower(
        tail,
        lambda: tail.num_connections,
        has_ended=lambda connections: connections == 5,
        out=out,
        say=said.append,
        first_pause_s=0.001,
    )
    assert asyncio.run(follower.run()) == 5
    assert (out.getvalue(), tail.num_connections) == (log, 5)
    assert said[0] == "connection closed; the log is asked for again in 0.001 s"
    assert len(said) == 4


def test_a_job_that_ended_is_over_though_its_log_cannot_be_read() -> None:
    tail, said = Tail("abcdef", 3), list[str]()
    follower = LogFollower(tail, lambda: "ended", has_ended=bool, out=io.StringIO(), say=said.append)
    assert asyncio.run(follower.run()) == "ended"
    assert (tail.num_connections, said) == (1, [])


def test_a_cluster_that_does_not_answer_is_given_up() -> None:
    def look() -> Any:
        raise UnreachableError("nobody there")

    async def tail() -> AsyncIterator[str]:
        yield "abc"

    follower = LogFollower(
        tail,
        look,
        has_ended=bool,
        out=io.StringIO(),
        say=lambda _: None,
        first_pause_s=0.001,
        give_up_s=0.02,
    )
    with pytest.raises(UnreachableError, match=r"no answer for 0\.02 s"):
        asyncio.run(follower.run())
