"""The benchmark against TRL, without TRL: command line, environment, ratios, and the checks around a trainer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import peer_trl
from benchmarks.peer_trl_environment import python_of, read_pins, ready_python
from benchmarks.peer_trl_trainer import Timings, watch
from benchmarks.peer_trl_trainers import TRAINERS, common_settings
from benchmarks.rows import result_row
from benchmarks.workload import Workload


def arguments(*line: str) -> argparse.Namespace:
    return peer_trl.build_parser().parse_args(line)


class FolderInstall:
    """Makes the folder that an environment has, and can be cut off halfway."""

    def __init__(self, *, is_cut_off: bool = False) -> None:
        self.is_cut_off, self.calls = is_cut_off, list[list[str]]()

    def __call__(self, folder: Path, pins: list[str]) -> None:
        self.calls.append(pins)
        (folder / "bin").mkdir(parents=True)
        if self.is_cut_off:
            (folder / "bin" / "half").touch()
            raise KeyboardInterrupt
        (folder / "bin" / "python").touch()


def pins_file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "pins.txt"
    path.write_text("\n".join(lines))
    return path


def test_an_environment_is_made_once_and_anew_when_its_pins_change(tmp_path: Path) -> None:
    pins, folder, install = pins_file(tmp_path, "# why", "a==1  # because", ""), tmp_path / "peer", FolderInstall()
    for _ in range(2):
        assert ready_python(install, folder=folder, pins=pins) == folder / "bin" / "python"
    assert install.calls == [["a==1"]]
    (folder / "old").touch()
    ready_python(install, folder=folder, pins=pins_file(tmp_path, "a==2"))
    assert install.calls == [["a==1"], ["a==2"]]
    assert not (folder / "old").exists()


def test_an_environment_whose_making_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    pins, folder = pins_file(tmp_path, "a==1"), tmp_path / "peer"
    with pytest.raises(KeyboardInterrupt):
        ready_python(FolderInstall(is_cut_off=True), folder=folder, pins=pins)
    ready_python(FolderInstall(), folder=folder, pins=pins)
    assert sorted(path.name for path in (folder / "bin").iterdir()) == ["python"]


def test_the_pins_name_torch_and_trl_exactly() -> None:
    names = [pin.partition("==")[0] for pin in read_pins(peer_trl.PINS)]
    assert names[:2] == ["torch", "trl"]
    assert all("==" in pin for pin in read_pins(peer_trl.PINS))


def test_both_scripts_know_the_same_trainers() -> None:
    assert set(peer_trl.LAYOUTS) == set(TRAINERS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--variants=trl-none"], "no such variant: trl-none"),
        (["--variants=,"], "none named"),
        (["--variants=trl-full-autocast"], "need --dtype=bfloat16"),
        (["--variants=trl-full,ours-async"], "end_to_end.py, which is missing"),
        (["--variant=ours-sync"], "end_to_end.py, which is missing"),
    ],
)
def test_variants_that_cannot_be_measured_are_refused_before_anything_runs(
    line: Sequence[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_trl, "OURS", tmp_path / "end_to_end.py")
    with pytest.raises(ValueError, match=message):
        peer_trl.chosen_variants(arguments(*line))


def test_each_variant_is_measured_by_its_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "end_to_end.py").touch()
    monkeypatch.setattr(peer_trl, "OURS", tmp_path / "end_to_end.py")
    chosen = arguments("--dtype=bfloat16", "--variants=trl-full-autocast,ours-async", "--steps=3")
    assert peer_trl.chosen_variants(chosen) == ["trl-full-autocast", "ours-async"]
    theirs = peer_trl.command_of("trl-full-autocast", chosen)
    assert theirs[:2] == [str(python_of()), str(peer_trl.TRAINER)]
    assert {"--trainer=full", "--precision=autocast", "--attention=sdpa", "--steps=3"} <= set(theirs)
    assert f"--layout={peer_trl.LAYOUTS['full']}" in theirs
    ours = peer_trl.command_of("ours-async", chosen)
    sizes = ["--skip=4", "--steps=8"]
    assert ours[1:] == [str(tmp_path / "end_to_end.py"), "--variant=ours-async", "--dtype=bfloat16", *sizes]


def test_ours_is_compared_with_the_fastest_of_the_peers() -> None:
    def runs(seconds: float, memory: str) -> list[dict[str, float]]:
        numbers = {"seconds_per_step": seconds, "cpu_s_per_step": 2 * seconds, "tokens_per_s": 8192 / seconds}
        return [numbers | {memory: 1000 * seconds} for _ in range(2)]

    results = {
        "trl-full": runs(8, "peak_mib"),
        "trl-sampled": runs(4, "peak_mib"),
        "ours-async": runs(2, "learner_peak_mib"),
    }
    peer = peer_trl.fastest_peer(results)
    assert peer == "trl-sampled"
    ratios = result_row("peer_trl", {}, results, peer_trl.ratios_of(list(results), peer))["ratios"]
    found = {name: ratio["median"] for name, ratio in ratios.items()}
    assert found["seconds_per_step: ours-async / trl-sampled"] == 0.5
    assert found["tokens_per_s: ours-async / trl-sampled"] == 2
    assert found["learner_peak_mib: ours-async / trl-sampled_peak_mib"] == 0.5
    assert peer_trl.ratios_of(["ours-async"], peer_trl.fastest_peer({"ours-async": results["ours-async"]})) == []


def test_a_layout_must_make_up_a_step(tmp_path: Path) -> None:
    chosen = SimpleNamespace(layout="16x2", warmup_steps=1, steps=2, precision="float32")
    settings = common_settings(chosen, Workload(tmp_path), tmp_path)  # pyright: ignore[reportArgumentType]
    assert (settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]) == (16, 2)
    chosen.layout = "16x4"
    with pytest.raises(ValueError, match="layout 16x4 is not 32 rows"):
        common_settings(chosen, Workload(tmp_path), tmp_path)  # pyright: ignore[reportArgumentType]


class TinyTrainer:
    """Two real models of a few hundred parameters, and the callbacks that a trainer would call."""

    def __init__(self) -> None:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        sizes: dict[str, Any] = {
            "vocab_size": 16,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
        }
        heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
        config = Qwen3Config(**sizes, **heads, bos_token_id=None, eos_token_id=1, pad_token_id=0)
        self.model: Any = Qwen3ForCausalLM(config)
        self.teacher_model = Qwen3ForCausalLM(config)
        self.callbacks = list[Any]()

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def take_step(self, *, tokens: int, last: int) -> None:
        """Generate so many tokens, none of which is the stop token (1) but for the last if it is named."""
        import torch

        prompt_BT, suppressed = torch.full((2, 3), 5), None if last == 1 else [1]
        end = {"forced_eos_token_id": last, "suppress_tokens": suppressed}
        self.model.generate(prompt_BT, max_new_tokens=tokens, do_sample=False, **end)
        self.teacher_model(prompt_BT)
        self.callbacks[0].on_step_end(None, None, None)


def test_a_step_is_timed_by_its_parts_and_a_response_that_ends_early_is_refused(tmp_path: Path) -> None:
    trainer, timings = TinyTrainer(), Timings()
    watch(trainer, Workload(tmp_path, batch_size=2, prompt_tokens=3, response_tokens=4), timings)
    trainer.callbacks[0].on_train_begin(None, None, None)
    trainer.model.generation_config.eos_token_id = None  # nothing ends a response here
    trainer.take_step(tokens=4, last=7)
    step = timings.steps[0]
    assert step["tokens"] == 8
    assert step["generation_s"] > 0
    assert step["scoring_s"] > 0
    parts = step["generation_s"] + step["scoring_s"] + step["update_s"]
    assert step["seconds_per_step"] == pytest.approx(parts)
    for tokens, last in ((3, 7), (4, 1)):
        with pytest.raises(RuntimeError, match="a response ended early"):
            trainer.take_step(tokens=tokens, last=last)
