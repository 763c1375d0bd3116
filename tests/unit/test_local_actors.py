"""Actors inside this process behave as Ray's do towards their callers."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.waiting import now
from commands.plan.local_pool import LocalActor, LocalStream
from commands.plan.run import run_virtually


class Target:
    """What is called; `seen` is the order of what happened."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def add(self, left: int, right: int) -> int:
        return left + right

    async def slow(self, value: int) -> int:
        self.seen.append("began")
        await asyncio.sleep(10)
        return value

    async def pair(self) -> tuple[str, str]:
        return "first", "second"

    async def fail(self) -> None:
        raise KeyError("lost")

    async def count(self, num: int) -> AsyncGenerator[int, None]:
        try:
            for value in range(num):
                await asyncio.sleep(1)
                yield value
            raise ValueError("counted too far")
        finally:
            self.seen.append("closed")

    def letters(self) -> Iterator[str]:
        yield from "ab"


def test_calls_return_references_that_may_be_passed_on() -> None:
    async def main() -> tuple[int, list[str], float]:
        actor = LocalActor(Target())
        three = actor.slow.remote(3)
        total: int = await actor.add.remote(three, actor.add.remote(1, right=1))
        both = [await ref for ref in actor.pair.options(num_returns=2).remote()]
        assert await three == 3  # a reference may be read again
        return total, both, now()

    assert run_virtually(main()) == (5, ["first", "second"], 10.0)


def test_calls_run_side_by_side() -> None:
    async def main() -> float:
        actor = LocalActor(Target())
        refs = [actor.slow.remote(i) for i in range(5)]
        assert [await ref for ref in refs] == [0, 1, 2, 3, 4]
        return now()

    assert run_virtually(main()) == 10.0


def test_errors_reach_callers_as_ray_errors_and_pass_through_references() -> None:
    async def main() -> None:
        actor = LocalActor(Target())
        with pytest.raises(RayError, match="lost"):
            await actor.fail.remote()
        with pytest.raises(RayError, match="lost"):
            await actor.add.remote(actor.fail.remote(), 1)

    run_virtually(main())


def test_an_error_is_of_the_type_that_the_worker_raised_and_says_that_it_came_from_one() -> None:
    async def main() -> None:
        with pytest.raises(KeyError) as caught:
            await LocalActor(Target()).fail.remote()
        assert isinstance(caught.value, RayTaskError)
        assert isinstance(caught.value.cause, KeyError)

    run_virtually(main())


def test_a_frozen_actor_begins_and_answers_nothing_until_it_thaws() -> None:
    async def main() -> float:
        actor = LocalActor(Target())
        begun = actor.slow.remote(1)
        await asyncio.sleep(1)
        actor.freeze()
        later = actor.add.remote(1, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):
                await later
        actor.thaw()
        assert [await begun, await later] == [1, 2]
        return now()

    assert run_virtually(main()) == 21.0


def test_streams_yield_references_until_an_error_or_the_end() -> None:
    async def main() -> None:
        actor = LocalActor(Target())
        stream = actor.count.options(num_returns="streaming").remote(2)
        assert [await (await stream.__anext__()), await (await stream.__anext__()), now()] == [0, 1, 2.0]
        with pytest.raises(RayError, match="counted too far"):
            await stream.__anext__()
        letters = actor.letters.options(num_returns="streaming").remote()
        assert await (await letters.__anext__()) == "a"
        assert await (await letters.__anext__()) == "b"
        with pytest.raises(StopAsyncIteration):
            await letters.__anext__()

    run_virtually(main())


def test_a_stream_whose_reader_gives_up_is_closed_where_it_is() -> None:
    async def main() -> list[str]:
        target = Target()
        stream = LocalActor(target).count.options(num_returns="streaming").remote(9)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await stream.__anext__()
        await stream.cancel()
        return target.seen

    assert run_virtually(main()) == ["closed"]


def begin(actor: LocalActor) -> dict[str, Any]:
    """A call in flight, one that has not begun, and a stream with a reader that waits."""
    stream: LocalStream = actor.count.options(num_returns="streaming").remote(9)
    return {"call": actor.slow.remote(1), "stream": asyncio.ensure_future(stream.__anext__())}


def test_a_kill_ends_calls_and_streams_in_flight_and_refuses_new_ones() -> None:
    async def main() -> tuple[float, list[str]]:
        target = Target()
        actor = LocalActor(target)
        waiting = begin(actor)
        await asyncio.sleep(0.5)
        waiting["not begun"] = actor.slow.remote(2)
        actor.kill()
        waiting["refused"] = actor.add.remote(1, 1)
        for what, ref in waiting.items():
            with pytest.raises(RayActorError, match="ended"):
                print(what, await ref)
        return now(), target.seen

    assert run_virtually(main()) == (0.5, ["began", "closed"])


def test_the_cancellation_of_a_caller_is_no_error_of_the_actor() -> None:
    async def main() -> int:
        ref = LocalActor(Target()).slow.remote(7)
        caller = asyncio.ensure_future(ref)
        await asyncio.sleep(1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        return await ref  # the call continues

    assert run_virtually(main()) == 7


def test_a_stream_is_closed_while_its_next_item_is_being_made() -> None:
    target = Target()

    async def main() -> float:
        actor = LocalActor(target)
        stream: LocalStream = actor.count.options(num_returns="streaming").remote(5)
        reading = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0.5)
        reading.cancel()
        await stream.cancel()
        return now()

    assert run_virtually(main()) == 0.5
    assert target.seen == ["closed"]
