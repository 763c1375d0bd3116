"""The time of a simulated engine, against numbers worked out by hand."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.waiting import now
from commands.plan.run import run_virtually
from commands.plan.timing import EngineRates, SimulatedDevice

RATES = EngineRates(
    step_s=0.02, sequence_s=0.001, max_num_seqs=4, prefill_tokens_per_s=1000, load_s=0.5, call_s=0.1
)


def timed(scene: Callable[[SimulatedDevice], Awaitable[object]]) -> tuple[float, object]:
    """Seconds that a scene with one engine takes, and its result."""

    async def main() -> tuple[float, object]:
        result = await scene(SimulatedDevice(RATES))
        return now(), result

    return run_virtually(main())


async def decode_after(device: SimulatedDevice, delay_s: float, num_tokens: int) -> float:
    """Decode one sequence without a prompt; returns when it was done."""
    await asyncio.sleep(delay_s)
    runs = await device.decode(0, num_tokens)
    assert sum(num for _, num in runs) == num_tokens
    return now()


@pytest.mark.parametrize("num", [1, 2, 4])
def test_equal_sequences_share_steps_that_grow_with_their_number(num: int) -> None:
    seconds, _ = timed(lambda device: asyncio.gather(*(device.decode(0, 100) for _ in range(num))))
    assert seconds == pytest.approx(100 * (0.02 + 0.001 * (num - 1)))


def test_sequences_beyond_the_cap_wait_for_a_place() -> None:
    seconds, ends = timed(lambda device: asyncio.gather(*(decode_after(device, 0, 100) for _ in range(6))))
    assert ends == pytest.approx([2.3] * 4 + [2.3 + 2.1] * 2)  # four together, then two
    assert seconds == pytest.approx(4.4)


def test_a_short_sequence_leaves_a_faster_engine_behind() -> None:
    _, ends = timed(lambda d: asyncio.gather(decode_after(d, 0, 100), decode_after(d, 0, 300)))
    assert ends == pytest.approx([100 * 0.021, 100 * 0.021 + 200 * 0.02])


def test_a_late_sequence_slows_the_one_that_runs() -> None:
    _, ends = timed(lambda d: asyncio.gather(decode_after(d, 0, 100), decode_after(d, 1.0, 1000)))
    # 50 tokens alone in 1 s, 50 together; then 950 alone
    assert ends == pytest.approx([1.0 + 50 * 0.021, 1.0 + 50 * 0.021 + 950 * 0.02])


def test_prompts_are_prefilled_one_after_the_other_before_anything_is_decoded() -> None:
    seconds, _ = timed(lambda device: asyncio.gather(device.decode(100, 50), device.decode(400, 50)))
    assert seconds == pytest.approx(0.5 + 50 * 0.021)


def test_scoring_calls_queue_and_take_their_fixed_and_token_seconds() -> None:
    async def score(device: SimulatedDevice, num_tokens: int) -> float:
        await device.score(num_tokens)
        return now()

    _, ends = timed(lambda device: asyncio.gather(score(device, 300), score(device, 500)))
    assert ends == pytest.approx([0.4, 0.4 + 0.6])


async def load_at(device: SimulatedDevice, at_s: float, version: int) -> None:
    await asyncio.sleep(at_s)
    await device.load(version)


def test_a_load_stops_decoding_and_parts_the_tokens_by_version() -> None:
    async def scene(device: SimulatedDevice) -> list[tuple[int, int]]:
        runs, *_ = await asyncio.gather(device.decode(0, 100), load_at(device, 0.6, 1), load_at(device, 1.5, 2))
        return runs

    seconds, runs = timed(scene)
    assert seconds == pytest.approx(100 * 0.02 + 2 * 0.5)
    # 30 tokens until 0.6; none until 1.1; 20 until 1.5; the rest from 2.0
    assert runs == [(0, 30), (1, 20), (2, 50)]


def test_sequences_that_start_after_a_load_are_of_its_version() -> None:
    async def scene(device: SimulatedDevice) -> list[tuple[int, int]]:
        await device.load(3)
        return await device.decode(0, 10)

    assert timed(scene) == (pytest.approx(0.7), [(3, 10)])


@pytest.mark.parametrize("loads_at", [(0.1, 0.2, 0.3), (0.0, 0.0), (1.9999, 3.0), (0.013,)])
def test_version_runs_sum_to_the_length_wherever_loads_fall(loads_at: tuple[float, ...]) -> None:
    async def scene(device: SimulatedDevice) -> list[list[tuple[int, int]]]:
        loads = [asyncio.ensure_future(load_at(device, at, i + 1)) for i, at in enumerate(loads_at)]
        found = await asyncio.gather(*(device.decode(7, num) for num in (1, 33, 100, 101, 50)))
        await asyncio.gather(*loads)
        return found

    _, found = timed(scene)
    assert isinstance(found, list)
    for runs, num_tokens in zip(found, (1, 33, 100, 101, 50), strict=True):
        assert sum(num for _, num in runs) == num_tokens
        assert all(num > 0 for _, num in runs)
        assert [version for version, _ in runs] == sorted({version for version, _ in runs})


def test_cancelled_sequences_free_their_places_and_slow_nobody() -> None:
    async def scene(device: SimulatedDevice) -> float:
        ended = [asyncio.ensure_future(device.decode(0, 10_000)) for _ in range(6)]  # 4 run, 2 wait
        await asyncio.sleep(1)
        for each in ended:
            each.cancel()
        await asyncio.wait(ended)
        await device.decode(0, 100)
        return now()

    _, end = timed(scene)
    assert end == pytest.approx(1 + 100 * 0.02)


def test_a_place_that_is_freed_goes_to_who_waits() -> None:
    async def scene(device: SimulatedDevice) -> float:
        ended = [asyncio.ensure_future(device.decode(0, 10_000)) for _ in range(4)]
        waiting = asyncio.ensure_future(device.decode(0, 100))
        await asyncio.sleep(1)
        for each in ended[1:]:
            each.cancel()
        await waiting
        ended[0].cancel()
        return now()

    _, end = timed(scene)
    assert end == pytest.approx(1 + 100 * 0.021)
