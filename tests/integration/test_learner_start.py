"""What a learner loads as it starts, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, sys
from settings.run_files import load_config
from transport.stop_tokens import StopTokens
from learner.rank import LearnerRank

config = load_config("configs/demo.yaml", [])
stops = StopTokens((1,), (1,), {"teacher": (1,)})
tokens = {"golden_token_ids": [5, 6, 7], "vocab_size": 32}
rank = LearnerRank(config, rank=0, world_size=1, stops=stops, is_local=True, **tokens)
rank.setup(*rank.rendezvous())
rank.shutdown()
print([name for name in ("torch._inductor.compile_fx", "torch._inductor.lowering") if name in sys.modules])
print(os.environ.get("TORCHDYNAMO_DISABLE"))
"""


@pytest.mark.timeout(700)
def test_a_learner_is_set_up_without_a_compiler_and_may_use_one_afterwards() -> None:
    """Some of what DeepSpeed imports would load all of torch's compiler."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-2:] == ["[]", "None"]
