"""The run's side of `launch.py scale`, `status` and `stop`: answers what arrives in its named actor.

Processes of the same user on this machine ask through a socket (`cluster/local_socket.py`) instead.

    request {"kind": "scale", "counts": {"rollout": 4}}  ->  {"lines": ["rollout 1 -> 4: ..."]} or {"error": "..."}
    request {"kind": "stop"}                             ->  {"lines": ["..."]}
    request {"kind": "status"}                           ->  the status (controller/status.py) or {"error": "..."}

A scale request is checked as a whole, answered with what will happen, and carried out during the run; one that
comes while the run still starts is carried out once it has started.
"""

import asyncio
import difflib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.autoscaling import grows
from cluster.connection import NAMESPACE, cluster_address
from cluster.local_socket import listening
from cluster.mailbox import Mailbox, actor_name, checked_count
from cluster.placement import check_could_fit
from cluster.pool import Pool
from cluster.ray_actors import let_go, named_actor
from cluster.waiting import in_thread, wait_for
from controller.context import RunContext
from controller.pipeline import Pipeline
from controller.status import pools_status
from records.events import Events, reason_of
from records.ownership import this_process
from reporting.live.monitor import Monitor
from settings.exit_codes import DRAINED
from settings.run import RunConfig

logger = logging.getLogger(__name__)

POLL_S = 20.0
"""Maximum time that one call to the actor waits for a request."""

REASON = "command"
WHAT = "the run's named actor"
MAX_PAUSE_S = 60.0
"""Maximum pause between attempts to start a lost actor anew."""
NAME_TIMEOUT_S = 15.0
"""Maximum time for an earlier run of the same name to disappear from the cluster."""


class RemoteControl:
    """Answers requests about one run."""

    def __init__(
        self,
        config: RunConfig,
        pools: Mapping[str, Pool],
        *,
        is_local: bool,
        stop: Callable[[], object] = lambda: None,
        node_id: str = "",
        monitor: Monitor | None = None,
    ) -> None:
        """`is_local`: Ray is this machine alone and does not grow; `stop` drains the run, or ends its start.

        `node_id` is the node of this process; `monitor` adds health, evaluations and times to the status.
        """
        self._monitor = monitor
        self._node_id = node_id
        self._config = config
        self._pools = pools
        self._is_local = is_local
        self._stop = stop
        self._is_stopping = False
        self._pipeline: Pipeline | None = None
        self._counts: dict[str, int] = {}  # wanted once the run has started
        self.nodes: list[dict[str, float]] = []
        """The resources of the cluster's nodes, as a request to scale found them, and whether it may have more."""
        self.may_grow = False

    def attach(self, pipeline: Pipeline) -> None:
        """The run has started: carry out what was wanted meanwhile."""
        self._pipeline = pipeline
        for role, count in self._counts.items():
            pipeline.scaling.resize(role, count, f"{REASON} (during the start)")

    async def answer(self, request: Any) -> dict[str, Any]:
        """The answer to a request, whatever it is: what cannot be answered well is answered with `error`.

        To scale, it has to be known what the cluster has.
        """
        if isinstance(request, Mapping) and request.get("kind") == "scale":
            try:
                self.nodes, self.may_grow = await in_thread(
                    self._cluster_now, timeout_s=NAME_TIMEOUT_S, what="Ray's head: the cluster's nodes"
                )
            except (RayError, TimeoutError) as error:
                return {"error": f"the cluster does not say what it has: {reason_of(error)}"}
        return self.reply(request)

    def _cluster_now(self) -> tuple[list[dict[str, float]], bool]:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return nodes, not self._is_local and grows(self._config.cluster)

    def reply(self, request: Any) -> dict[str, Any]:
        """The answer to a request; a mistake is answered with `error`, one line, and so is one of ours."""
        try:
            match request:
                case {"kind": "status"}:
                    return self.status()
                case {"kind": "scale", "counts": dict(counts)}:
                    return {"lines": self._scale(counts)}
                case {"kind": "stop"}:
                    self._is_stopping = True
                    return {"lines": [self._stop_line()]}
                case _:
                    raise ValueError(f"unknown request {request!r:.200} (known kinds: scale, status, stop)")
        except ValueError as error:
            return {"error": str(error)}
        except Exception as error:  # the request ends with it, the run does not, and later ones are answered
            logger.exception("a request could not be answered")
            return {"error": f"the run cannot answer this: {reason_of(error)}"}

    def after_reply(self) -> None:
        """Carry out what could keep the answer from being sent."""
        if self._is_stopping:
            self._stop()

    def _stop_line(self) -> str:
        if self._pipeline is None:
            return f"{self._config.run_name} ends before its first step, with exit code {DRAINED}"
        return (
            f"{self._config.run_name} finishes the step in progress, saves it and ends with exit code {DRAINED}; "
            f"continue with --resume"
        )

    def status(self) -> dict[str, Any]:
        """Where the run stands, as JSON values."""
        state = "starting" if self._pipeline is None else "running"
        state = "stopping" if self._is_stopping else state
        pools, is_running = pools_status(self._pools), self._pipeline is not None
        status = {"run": self._config.run_name, "state": state, "pools": pools, "driver_node_id": self._node_id}
        if self._monitor is not None:
            status |= self._monitor.status(pools, is_running=is_running)
        return status if self._pipeline is None else status | self._pipeline.status()

    def _scale(self, counts: Mapping[str, int]) -> list[str]:
        for role, count in counts.items():
            check_count(role, count, [role for role in self._pools if role != "learner"])
        self._check_placement(counts)
        if self._pipeline is None:
            self._counts |= counts
            return [f"{role} -> {count}: once the run has started" for role, count in counts.items()]
        return [str(self._pipeline.scaling.resize(role, count, REASON)) for role, count in counts.items()]

    def _check_placement(self, counts: Mapping[str, int]) -> None:
        """ValueError saying what is missing if the cluster could never hold the workers."""
        now = {role: len(pool.wanted) or pool.demand.count for role, pool in self._pools.items()}
        wanted = now | self._counts | dict(counts)
        changed_last = sorted(
            self._pools.items(), key=lambda item: item[0] in counts
        )  # an error names one of these
        demands = [replace(pool.demand, count=wanted[role]) for role, pool in changed_last]
        if any(wanted[role] > now[role] for role in wanted):
            check_could_fit(demands, self.nodes, is_local=self._is_local, grows=self.may_grow)


