"""Every wait ends, says what it waited for, and lets itself be cancelled."""

import asyncio
import logging

import pytest

from cluster import waiting
from cluster.waiting import Signal, together, wait_for


async def answer_after(seconds: float) -> str:
    """An answer that takes a while."""
    await asyncio.sleep(seconds)
    return "answer"


async def never() -> None:
    """No answer."""
    await asyncio.Event().wait()


def test_wait_for_returns_the_answer_or_raises_its_error() -> None:
    async def failing() -> None:
        raise KeyError("inside")

    assert asyncio.run(wait_for(answer_after(0.01), timeout_s=1.0, what="it")) == "answer"
    with pytest.raises(KeyError, match="inside"):
        asyncio.run(wait_for(failing(), timeout_s=1.0, what="it"))


def test_wait_for_names_what_did_not_answer_and_cancels_it() -> None:
    async def scenario() -> bool:
        task = asyncio.ensure_future(never())
        with pytest.raises(TimeoutError, match=r"no answer after 0\.02 s from: teacher-3 scoring"):
            await wait_for(task, timeout_s=0.02, what="teacher-3 scoring")
        await asyncio.sleep(0)
        return task.cancelled()

    assert asyncio.run(scenario())


def test_wait_for_logs_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "LOG_EVERY_S", 0.01)
    caplog.set_level(logging.INFO, "cluster.waiting")
    asyncio.run(wait_for(answer_after(0.05), timeout_s=1.0, what="placement of rollout-0"))
    assert "waiting for placement of rollout-0 (0 s)" in caplog.messages


def test_the_first_error_ends_what_is_awaited_together() -> None:
    async def failing() -> None:
        raise ValueError("the first")

    async def scenario() -> bool:
        other = asyncio.ensure_future(never())
        with pytest.raises(ValueError, match="the first"):
            await together([other, failing()])
        await asyncio.sleep(0)
        return other.cancelled()

    assert asyncio.run(scenario())


def test_a_signal_wakes_every_waiter_whose_condition_came_true() -> None:
    async def scenario() -> list[str]:
        signal, ready, woken = Signal(), set[str](), list[str]()

        async def wait(name: str) -> None:
            await signal.until(lambda: name in ready, timeout_s=1.0, what=lambda: name)
            woken.append(name)

        tasks = [asyncio.ensure_future(wait(name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        ready.update("ac")
        signal.changed()
        await asyncio.sleep(0.01)
        assert woken == ["a", "c"]
        ready.add("b")
        signal.changed()
        await asyncio.gather(*tasks)
        return woken

    assert asyncio.run(scenario()) == ["a", "c", "b"]


def test_a_change_made_by_a_woken_waiter_wakes_the_others_too() -> None:
    async def scenario() -> list[int]:
        signal, values = Signal(), list[int]()

        async def follow(index: int) -> None:
            await signal.until(lambda: len(values) >= index, timeout_s=1.0, what=lambda: str(index))
            values.append(index)
            signal.changed()

        await asyncio.gather(*(follow(index) for index in (3, 2, 1, 0)))
        return values

    assert asyncio.run(scenario()) == [0, 1, 2, 3]


def test_until_times_out_only_when_nothing_changes() -> None:
    async def scenario() -> None:
        signal = Signal()
        loop = asyncio.get_running_loop()
        for delay in (0.03, 0.06, 0.09):
            loop.call_later(delay, signal.changed)
        start = loop.time()
        with pytest.raises(TimeoutError, match=r"nothing happened for 0 s while waiting for a batch"):
            await signal.until(lambda: False, timeout_s=0.05, what=lambda: "a batch")
        assert loop.time() - start > 0.13

    asyncio.run(scenario())


@pytest.mark.parametrize("ticks", [0, 1, 2])
def test_a_cancellation_that_meets_a_change_is_not_swallowed(ticks: int) -> None:
    async def stage(signal: Signal) -> None:
        while True:
            await signal.until(lambda: False, timeout_s=1.0, what=lambda: "nothing")

    async def scenario() -> None:
        signal = Signal()
        task = asyncio.ensure_future(stage(signal))
        await asyncio.sleep(0.01)
        signal.changed()
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.5)
        assert done
        assert task.cancelled()

    asyncio.run(scenario())
