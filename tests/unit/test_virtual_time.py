"""Simulated time: it jumps to the next timer, keeps their order, and never waits for what cannot come."""

import asyncio
import time

import pytest

from cluster.waiting import now, wait_for
from commands.plan.run import run_virtually


def test_a_week_of_sleep_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(7 * 24 * 3600)
        return now()

    began = time.process_time()
    assert run_virtually(main()) == pytest.approx(7 * 24 * 3600)
    assert time.process_time() - began < 1


def test_timers_come_in_their_order_and_at_their_time() -> None:
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, now()))

    async def main() -> None:
        await asyncio.gather(sleeper("last", 30), sleeper("first", 0.001), sleeper("second", 2.5))

    run_virtually(main())
    assert [name for name, _ in seen] == ["first", "second", "last"]
    assert [at for _, at in seen] == pytest.approx([0.001, 2.5, 30])


def test_time_stands_still_while_anything_is_ready() -> None:
    async def main() -> float:
        for _ in range(100):
            await asyncio.sleep(0)
        return now()

    assert run_virtually(main()) == 0.0


def test_limits_of_waits_are_simulated_too() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError, match="no answer after 600 s from: nobody"):
            await wait_for(asyncio.get_running_loop().create_future(), timeout_s=600, what="nobody")
        return now()

    assert run_virtually(main()) == pytest.approx(600)


def test_waiting_for_what_nothing_will_bring_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="stands still"):
        run_virtually(main())


def test_what_is_meant_for_a_thread_is_done_at_once_and_its_errors_arrive() -> None:
    async def main() -> None:
        ticking = asyncio.create_task(asyncio.sleep(1))
        assert await asyncio.to_thread(lambda: slept.append(time.sleep(0.01)) or 7) == 7
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert now() == 0.0
        await ticking

    slept: list[None] = []
    run_virtually(main())
    assert slept == [None]
