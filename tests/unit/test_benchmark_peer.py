"""The benchmark against TRL, without TRL: command line, environment, ratios, and the checks around a trainer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import peer_trl
from benchmarks.peer_trl_environment import ready_python
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
