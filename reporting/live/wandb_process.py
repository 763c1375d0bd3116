"""The process that talks to Weights & Biases: JSON lines on its standard input, from `WandbWriter`.

    {"init": {...}, "timeout_s": 60}   first: arguments of `wandb.init`
    {"log": {"step": 3, "loss": 0.5}}  numbers of a step
    {"summary": {...}}                 of the run
    {"finish": 0}                      last; without it the run counts as crashed

A process of its own, so that nothing wandb does, hanging included, reaches the training.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Serve standard input to its end."""
    import wandb

    start = json.loads(sys.stdin.readline())
    quiet: dict[str, Any] = {"console": "off", "silent": True, "init_timeout": start["timeout_s"]}
    run = wandb.init(**start["init"], settings=wandb.Settings(**quiet))
    run.define_metric("step")
    run.define_metric("*", step_metric="step")  # a learner that falls back repeats steps; wandb's own only rise
    exit_code = 1
    for line in sys.stdin:
        match json.loads(line):
            case {"log": numbers}:
                run.log(numbers)
            case {"summary": summary}:
                run.summary.update(summary)
            case {"finish": code}:
                exit_code = code
                break
    run.finish(exit_code=exit_code)


if __name__ == "__main__":
    main()