def check_count(role: str, count: Any, roles: list[str]) -> None:
    """ValueError naming the nearest valid role or count."""
    if role not in roles:
        if role == "learner":
            raise ValueError("--learner: ranks cannot be added or removed during a run; drain and --resume")
        close = difflib.get_close_matches(role, roles, n=1)
        nearest = f"; did you mean --{close[0]}?" if close else ""
        raise ValueError(f"--{role}: this run has no such pool{nearest} (pools: {', '.join(roles)})")
    checked_count(f"--{role}", count)


def check_name_is_free(run_name: str) -> None:
    """ValueError if a run of this name is running in the connected cluster."""
    deadline = time.monotonic() + NAME_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(actor_name(run_name), namespace=NAMESPACE)
        except ValueError:
            return
        time.sleep(0.5)
    raise ValueError(
        f"run_name: a run named {run_name} is already running in this Ray cluster; choose another name"
    )


@asynccontextmanager
async def remote_control(
    context: RunContext,
    *,
    is_local: bool,
    stop: Callable[[], object] = lambda: None,
    monitor: Monitor | None = None,
) -> AsyncIterator[RemoteControl]:
    """Let other processes reach the run: by the name of its actor, and by `cluster.json` in its folder."""
    config, folder = context.config, context.folder
    node_id, where = await in_thread(_where, timeout_s=NAME_TIMEOUT_S, what="the address of the cluster")
    control = RemoteControl(config, context.pools, is_local=is_local, stop=stop, node_id=node_id, monitor=monitor)
    mailbox = RunMailbox(config.run_name)
    await mailbox.make()
    async with listening(control.answer, control.after_reply) as socket_name:
        folder.write_cluster(where | {"is_local": is_local, "socket": socket_name} | this_process())
        serving = asyncio.create_task(_serve(control, mailbox, context.events))
        serving.add_done_callback(_log_failure)
        try:
            yield control
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            let_go(actor=mailbox.actor)
            if folder.owner.is_held:  # else it is another's
                folder.cluster.unlink(missing_ok=True)


def _where() -> tuple[str, dict[str, Any]]:
    """This node's id, and how another process finds the cluster and the run's job in it."""
    ray_context = ray.get_runtime_context()
    where = {"address": cluster_address(), "session": ray_context.get_session_name()}
    return ray_context.get_node_id(), where | {"job_id": ray_context.get_job_id()}


class RunMailbox:
    """The named actor of this run, made anew when it is lost."""

    def __init__(self, run_name: str) -> None:
        self._name = actor_name(run_name)
        self.actor: Any = None

    async def make(self) -> None:
        """Start it; ValueError while the name is that of one that is still there and does not answer."""
        self.actor = await in_thread(
            lambda: named_actor(Mailbox, name=self._name, args=()),
            timeout_s=NAME_TIMEOUT_S,
            what=WHAT,
            late=ray.kill,
        )

    async def make_anew(self) -> None:
        """Start it again, as soon as Ray lets us."""
        pause_s, lost = 1.0, self.actor
        while self.actor is lost:
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, 2 * pause_s)
            try:
                await in_thread(lambda: ray.kill(lost), timeout_s=NAME_TIMEOUT_S, what=WHAT)
                await self.make()
            except (RayError, TimeoutError, ValueError) as error:
                logger.info("%s: %s", WHAT, reason_of(error))

    async def next_request(self) -> tuple[int, Any] | None:
        """The next request with its number; None if there is none for a while."""
        return await wait_for(self.actor.next_request.remote(POLL_S), timeout_s=3 * POLL_S, what=WHAT)

    async def answer(self, number: int, answer: dict[str, Any]) -> None:
        """Answer a request."""
        await wait_for(self.actor.answer.remote(number, answer), timeout_s=3 * POLL_S, what=f"{WHAT}: an answer")


async def _serve(control: RemoteControl, mailbox: RunMailbox, events: Events) -> None:
    """Answer requests until the run ends; a lost actor is an event, and another takes its place."""
    while True:
        try:
            request = await mailbox.next_request()
            if request is not None:
                number, body = request
                await mailbox.answer(number, await control.answer(body))
                control.after_reply()
        except (RayError, TimeoutError) as error:
            events.add("controller_lost", reason=reason_of(error))
            await mailbox.make_anew()
            events.add("controller_back", reason="the run's named actor was made anew")


def _log_failure(serving: asyncio.Task[None]) -> None:
    if not serving.cancelled() and serving.exception() is not None:
        logger.error("scale, status and stop no longer reach this run", exc_info=serving.exception())
