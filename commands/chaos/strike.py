"""Kills processes on the node it runs on; an actor of the chaos command, one for each node."""

import os
import signal

import psutil


class Striker:
    """Sends SIGKILL, by process id, to processes that are what they are said to be."""

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
