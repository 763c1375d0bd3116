"""The parts of scaling that need no cluster: states of workers, the commands' options, what a run answers."""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.placement import plan
from cluster.pool import Pool
from cluster.ray_actors import WorkerSpec
from cluster.worker import NEXT_STATES, Worker, WorkerState
from commands.remote import address_of, read_counts
from controller.remote_control import RemoteControl
from controller.slots import Slots
from controller.status import progress_status
from records.events import Events
from records.run_folder import RunFolder
from reporting.status_text import as_text
from settings.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]
NODES = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
CONFIG = RunConfig.model_validate(
    {
        **{"run_name": "first", "student": {"model_path": "s"}, "data": {"train_path": "d"}},
        **{"teacher": {"model_path": "t", "sources": ["a"]}},
        "teachers": {"code": {"model_path": "t", "sources": ["b"], "resources": {"num_cpus": 0.5}}},
    }
)


def pools() -> dict[str, Pool]:
    """Pools with one healthy worker each, of which there is no actor."""
    made = {
        d.role: Pool(d, lambda _: WorkerSpec(object), config=CONFIG.cluster, events=Events()) for d in plan(CONFIG)
    }
    for pool in made.values():
        worker = pool.add()
        worker.node = "a"
        pool.admit(worker)
    return made


@pytest.fixture
def control() -> RemoteControl:
    """A run that still starts, on one machine of 4 CPUs of which it uses 3.5."""
    made = RemoteControl(CONFIG, pools(), is_local=True)
    made.nodes = [node["Resources"] for node in NODES if node["Alive"]]
    return made


@pytest.mark.parametrize("state", WorkerState)
@pytest.mark.parametrize("following", WorkerState)
def test_a_worker_enters_only_states_that_may_follow(state: WorkerState, following: WorkerState) -> None:
    worker = Worker("teacher-0")
    worker.state = state
    if following in NEXT_STATES[state]:
        worker.become(following)
        assert worker.state is following
    else:
        with pytest.raises(ValueError, match=f"teacher-0 is {state} and cannot become {following}"):
            worker.become(following)
        assert worker.state is state


def test_names_are_never_used_twice_and_the_last_wanted_worker_cannot_be_drained() -> None:
    pool = pools()["teacher"]
    [first] = pool.workers
    with pytest.raises(ValueError, match="teacher-0 is the last teacher worker"):
        pool.drain(first)
    second = pool.add()
    pool.mark_dead(second, "a test")
    pool.admit(third := pool.add())
    pool.drain(third)
    pool.withdraw(third)
    assert [worker.name for worker in pool.workers] == ["teacher-0", "teacher-1", "teacher-2"]
    assert pool.add().name == "teacher-3"
    assert pool.healthy == [first]


def test_a_worker_that_must_load_again_holds_no_version_whatever_it_held_before() -> None:
    pool = pools()["rollout"]
    [worker] = pool.workers
    worker.version = 3
    pool.make_stale(worker)
    assert worker.version < 0
    assert pool.healthy == []


def test_without_a_supervisor_the_death_of_the_last_worker_is_an_error() -> None:
    pool = pools()["rollout"]
    starting = pool.add()
    pool.mark_dead(pool.workers[0], "a test")
    with pytest.raises(RuntimeError, match="no rollout worker is left; rollout-1 was given up last: a test"):
        pool.mark_dead(starting, "a test")


def test_with_a_supervisor_a_dead_worker_is_still_wanted() -> None:
    pool = pools()["rollout"]
    pool.is_supervised = True
    pool.mark_dead(pool.workers[0], "a test")
    assert pool.wanted == pool.workers
    assert pool.healthy == []


def test_counts_are_read_from_options() -> None:
    assert read_counts(["--rollout", "4", "--teacher=2", "--teacher-code", "1"]) == {
        **{"rollout": 4, "teacher": 2, "teacher-code": 1}
    }


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "scale: no pool is named"),
        (["--rollout"], "--rollout: a number of workers is missing"),
        (["--rollout", "--teacher", "2"], "--rollout: a number of workers is missing"),
        (["--rollout="], "--rollout: a number of workers is missing"),
        (["rollout", "2"], "unexpected argument 'rollout'"),
        (["--rollout", "0"], r"--rollout must be >= 1, got 0 \(nearest valid: 1\)"),
        (["--rollout=-3"], r"--rollout must be >= 1, got -3 \(nearest valid: 1\)"),
        (["--rollout", "two"], "--rollout must be a whole number >= 1, got 'two'"),
        (["--rollout", "2", "--rollout", "3"], "--rollout: given twice"),
        (["--rollout", "10001"], r"--rollout must be <= 10000, got 10001 \(nearest valid: 10000\)"),
        (
            ["--rollout", "9" * 100],
            r"--rollout must be <= 10000, got a number of 333 bits \(nearest valid: 10000\)",
        ),
        (["--rollout", "9" * 5000], "--rollout must be a whole number >= 1, got '9{100,120}$"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        read_counts(options)


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ({"rolout": 2}, "--rolout: this run has no such pool; did you mean --rollout? (pools: "),
        ({"teacher-cod": 2}, "did you mean --teacher-code? (pools: teacher, teacher-code, rollout)"),
        ({"learner": 2}, "--learner: ranks cannot be added or removed during a run"),
        ({"teacher": 0}, "--teacher must be >= 1, got 0 (nearest valid: 1)"),
        ({"rollout": 10**23}, "--rollout must be <= 10000, got 100000000000000000000000 (nearest valid: 10000)"),
        ({"rollout": 10**999}, "--rollout must be <= 10000, got a number of 3319 bits (nearest valid: 10000)"),
        ({"rollout": True}, "--rollout must be a whole number >= 1, got True"),
        ({"rollout": 2.5}, "--rollout must be a whole number >= 1, got 2.5"),
        ({"rollout": "x"}, "--rollout must be a whole number >= 1, got 'x'"),
        ({"rollout": None}, "--rollout must be a whole number >= 1, got None"),
        ({"rollout": 2}, "1 CPU missing (5 wanted, 4 there)"),
        ({"teacher-code": 3}, "(nearest valid teachers.code.num_workers here: 2)"),
    ],
)
def test_what_a_run_cannot_do_is_refused_as_a_whole(
    control: RemoteControl, counts: dict[str, int], error: str
) -> None:
    answer = control.reply({"kind": "scale", "counts": {"teacher-code": 2} | counts})
    assert answer.keys() == {"error"}
    assert error in answer["error"]
    assert control._counts == {}


