"""What handing a step's responses from the students to the teachers and the learner costs, by part.

    .venv/bin/python benchmarks/data_plane.py                                     # 32 responses of 256 tokens
    .venv/bin/python benchmarks/data_plane.py --responses 512 --tokens 64 --signal topk

The real path in one Ray session: a rollout worker streams parcels, references pass through this process, a teacher
worker builds scored tables, a learner fetches and collates them. Engines have their answers ready, so that all
time is the hand-over's. Variants alternate, each round `--steps` steps:

    tables   as a run does it
    arrays   bare numpy arrays through Ray's object store, the same three actors: no schema, no checks, no parcels
    memcpy   one copy of the scored tables' bytes into fresh memory

Seconds are those of one step, CPU seconds of all processes of the session. `build_*_s` is what workers do,
`ship_*_s` what Ray and this process add to it. `share_of_step` divides `seconds` by `--step-s`.
"""

import argparse
import asyncio
import os
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # for Ray's workers

from benchmarks.rows import Ratio, benchmark_parser, emit, result_row  # noqa: E402

RATIOS = (
    Ratio("seconds", "tables", "arrays"),
    Ratio("cpu_s", "tables", "arrays"),
    Ratio("seconds", "tables", "memcpy"),
)
TIMEOUT_S = 60.0


class Plane:
    """The actors of one size, and steps through them."""

    def __init__(self, options: argparse.Namespace) -> None:
        from actors.engine import EngineSettings
        from actors.teacher_worker import TeacherWorker
        from benchmarks.data_plane_workers import (
            STOPS,
            VOCAB_SIZE,
            ArrayWorker,
            Collator,
            ReadyEngine,
            TimedRolloutWorker,
        )
        from cluster.ray_actors import named_actor
        from settings.engine import EngineConfig
        from transport.batches import TeacherSignal

        self.options = options
        self.signal = TeacherSignal("topk", k=options.k) if options.signal == "topk" else TeacherSignal()
        settings = EngineSettings("none", "float32", "cpu", 0, VOCAB_SIZE, (), EngineConfig(), self.signal)
        size = options.prompt_tokens, options.tokens, self.signal

        class Teacher(TeacherWorker):
            def __init__(self) -> None:
                super().__init__(settings, lambda _: ReadyEngine(*size), stop_mode="raw", stops=STOPS)

        class Student(TimedRolloutWorker):
            def __init__(self) -> None:
                super().__init__(settings, lambda _: ReadyEngine(*size))

        self.student = named_actor(Student, name="student", args=())
        self.teacher = named_actor(Teacher, name="teacher", args=())
        self.learner = named_actor(Collator, name="learner", args=(self.signal,))
        self.array_workers = [named_actor(ArrayWorker, name=f"arrays-{i}", args=()) for i in range(3)]

    async def start(self) -> None:
        """Open the engines."""
        await asyncio.gather(self.student.start.remote(), self.teacher.start.remote())

    def requests(self, step: int) -> Any:
        """The generation requests of a step."""
        from inputs.prompts import PromptSource
        from inputs.rendering import Prompt

        num = self.options.responses
        prompts = [Prompt(f"p{i}", [2] * self.options.prompt_tokens, None, "default") for i in range(num)]
        source = PromptSource(prompts, seed=0, num_samples=1, num_slots=num)
        return source.requests_for(range(step * num, (step + 1) * num), [0] * num)

    async def tables(self, step: int) -> dict[str, float]:
        """One step as a run makes it; returns its seconds by part."""
        from actors.engine import Sampling
        from cluster.streams import finished_slots
        from transport.parcels import plan_parcels

        requests, sampling = self.requests(step), Sampling(max_tokens=self.options.tokens)
        start = time.perf_counter()
        notes, tables = [], []
        stream = finished_slots(self.student, requests, sampling, timeout_s=TIMEOUT_S, what="a parcel")
        async with aclosing(stream):
            async for parcel, table in stream:
                notes += parcel
                tables.append(table)
        generated = time.perf_counter()
        parcels = plan_parcels((note.slot, self.signal.token_bytes * note.num_tokens) for note in notes)
        refs = self.teacher.score.options(num_returns=1 + len(parcels)).remote(*tables, parcels=parcels)
        note, scored = await refs[0], time.perf_counter()
        await self.learner.fetch.remote(*refs[1:])
        build_batches_s = await self.learner.collate.remote(*refs[1:])
        end = time.perf_counter()
        build_rollouts_s = await self.student.taken_s.remote()
        self.last = refs[1:]
        return {
            "seconds": end - start,
            "build_rollouts_s": build_rollouts_s,
            "ship_rollouts_s": generated - start - build_rollouts_s,
            "build_scored_s": note.seconds,
            "ship_scored_s": scored - generated - note.seconds,
            "build_batches_s": build_batches_s,
            "ship_batches_s": end - scored - build_batches_s,
        }

    async def arrays(self, step: int) -> dict[str, float]:
        """The same hops with bare arrays."""
        of, (first, second, third) = self.options, self.array_workers
        start = time.perf_counter()
        made = first.make.remote(of.responses, of.tokens, of.prompt_tokens)
        await third.read.remote(second.score.remote(made, self.signal.k))
        return {"seconds": time.perf_counter() - start}

    async def memcpy(self, step: int) -> dict[str, float]:
        """One copy of the bytes."""
        start = time.perf_counter()
        self.bytes.copy()
        return {"seconds": time.perf_counter() - start}

    async def facts(self) -> dict[str, float]:
        """Of the scored tables of the last step: bytes, tables, and where the learner found them."""
        found = await asyncio.gather(*self.last)
        num_bytes = sum(table.nbytes for table in found)
        self.bytes = np.zeros(num_bytes, np.uint8)
        return {
            "bytes_per_response_token": num_bytes / (self.options.responses * self.options.tokens),
            "bytes": num_bytes,
            "tables": len(found),
            "not_copied_on_arrival": await self.learner.in_shared_memory.remote(*self.last),
        }


