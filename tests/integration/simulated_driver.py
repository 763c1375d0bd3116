"""The driver of a simulated run as a program: `python -m tests.integration.simulated_driver FOLDER ADDRESS STEPS`.

It resumes if the run's folder is there. Workers go to nodes with the custom resources rollout, teacher, learner.
"""

import asyncio
import logging
import sys
from pathlib import Path

from cluster.connection import connected
from cluster.orphans import check_has_ended, end_left_over
from cluster.pool import Pool
from controller.remote_control import check_name_is_free, remote_control
from records.events import Events
from records.run_folder import RunFolder
from settings.cluster import ClusterConfig
from settings.exit_codes import FAILED, FINISHED
from settings.run import RunConfig
from tests.simulated import EngineBehaviour, LearnerBehaviour
from tests.simulated_run import run_config, simulated_run


def config_of(path: Path, max_steps: int) -> RunConfig:
    """Two rollout workers, a teacher and a learner, each role on its own nodes."""
    sections = {
        role: {"resources": {"num_cpus": 0.01, "custom": {role: 1}}} for role in ("rollout", "teacher", "learner")
    }
    limits = {name: 30.0 for name in ("step_timeout_s", "rollout_timeout_s", "score_timeout_s", "load_timeout_s")}
    checkpoint = {"every_steps": 10}
    return run_config(path, max_steps=max_steps, cluster=limits, checkpoint=checkpoint, **sections)


async def drive(config: RunConfig, *, resume: bool, helper_s: int) -> None:
    """Run to the end, or raise what ended it."""
    engines, learner = [EngineBehaviour(token_s=0.01, helper_s=helper_s)] * 2, LearnerBehaviour(train_s=0.2)
    async with simulated_run(config, engines=engines, learner=learner, resume=resume, pool_class=Pool) as run:
        events = Events(run.folder.events, run.folder.owner)
        end_left_over(run.folder, events)
        async with remote_control(run.pipeline.context, is_local=False):
            await run.pipeline.run()


def main(path: Path, address: str, max_steps: int, helper_s: int = 0) -> int:
    """Returns the exit code, as `launch.py` does. Engines start a process that lives for `helper_s`, if given."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    config = config_of(path, max_steps)
    resume = RunFolder.named(config).path.is_dir()
    check_has_ended(RunFolder.named(config))
    with connected(ClusterConfig(address=address), lambda nodes, is_local: None):
        check_name_is_free(config.run_name)
        try:
            asyncio.run(drive(config, resume=resume, helper_s=helper_s))
        except Exception:
            logging.getLogger(__name__).exception("the run failed")
            return FAILED
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])))
