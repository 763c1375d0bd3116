"""`launch.py chaos --run NAME --every 30s --kill rollout,teacher,learner,node --seed 0 --duration 10m`.

Every kill is drawn from the seed among what is healthy then; the report is printed and kept in the run's folder
(`chaos.jsonl` holds the kills, `chaos.json` the numbers). Exit code 0 if nothing was lost or trained twice and the
staleness bound was kept, 1 otherwise, 2 for bad input.
"""

import argparse
import json
import logging
import os
import signal
import time
from pathlib import Path
from random import Random
from typing import Any

import psutil
from rich.console import Console

from commands.chaos.report import Kill, as_lines, as_table, recovery_s, report
from commands.chaos.schedule import Schedule, read_kinds, read_seconds, victims
from commands.remote import ask, reached
from records.events import reason_of
from records.files import append_row
from records.ledger import valid_ledger
from records.run_folder import RunFolder
from settings.exit_codes import FAILED, FINISHED

logger = logging.getLogger(__name__)

HEAD = "node:__internal_head__"
"""A resource that only the head's node has."""

ATTEMPTS = 3
"""Times that a run which does not answer is asked before it counts as ended."""

STRIKER_START_S = 60.0
"""Maximum time for the process that kills to start on its node, and to answer."""

RECOVERY_LIMIT_S = 300.0
"""Maximum time for the last kill's victims to come back before the report."""


