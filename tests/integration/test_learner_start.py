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


PUBLISHING = """
import sys
from pathlib import Path
from safetensors.torch import load_file
import torch
from docs.generate.model_families import VOCAB_SIZE, save_family
from learner.rank import LearnerRank
from tests.unit.test_learner_scene import GOLDEN_TOKEN_IDS, LENGTHS, STOPS, run_config, save_student, scored_table

folder = Path(sys.argv[1])
save_student(folder)  # its tokenizer
save_family("GLM-4-MoE", folder)
config = run_config(str(folder), learner={"zero_stage": 3, "dtype": "bfloat16"})
tokens = {"golden_token_ids": GOLDEN_TOKEN_IDS, "vocab_size": VOCAB_SIZE}
rank = LearnerRank(config, rank=0, world_size=1, stops=STOPS, is_local=True, **tokens)
rank.setup(*rank.rendezvous())
*buckets, manifest = rank.publish(0, 1)
rank.export(str(folder / "export"))
rank.train_step(0, scored_table(LENGTHS))
rank.shutdown()
wanted, exported = load_file(folder / "model.safetensors"), load_file(folder / "export" / "model.safetensors")
assert {spec.name for spec in manifest.tensors} == wanted.keys() == exported.keys()
for spec in manifest.tensors:
    bytes_ = torch.from_numpy(buckets[spec.bucket][spec.offset : spec.offset + spec.num_bytes].copy())
    dtype = torch.float32 if spec.name.endswith("e_score_correction_bias") else torch.bfloat16
    assert spec.dtype == str(dtype).removeprefix("torch.")
    assert torch.equal(bytes_.view(dtype).view(spec.shape), wanted[spec.name].to(dtype)), spec.name
    assert torch.equal(exported[spec.name], wanted[spec.name].to(dtype)), spec.name
print(len(manifest.tensors))
"""


@pytest.mark.timeout(700)
def test_a_partitioned_mixture_of_experts_is_published_and_exported_as_its_folder_holds_it(tmp_path: Path) -> None:
    line = [sys.executable, "-c", PUBLISHING, str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.strip().splitlines()[-1]) > 30
