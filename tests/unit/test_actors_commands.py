"""Functions for the engine thread: run in order, between steps, and every future is resolved."""

import threading
import time
from concurrent.futures import Future
from contextlib import suppress

import pytest

from actors.vllm.commands import Commands

pytestmark = pytest.mark.timeout(20)


def test_functions_run_in_order_in_the_thread_that_runs_them() -> None:
    commands, seen = Commands(), list[int]()
    futures = [commands.call(lambda i=i: seen.append(i) or i) for i in range(3)]
    assert seen == []
    commands.run(wait=False)
    assert seen == [0, 1, 2]
    assert [future.result(timeout=0) for future in futures] == [0, 1, 2]


def test_waiting_ends_with_the_first_function() -> None:
    commands = Commands()
    thread = threading.Thread(target=lambda: commands.run(wait=True))
    thread.start()
    assert commands.call(lambda: 3).result(timeout=5) == 3
    thread.join(timeout=5)
    assert not thread.is_alive()


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1)])
def test_an_error_reaches_its_caller_and_the_next_function_still_runs(error: BaseException) -> None:
    commands = Commands()

    def fail() -> None:
        raise error

    failed, fine = commands.call(fail), commands.call(lambda: 1)
    commands.run(wait=False)
    assert failed.exception(timeout=0) is error
    assert fine.result(timeout=0) == 1


def test_a_function_whose_caller_has_gone_is_not_run() -> None:
    commands, seen = Commands(), list[int]()
    gone, fine = commands.call(lambda: seen.append(0)), commands.call(lambda: seen.append(1))
    assert gone.cancel()
    commands.run(wait=True)
    commands.run(wait=False)
    assert seen == [1]
    assert fine.done()


def test_after_the_end_everything_queued_fails_and_nothing_is_taken() -> None:
    commands, seen = Commands(), list[int]()
    gone, queued = (commands.call(lambda: seen.append(0)) for _ in range(2))
    gone.cancel()
    commands.close(MemoryError("full"))
    with pytest.raises(RuntimeError, match="the engine has ended: full"):
        queued.result(timeout=0)
    with pytest.raises(RuntimeError, match="the engine has ended: full"):
        commands.call(lambda: None)
    assert seen == []


def test_no_future_is_left_open_by_an_end_in_the_midst_of_calls() -> None:
    for _ in range(20):
        commands, futures = Commands(), list[Future[None]]()
        started = threading.Event()

        def call_until_the_end(commands: Commands, futures: list[Future[None]], started: threading.Event) -> None:
            with suppress(RuntimeError):
                while True:
                    futures.append(commands.call(lambda: None))
                    started.set()
                    time.sleep(0)

        thread = threading.Thread(target=call_until_the_end, args=(commands, futures, started))
        thread.start()
        started.wait(timeout=5)
        commands.close(RuntimeError("over"))
        thread.join(timeout=5)
        assert all(future.done() for future in futures)
