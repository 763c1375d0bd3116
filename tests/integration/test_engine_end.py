"""The end of an engine, wanted or not: nobody waits for ever. And a fresh engine repeats what another did."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engine import Generation, Sampling
from tests.integration.test_engine_scene import (
    collect,
    in_place,
    opened,
    publish,
    read_model,
    requests,
    run,
    save_model,
    settings,
)

pytestmark = pytest.mark.timeout(600)

SAMPLING = Sampling(max_tokens=200)


async def fail_in_flight(engine: Any, end: Any) -> None:
    """Start generations and scores, call `end` in a thread, and see everything fail, now and later."""
    async with asyncio.timeout(200):
        tasks = [asyncio.create_task(collect(engine, requests(4, name=f"r{i}-"), SAMPLING)) for i in range(3)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(end)
        tasks += [asyncio.create_task(engine.score([[5, 6, 7]]))]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(outcome, RuntimeError)
        with pytest.raises(RuntimeError, match="the engine has ended"):
            await collect(engine, requests(1), SAMPLING)


def test_a_fresh_engine_gives_the_same_bits_and_a_shut_down_one_fails_its_requests(tmp_path: Path) -> None:
    path = save_model(tmp_path)
    found: list[list[Generation]] = []
    for _ in range(2):
        with opened(settings(path)) as engine:
            engine.serve_own_weights()
            found.append(run(collect(engine, requests(24), Sampling(max_tokens=30, top_p=0.95))))
            run(fail_in_flight(engine, engine.shutdown))
    first, second = found
    assert [generation.request_id for generation in first] == [generation.request_id for generation in second]
    for one, other in zip(first, second, strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs.tobytes() == other.log_probs.tobytes()


def test_an_engine_without_verified_weights_refuses_to_work_and_one_that_fails_in_a_step_fails_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_model(tmp_path)
    with opened(settings(path)) as engine:
        with pytest.raises(RuntimeError, match="no verified weights"):
            run(collect(engine, requests(1), SAMPLING))
        with pytest.raises(RuntimeError, match="no verified weights"):
            run(engine.score([[5, 6, 7]]))
        engine.serve_own_weights()
        (scores,) = run(engine.score([[5, 6, 7]]))
        assert np.isfinite(scores.log_probs).all()
        run(engine.load_weights(*in_place(publish(read_model(path), 1))))

        def broken_step() -> None:
            raise MemoryError("no memory for a step")

        monkeypatch.setattr(engine._engine, "step", broken_step)
        with pytest.raises(RuntimeError, match="no memory for a step"):
            run(collect(engine, requests(2), SAMPLING))
        with pytest.raises(RuntimeError, match="the engine has ended: no memory for a step"):
            run(engine.load_weights(*in_place(publish(read_model(path), 2))))
        with pytest.raises(RuntimeError, match="the engine has ended: no memory for a step"):
            run(engine.score([[5, 6, 7]]))
        with pytest.raises(RuntimeError, match="the engine has ended: no memory for a step"):
            engine.serve_own_weights()