def chaos_command(arguments: argparse.Namespace, options: list[str]) -> int:
    """Kill on schedule and report; ValueError for bad input, before anything is killed."""
    if options:
        raise ValueError(f"unexpected argument {options[0]!r}; chaos takes --every, --kill, --duration and --seed")
    schedule = Schedule(
        every_s=read_seconds("--every", arguments.every),
        duration_s=read_seconds("--duration", arguments.duration),
        kinds=read_kinds(arguments.kill),
        seed=arguments.seed,
    )
    if schedule.every_s > schedule.duration_s:
        raise ValueError(f"--every must be <= --duration ({arguments.duration}), got {arguments.every}")
    folder = RunFolder(Path(arguments.runs_path) / arguments.run)
    if not folder.path.is_dir():
        raise ValueError(f"--run: there is no run folder {folder.path}; chaos reads the run's ledger there")
    with reached(arguments) as actor:
        numbers = Chaos(arguments.run, actor, folder).carry_out(schedule)
    (folder.path / "chaos.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(numbers))
    else:
        console = Console()
        console.print(as_table(arguments.run, numbers))
        for line in as_lines(numbers):
            console.print(line, highlight=False)
    is_well = not numbers["lost"] and not numbers["trained_twice"] and numbers["bound_kept"]
    return FINISHED if is_well else FAILED


class Chaos:
    """Kills workers and nodes of one run."""

    def __init__(self, run: str, actor: Any, folder: RunFolder) -> None:
        self._run = run
        self._actor = actor
        self._folder = folder
        self._status = self._ask()
        self._kills: list[Kill] = []
        self._num_missed = 0  # kills for which nothing was healthy in time

    def carry_out(self, schedule: Schedule) -> dict[str, Any]:
        """All kills of a schedule, then the numbers; ends early with the run, or at Ctrl-C."""
        self._check(schedule)
        began = time.time()
        try:
            self._kill_all(schedule, began)
        except KeyboardInterrupt:
            logger.warning("interrupted: nothing more is killed")
        self._await_recovery()
        bound, frontier = self._status["staleness_bound"], self._status["frontier"]
        if not self._is_running():  # it has trained on since it was last asked
            slots, trained = self._status["slots"], max(valid_ledger(self._folder.ledger), default=0)
            has_finished = trained == slots["max_steps"]
            end = {"version": trained, "lowest_untrained": trained * slots["batch_size"], "trained_above": []}
            frontier = end if has_finished else None
        numbers = report(self._folder, self._kills, began=began, frontier=frontier, bound=bound)
        return numbers | {"missed": self._num_missed}

    def _kill_all(self, schedule: Schedule, began: float) -> None:
        random = Random(schedule.seed)
        for after_s, kind in schedule.kills():
            time.sleep(max(0.0, began + after_s - time.time()))
            if not self._look():
                break
            self._strike(kind, random, wait_until=began + after_s + schedule.every_s)

    def _check(self, schedule: Schedule) -> None:
        if "frontier" not in self._status:
            raise ValueError(f"--run: {self._run} has not started its first step yet")
        roles = {str(role).partition("-")[0] for role in self._status["pools"]}
        for kind in schedule.kinds:
            if kind == "node" and not self._nodes():
                raise ValueError(
                    "--kill: no node besides those of the head and of the run's driver holds a worker "
                    "(nearest valid: rollout,teacher,learner)"
                )
            if kind != "node" and kind not in roles:
                raise ValueError(f"--kill: {self._run} has no {kind} (nearest valid: {', '.join(sorted(roles))})")

    def _ask(self) -> dict[str, Any]:
        return ask(self._actor, self._run, {"kind": "status"})

    def _look(self) -> bool:
        """Ask the run how it does; False once it has ended."""
        for attempt in range(ATTEMPTS):
            try:
                self._status = self._ask()
            except ValueError as error:
                logger.warning("%s", error)
                if self._folder.read_cluster() is None:
                    return False
                time.sleep(attempt)
            else:
                return True
        return False

    def _is_running(self) -> bool:
        return self._folder.read_cluster() is not None and self._look()

    def _workers(self) -> list[dict[str, Any]]:
        pools: dict[str, Any] = self._status["pools"]
        return [{**worker, "role": role} for role, pool in pools.items() for worker in pool["workers"]]

    def _nodes(self) -> list[str]:
        """Nodes with healthy workers that may be killed: not the head's, not the driver's, not this process's."""
        import ray

        spared = {ray.get_runtime_context().get_node_id(), self._status["driver_node_id"]}
        held = {worker["node_id"] for worker in self._workers() if worker["state"] == "healthy"} - spared
        alive = [node for node in ray.nodes() if node["Alive"] and HEAD not in node["Resources"]]
        in_order = sorted(alive, key=lambda node: node["NodeName"])  # ids differ from one cluster to the next
        return [node["NodeID"] for node in in_order if node["NodeID"] in held]

    def _strike(self, kind: str, random: Random, *, wait_until: float) -> None:
        """Kill one of a kind; wait until there is a healthy one, and kill nothing if there is none in time."""
        hit = self._choose(kind, random)
        while not hit and time.time() < wait_until and self._is_running():
            time.sleep(0.5)
            hit = self._choose(kind, random)
        at = self._send(hit[0]["node_id"], None if kind == "node" else hit[0]["pid"]) if hit else None
        if at is None:
            self._num_missed += 1
            logger.warning("no %s is healthy just now: nothing is killed", kind)
            return
        kill = Kill(at, kind, tuple(worker["name"] for worker in hit))
        self._kills.append(kill)
        row = {"time": round(kill.time, 3), "kind": kind, "workers": [*kill.workers]}
        append_row(self._folder.path / "chaos.jsonl", row)
        logger.info("killed %s: %s", kind, ", ".join(kill.workers))

    def _choose(self, kind: str, random: Random) -> list[dict[str, Any]]:
        """One healthy worker of a kind, or all workers of one node; nothing if there is none."""
        if kind != "node":
            found = victims(kind, self._workers())
            return [random.choice(found)] if found else []
        node_ids = self._nodes()
        chosen = random.choice(node_ids) if node_ids else None
        return [w for w in self._workers() if chosen and w["node_id"] == chosen and w["state"] != "retired"]

    def _send(self, node_id: str, pid: int | None) -> float | None:
        """Kill a process of a node, or the node itself; returns when, and None if there was nothing to kill."""
        import ray
        from ray.exceptions import RayError

        from cluster.ray_actors import actor_on_node

        striker = actor_on_node(Striker, node_id)
        try:
            ray.get(striker.check.remote(), timeout=STRIKER_START_S)
            at = time.time()
            if pid is None:
                ray.wait([striker.kill_node.remote()], timeout=5)  # it dies with its node, and answers nothing
                return at
            return at if ray.get(striker.kill_worker.remote(pid), timeout=STRIKER_START_S) else None
        except RayError as error:
            logger.warning("node %s cannot be reached: %s", node_id, reason_of(error))
            return None
        finally:
            ray.kill(striker)

    def _await_recovery(self) -> None:
        """Wait until every worker serves again, or the run has ended.

        The run may not have noticed the last kill yet, so its workers' states alone do not tell.
        """
        deadline = time.time() + RECOVERY_LIMIT_S
        while time.time() < deadline and self._is_running():
            states = {worker["state"] for worker in self._workers()} - {"retired"}
            is_seen = all(recovery_s(self._folder, kill) is not None for kill in self._kills)
            if states == {"healthy"} and is_seen:
                return
            time.sleep(0.5)


class Striker:
    """An actor on a node that sends SIGKILL there, by process id, to processes that are what they should be."""

    def check(self) -> None:
        """Answer as soon as it has started; RuntimeError if its parent is not the raylet of its node."""
        name = psutil.Process(os.getppid()).name()
        if name != "raylet":
            raise RuntimeError(f"the parent of a Ray worker should be the raylet, and is {name}")

    def kill_worker(self, pid: int) -> bool:
        """Kill an actor's process; False if there is no such process, or it is none of Ray's."""
        if not psutil.pid_exists(pid) or not psutil.Process(pid).name().startswith("ray::"):
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def kill_node(self) -> None:
        """Kill the raylet of this node and all of its workers, this actor among them."""
        raylet = psutil.Process(os.getppid())
        workers = [each for each in raylet.children(recursive=True) if each.pid != os.getpid()]
        raylet.kill()
        for worker in workers:
            worker.kill()
        os.kill(os.getpid(), signal.SIGKILL)
