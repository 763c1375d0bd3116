"""One of TRL's on-policy distillation trainers on the workload of `benchmarks/workload.py`.

It runs in TRL's own environment; `benchmarks/peer_trl.py` makes that and calls this:

    benchmarks/.peer/bin/python benchmarks/peer_trl_trainer.py --trainer sampled --layout 8x4

The last line that it prints is one JSON object: medians over the counted steps. TRL's own profiling reports
only to experiment trackers, so the parts of a step are timed around what TRL calls: `generation` is the student's
`generate`, `scoring` the teacher's forward (of its backbone alone where the loss applies the head), and `update`
everything else.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.peak_memory import peak_mib, start_peak_mib
from benchmarks.peer_trl_trainers import PRECISIONS, TRAINERS, build_trainer
from benchmarks.workload import Workload, make

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass
class Timings:
    """What is counted while TRL trains. `part_s` and `tokens` are of the step in progress."""

    part_s: dict[str, float] = field(default_factory=lambda: {"generation": 0.0, "scoring": 0.0})
    tokens: int = 0
    steps: list[dict[str, float]] = field(default_factory=list)
    started_s: float = 0.0
    started_cpu_s: float = 0.0

    def begin(self) -> None:
        """A step begins now."""
        self.part_s = dict.fromkeys(self.part_s, 0.0)
        self.tokens = 0
        self.started_s, self.started_cpu_s = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """It ends, and the next begins. A line on standard error says what it took."""
        seconds, cpu_s = time.perf_counter() - self.started_s, time.process_time() - self.started_cpu_s
        self.steps.append(
            {
                "seconds_per_step": seconds,
                "cpu_s_per_step": cpu_s,
                "tokens_per_s": self.tokens / seconds,
                "tokens": self.tokens,
                "generation_s": self.part_s["generation"],
                "scoring_s": self.part_s["scoring"],
                "update_s": seconds - sum(self.part_s.values()),
            }
        )
        print(f"step {len(self.steps)}: {json.dumps(self.steps[-1])}", file=sys.stderr, flush=True)
        self.begin()


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Train for the warm-up and the counted steps; returns medians of the counted ones."""
    import torch

    torch.set_num_threads(arguments.threads)
    workload = make(arguments.models)
    timings = Timings()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(arguments, workload, Path(folder))
        watch(trainer, workload, timings)
        before = start_peak_mib()
        loss = trainer.train().training_loss
        peak = peak_mib()
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    counted = timings.steps[arguments.warmup_steps :]
    wanted = workload.batch_size * workload.response_tokens
    if len(counted) != arguments.steps or any(step["tokens"] != wanted for step in timings.steps):
        raise RuntimeError(f"expected {arguments.steps} counted steps of {wanted} tokens, got {timings.steps}")
    found = {key: median(step[key] for step in counted) for key in counted[0]}
    return found | {"peak_mib": peak, "peak_above_models_mib": peak - before}


def watch(trainer: Any, workload: Workload, timings: Timings) -> None:
    """Time the steps, the generation and the teacher of a trainer, and check what it generates."""
    from transformers import TrainerCallback

    student, teacher = trainer.model, trainer.teacher_model
    stop, generate = student.config.eos_token_id, student.generate

    def timed_generate(*positional: Any, **named: Any) -> Any:
        start = time.perf_counter()
        output = generate(*positional, **named)
        timings.part_s["generation"] += time.perf_counter() - start
        rows_BT = output if hasattr(output, "shape") else output.sequences
        response_BT = rows_BT[:, workload.prompt_tokens :]
        if response_BT.shape[1] != workload.response_tokens or bool((response_BT == stop).any()):
            raise RuntimeError(f"a response ended early, or a prompt has another length: {tuple(rows_BT.shape)}")
        timings.tokens += response_BT.numel()
        return output

    student.generate = timed_generate
    starts: list[float] = []

    def enter(*_: Any) -> None:
        starts.append(time.perf_counter())

    def leave(*_: Any) -> None:
        seconds = time.perf_counter() - starts.pop()
        if not starts:  # the outer one where the whole model calls its backbone
            timings.part_s["scoring"] += seconds

    for module in (teacher, teacher.model):
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            timings.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            timings.end()

    trainer.add_callback(Steps())


def main() -> None:
    """Measure one trainer in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", choices=TRAINERS, required=True)
    parser.add_argument("--models", default="qwen3", choices=("qwen3", "smollm2"))
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--layout", default="32x1", help="rows of a micro-batch x micro-batches of a step")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup-steps", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    print(json.dumps(measure(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
