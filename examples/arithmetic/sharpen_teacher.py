"""Make a teacher with near-zero probabilities on many student tokens: the demo's teacher at a low temperature.

    python examples/arithmetic/sharpen_teacher.py --factor 300 --out runs/sharp_teacher

All logits are multiplied by `--factor`, through the last norm's scale: its favourite tokens stay the same, every
other token becomes nearly impossible. Under such a teacher the log-ratio of one token outweighs a batch, while the
reward of PowerOPD stays within [-1, 1]; `configs/compare_sharp_teacher.yaml` measures it.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TEACHER = Path(__file__).resolve().parent / "models" / "teacher"


def sharpen(factor: float, out: Path) -> None:
    """Write the teacher with its logits multiplied by `factor`, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(factor)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(TEACHER).save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factor", type=float, default=300.0)
    parser.add_argument("--out", type=Path, default=Path("runs/sharp_teacher"))
    arguments = parser.parse_args()
    sharpen(arguments.factor, arguments.out)
    print(f"{arguments.out}: the teacher at temperature 1/{arguments.factor:g}")