def scaled_to_40(*, grows: bool, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of a run on a cluster of these nodes to the request for 40 rollout workers."""
    control = RemoteControl(CONFIG, pools(), is_local=False)
    control.nodes, control.may_grow = [node["Resources"] for node in nodes if node["Alive"]], grows
    return control.reply({"kind": "scale", "counts": {"rollout": 40}})


def test_on_a_cluster_only_what_no_node_can_hold_is_refused() -> None:
    assert "lines" in scaled_to_40(grows=False, nodes=NODES)
    small = [{"Alive": True, "Resources": {"CPU": 0.25}}]
    refused = scaled_to_40(grows=False, nodes=small)["error"]
    assert "no node can ever hold one" in refused
    assert refused.endswith("(if nodes come when they are wanted, set cluster.grows true)")


def test_on_a_cluster_that_grows_no_worker_is_refused_for_want_of_a_node() -> None:
    assert "lines" in scaled_to_40(grows=True, nodes=[{"Alive": True, "Resources": {"head": 1.0}}])


def test_what_is_wanted_during_the_start_is_carried_out_once_the_run_has_started(control: RemoteControl) -> None:
    answer = control.reply({"kind": "scale", "counts": {"teacher-code": 2}})
    assert answer == {"lines": ["teacher-code -> 2: once the run has started"]}
    calls: list[Any] = []
    scaling = argparse.Namespace(resize=lambda *call: calls.append(call))
    control.attach(argparse.Namespace(scaling=scaling))  # pyright: ignore[reportArgumentType]
    assert calls == [("teacher-code", 2, "command (during the start)")]


def test_a_run_that_is_to_stop_answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[bool] = []
    control = RemoteControl(CONFIG, pools(), is_local=True, stop=lambda: stops.append(True))
    control.reply({"kind": "status"})
    control.after_reply()
    assert stops == []
    answer = control.reply({"kind": "stop"})
    assert answer == {"lines": ["first ends before its first step, with exit code 3"]}
    assert stops == []
    control.after_reply()
    assert stops == [True]
    assert control.reply({"kind": "status"})["state"] == "stopping"


def test_the_commands_import_ray_only_once_authentication_is_on() -> None:
    program = "import sys, commands.remote; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_the_status_is_text_too(control: RemoteControl) -> None:
    rows = [
        {
            **{"staleness/mean": 0.5, "staleness/max": 1.0, "queue/rollouts": 3, "queue/teacher": 3},
            **{"time/rollout_wait_s": 1.0, "time/score_wait_s": 7.0, "time/step_s": 10.0, "time/train_s": 1.0},
            **{"time/publish_s": 0.5, "throughput/rollout": 1234.5, "throughput/learner": 99.0},
        }
    ]
    rows[0] |= {"wait/teacher_s": 2.0, "wait/learner_s": 0.5, "busy/teacher": 1.0, "backpressure/teacher_s": 3.0}
    slots = Slots(batch_size=4, max_steps=10, max_staleness=2, batches_ahead=1)
    queues = {"in_flight": 5, "to_score": {"teacher": 2}, "scored": 1}
    status = control.reply({"kind": "status"}) | progress_status(slots, rows) | {"queues": queues}
    status["balanced"] = "teacher 1 -> 2"
    assert as_text(status).splitlines() == [
        "run first: starting",
        "learner: 1 wanted",
        "  learner-0        healthy    on a",
        "teacher: 1 wanted",
        "  teacher-0        healthy    on a",
        "teacher-code: 1 wanted",
        "  teacher-code-0   healthy    on a",
        "rollout: 1 wanted",
        "  rollout-0        healthy    on a",
        "step 0 of 10; slots: window 8, 0 open (5 in flight, queued 2 for teacher, 1 scored)",
        "last step: rollout 1,234, learner 99 tok/s; staleness mean 0.50, max 1 of 2",
        "last 1 steps: the learner waited 1.00 s for rollouts, 7.00 s for scores",
        "waits for: teacher 2.00 s (held up 30 %), learner 0.50 s; busy: teacher 100 %",
        "last balanced: teacher 1 -> 2",
        "teacher-bound: 70 % of the learner's time is waiting for scores; add one teacher worker or raise "
        "teacher.max_batch_tokens (a slot waits 2 s for it, it is busy 100 % of the time, its full queue held the "
        "rollout workers up 30 % of the time)",
    ]


def test_a_folder_says_where_its_run_is_or_that_its_process_has_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert address_of(folder) is None
    here = {"address": "10.0.0.1:1", "host": socket.gethostname()}
    folder.write_cluster(here | {"pid": os.getpid()})
    assert address_of(folder) == "10.0.0.1:1"
    folder.write_cluster(here | {"pid": 2**22 + 1})  # above the largest process number
    with pytest.raises(ValueError, match="is not running: its process 4194305 has ended"):
        address_of(folder)
    folder.write_cluster(here | {"pid": 2**22 + 1, "host": "another"})
    assert address_of(folder) == "10.0.0.1:1"
