"""What other processes send to a run: requests and anything else, through its socket and its mailbox."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.local_socket import MAX_CONNECTIONS, ask_here, connection_to, listening
from cluster.mailbox import MAX_REQUEST_BYTES, Mailbox, read_request
from controller.remote_control import RemoteControl
from tests.simulated_run import eventually
from tests.unit.test_scaling import CONFIG, pools

pytestmark = pytest.mark.timeout(30)

STATUS = {"kind": "status"}

NO_REQUESTS: list[tuple[Any, str]] = [
    ({"rollout": "x"}, "unknown request"),
    ({}, "unknown request"),
    ([], "unknown request"),
    (None, "unknown request"),
    ("status", "unknown request"),
    (7, "unknown request"),
    ({"kind": "statu"}, "unknown request"),
    ({"kind": ["status"]}, "unknown request"),
    ({"kind": "status", "counts": {}}, "unknown request"),
    ({"kind": "scale"}, "unknown request"),
    ({"kind": "scale", "counts": {}}, "unknown request"),
    ({"kind": "scale", "counts": [["rollout", 2]]}, "unknown request"),
    ({"kind": "scale", "counts": {"rollout": "x"}}, "--rollout must be a whole number >= 1, got 'x'"),
    ({"kind": "scale", "counts": {"rollout": [2]}}, r"--rollout must be a whole number >= 1, got \[2\]"),
    ({"kind": "scale", "counts": {"rollout": True}}, "--rollout must be a whole number >= 1, got True"),
    ({"kind": "scale", "counts": {"rollout": 1e400}}, "--rollout must be a whole number >= 1, got inf"),
    ({"kind": "scale", "counts": {"rollout": 10**23}}, "--rollout must be <= 10000"),
    ({"kind": "x" * MAX_REQUEST_BYTES}, "a request has at most 65536 bytes"),
]


@pytest.mark.parametrize(("request_", "error"), NO_REQUESTS)
def test_what_is_no_request_is_said_in_one_short_line(request_: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error) as raised:
        read_request(json.dumps(request_))
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", ["", "{", "\0", "[" * 60_000, "9" * 5000, '{"kind": "status"', b"\xff\xfe"])
def test_what_is_no_json_is_said_in_one_short_line(line: str | bytes) -> None:
    with pytest.raises(ValueError, match="a request must be JSON"):
        read_request(line)


def control() -> RemoteControl:
    """A run that still starts."""
    return RemoteControl(CONFIG, pools(), is_local=False)


@asynccontextmanager
async def reached(run: RemoteControl) -> AsyncIterator[Callable[..., Any]]:
    """How to ask the run: `asked(*lines)` gives the answers to lines on one connection, None for none."""

    def talk(name: str, lines: tuple[bytes, ...]) -> list[Any]:
        answers: list[Any] = []
        with connection_to(name) as connection, connection.makefile("rb") as received:
            for line in lines:
                connection.sendall(line + b"\n")
                answer = received.readline()
                answers.append(json.loads(answer) if answer else None)
        return answers

    async with listening(run.answer, run.after_reply) as name:
        assert name is not None

        async def asked(*lines: bytes) -> list[Any]:
            return await asyncio.to_thread(talk, name, lines)

        asked.name = name  # pyright: ignore[reportFunctionMemberAccess]
        yield asked


def test_whatever_comes_through_the_socket_the_next_request_is_answered() -> None:
    async def scenario() -> None:
        async with reached(control()) as asked:
            lines = [json.dumps(each).encode() for each, _ in NO_REQUESTS[:-1]] + [b"{", b"\xff", b"[" * 50_000]
            answers = await asked(*lines, json.dumps(STATUS).encode())
            assert all(answer.keys() == {"error"} for answer in answers[:-1])
            assert answers[-1]["state"] == "starting"
            [too_long] = await asked(b"x" * 2 * MAX_REQUEST_BYTES)
            assert too_long is None or too_long.keys() == {"error"}
            [status] = await asked(json.dumps(STATUS).encode())
            assert status["run"] == "first"

    asyncio.run(scenario())


def test_those_who_connect_and_say_nothing_keep_nobody_else_from_being_answered_for_long() -> None:
    async def scenario() -> None:
        async with reached(control()) as asked:
            silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(MAX_CONNECTIONS + 5)]
            for each in silent:
                each.connect(f"\0{asked.name}")  # pyright: ignore[reportFunctionMemberAccess]
            for each in silent:
                each.close()
            await asyncio.sleep(0.1)
            [status] = await asked(json.dumps(STATUS).encode())
            assert status["run"] == "first"

    asyncio.run(scenario())


def test_a_run_that_is_to_stop_answers_through_the_socket_first() -> None:
    async def scenario() -> None:
        stops: list[bool] = []
        run = RemoteControl(CONFIG, pools(), is_local=False, stop=lambda: stops.append(True))
        async with reached(run) as asked:
            [answer] = await asked(b'{"kind": "stop"}')
            assert answer == {"lines": ["first ends before its first step, with exit code 3"]}
            for _ in range(100):
                await asyncio.sleep(0 if stops else 0.01)
            assert stops == [True]

    asyncio.run(scenario())


def test_the_socket_ends_with_its_run_and_many_who_ask_leave_nothing_behind() -> None:
    async def scenario() -> str:
        async with listening(control().answer, lambda: None) as name:
            assert name is not None
            before = threading.active_count()

            def ask_often() -> None:
                for _ in range(200):
                    with connection_to(name) as connection:
                        assert ask_here(connection, STATUS)["run"] == "first"

            await asyncio.to_thread(ask_often)
            assert threading.active_count() <= before + 1
            await eventually(lambda: len(asyncio.all_tasks()) <= 2)  # the last one may still be ending
        return name

    name = asyncio.run(scenario())
    with pytest.raises(ConnectionRefusedError), connection_to(name):
        pass


def test_a_request_that_the_run_fails_at_is_answered_with_the_error_and_the_next_one_is_answered_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = control()
    with monkeypatch.context() as patch:
        patch.setattr(RemoteControl, "status", lambda self: {}["nothing"])
        assert run.reply(STATUS) == {"error": "the run cannot answer this: KeyError: 'nothing'"}
    assert "a request could not be answered" in caplog.text
    assert run.reply(STATUS)["run"] == "first"
    for request in (
        None,
        [],
        7,
        {"kind": "scale", "counts": {1: 2}},
        {"kind": "scale", "counts": {"rollout": {}}},
    ):
        assert run.reply(request).keys() == {"error"}


class Unreadable:
    """What another process may send and the run has no class for."""


def test_what_the_run_could_not_even_read_does_not_reach_it() -> None:
    async def scenario() -> None:
        mailbox = Mailbox()
        bad: list[Any] = [*(each for each, _ in NO_REQUESTS), Unreadable(), {"kind": Unreadable()}, {1, 2}]
        for request in bad:
            assert (await mailbox.ask(request)).keys() == {"error"}
        assert await mailbox.next_request(0.01) is None
        asking = asyncio.create_task(mailbox.ask(STATUS))
        request = await mailbox.next_request(1.0)
        assert request is not None
        number, body = request
        assert body == STATUS
        await mailbox.answer(number, {"run": "first"})
        assert await asking == {"run": "first"}

    asyncio.run(scenario())
