"""`launch.py chaos --run NAME --every 30s --kill rollout,teacher,learner,node --seed 0 --duration 10m`.

Every kill is drawn from the seed among what is healthy then; the report is printed and kept in the run's folder
(`chaos.jsonl` holds the kills, `chaos.json` the numbers). Exit code 0 if nothing was lost or trained twice and the
staleness bound was kept, 1 otherwise, 2 for bad input.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from cluster.chaos.report import Kill, as_lines, as_table, report
from cluster.chaos.schedule import Schedule, read_kinds, read_seconds, victims
from cluster.command_line import FAILED, FINISHED
from cluster.commands_remote import ask, reached
from cluster.jsonl import append_row
from cluster.run_folder import RunFolder, valid_ledger

logger = logging.getLogger(__name__)

HEAD = "node:__internal_head__"
"""A resource that only the head's node has."""

RECOVERY_LIMIT_S = 300.0
"""So long the last kill's victims may take to come back before the report."""


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

    def carry_out(self, schedule: Schedule) -> dict[str, Any]:
        """All kills of a schedule, then the numbers; ends early if the run does."""
        self._check(schedule)
        random, began = Random(schedule.seed), time.time()
        for after_s, kind in schedule.kills():
            time.sleep(max(0.0, began + after_s - time.time()))
            if not self._look():
                break
            self._strike(kind, random)
        self._await_recovery()
        bound, frontier = self._status["staleness_bound"], self._status["frontier"]
        if not self._goes_on():  # it has trained on since it was last asked
            slots, trained = self._status["slots"], max(valid_ledger(self._folder.ledger), default=0)
            has_finished = trained == slots["max_steps"]
            end = {"version": trained, "lowest_untrained": trained * slots["batch_size"], "trained_above": []}
            frontier = end if has_finished else None
        return report(self._folder, self._kills, began=began, frontier=frontier, bound=bound)

    def _check(self, schedule: Schedule) -> None:
        if "frontier" not in self._status:
            raise ValueError(f"--run: {self._run} has not started its first step yet")
        roles = {str(role).partition("-")[0] for role in self._status["pools"]}
        for kind in schedule.kinds:
            if kind == "node" and not self._nodes():
                raise ValueError(
                    "--kill: there is no node besides that of the head and that of the run's driver "
                    "(nearest valid: rollout,teacher,learner)"
                )
            if kind != "node" and kind not in roles:
                raise ValueError(f"--kill: {self._run} has no {kind} (nearest valid: {', '.join(sorted(roles))})")

    def _ask(self) -> dict[str, Any]:
        return ask(self._actor, self._run, {"kind": "status"})

    def _look(self) -> bool:
        """Ask the run how it does; False once it has ended."""
        try:
            self._status = self._ask()
        except ValueError as error:
            logger.warning("%s", error)
            return False
        return True

    def _goes_on(self) -> bool:
        return self._folder.read_cluster() is not None and self._look()

    def _workers(self) -> list[dict[str, Any]]:
        pools: dict[str, Any] = self._status["pools"]
        return [{**worker, "role": role} for role, pool in pools.items() for worker in pool["workers"]]

    def _nodes(self) -> list[str]:
        """Nodes that may be killed: not the head's, not the driver's, not this process's."""
        import ray

        spared = {ray.get_runtime_context().get_node_id(), self._status["driver_node_id"]}
        alive = [
            node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]
        ]
        return [node["NodeID"] for node in alive if node["NodeID"] not in spared]

    def _strike(self, kind: str, random: Random) -> None:
        """Kill one of a kind; nothing if none of it is healthy just now."""
        if kind == "node":
            node_ids = sorted(self._nodes())
            chosen = random.choice(node_ids) if node_ids else None
            hit = [w for w in self._workers() if chosen and w["node_id"] == chosen]
            if chosen is not None:
                self._send(chosen, "kill_node")
        else:
            found = victims(kind, self._workers())
            hit = [random.choice(found)] if found else []
            if hit and not self._send(hit[0]["node_id"], "kill_worker", hit[0]["pid"]):
                hit = []
        if not hit and kind != "node":
            logger.warning("no %s is healthy just now: nothing is killed", kind)
            return
        kill = Kill(time.time(), kind, tuple(worker["name"] for worker in hit))
        self._kills.append(kill)
        row = {"time": round(kill.time, 3), "kind": kind, "workers": [*kill.workers]}
        append_row(self._folder.path / "chaos.jsonl", row)
        logger.info("killed %s: %s", kind, ", ".join(kill.workers))

    def _send(self, node_id: str, method: str, *args: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayError

        from cluster.chaos.strike import Striker
        from cluster.ray_actors import actor_on_node

        striker = actor_on_node(Striker, node_id)
        try:
            return ray.get(getattr(striker, method).remote(*args), timeout=60)
        except RayActorError:
            return method == "kill_node"  # it dies with its node
        except RayError as error:
            logger.warning("node %s cannot be reached: %s", node_id, error)
            return False
        finally:
            ray.kill(striker)

    def _await_recovery(self) -> None:
        """Wait until every worker serves again, or the run has ended."""
        deadline = time.time() + RECOVERY_LIMIT_S
        while time.time() < deadline and self._goes_on():
            states = {worker["state"] for worker in self._workers()} - {"retired"}
            if states == {"healthy"}:
                return
            time.sleep(0.5)