def cpu_s() -> float:
    """CPU seconds of this process and all that it started."""
    this, total = psutil.Process(), 0.0
    for each in [this, *this.children(recursive=True)]:
        times = each.cpu_times()
        total += times.user + times.system
    return total


async def round_of(plane: Plane, variant: str, first_step: int) -> dict[str, float]:
    """Means over the steps of a round."""
    before, taken = cpu_s(), []
    for step in range(first_step, first_step + plane.options.steps):
        taken.append(await getattr(plane, variant)(step))
    cpu = (cpu_s() - before) / len(taken)
    means = {key: sum(each[key] for each in taken) / len(taken) for key in taken[0]} | {"cpu_s": cpu}
    if variant == "tables":
        rows = plane.options.responses / means["seconds"]
        means |= {"share_of_step": means["seconds"] / plane.options.step_s, "rows_per_s": rows}
        means |= {"cpu_share_of_step": cpu / plane.options.step_s}
    return means


async def measure(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """All rounds of all variants, one after the other."""
    plane, steps = Plane(options), 0
    await plane.start()
    await plane.tables(0)
    facts = await plane.facts()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ("tables", "arrays", "memcpy")}
    for round_index in range(options.warmup + options.runs):
        for name, runs in results.items():
            steps += options.steps
            measured = await round_of(plane, name, steps)
            if round_index >= options.warmup:
                runs.append(measured)
    return results, facts


def main() -> None:
    """Measure one size and print one row."""
    from cluster.connection import connected, prepare_environment
    from settings.cluster import ClusterConfig

    parser = benchmark_parser(__doc__)
    parser.add_argument("--responses", type=int, default=32, help="of a step [32]")
    parser.add_argument("--tokens", type=int, default=256, help="of a response [256]")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--signal", choices=("token", "topk"), default="token", help="of the teacher [token]")
    parser.add_argument("--k", type=int, default=20, help="tokens of topk [20]")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round [10]")
    parser.add_argument("--step-s", type=float, default=6.0, help="seconds of a whole step of a run [6]")
    options = parser.parse_args()
    prepare_environment()
    with connected(ClusterConfig(num_cpus=4, object_store_gib=0.5), lambda nodes, is_local: None):
        results, facts = asyncio.run(measure(options))
    emit(result_row("data_plane", vars(options), results, RATIOS, **facts), is_saved=options.save)


if __name__ == "__main__":
    main()
