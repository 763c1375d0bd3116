"""What a rank writes is the state as it was when it was added, and the report knows every byte of it."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.checkpoint_writer import CheckpointWriter, on_host
from records import checkpoints


def written(writer: CheckpointWriter) -> checkpoints.WriteReport:
    """The report once everything is written."""
    writer.close()
    writer.join()
    assert writer.report is not None
    return writer.report


def test_later_changes_do_not_reach_what_is_written(tmp_path: Path) -> None:
    weights, groups = torch.arange(4.0), [{"lr": 0.1, "betas": (0.9, 0.95)}]
    state = {"weights": weights, "view": weights[1:3], "groups": groups, "step": 3}
    writer = CheckpointWriter(tmp_path, in_background=True)
    writer.add(state, tmp_path / "deep" / "state.pt")
    weights.zero_()
    groups[0]["lr"] = 0.2
    state["step"] = 4
    report = written(writer)
    found = torch.load(tmp_path / "deep" / "state.pt")
    assert found["weights"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found["view"].tolist() == [1.0, 2.0]
    assert (found["groups"], found["step"]) == ([{"lr": 0.1, "betas": (0.9, 0.95)}], 3)
    content = (tmp_path / "deep" / "state.pt").read_bytes()
    assert report.files == {"deep/state.pt": checkpoints.record_of([content])}


def test_a_view_is_copied_without_the_rest_and_tied_weights_stay_tied() -> None:
    flat = torch.arange(1000.0)
    model = OrderedDict(embed=flat[:10], head=flat[:10], other=flat[10:12])
    model._metadata = {"": {"version": 1}}  # pyright: ignore[reportAttributeAccessIssue]
    copied: Any = on_host({"module": model})["module"]
    assert copied["embed"].untyped_storage().nbytes() == 40
    assert copied["embed"] is copied["head"]
    assert copied["other"].tolist() == [10.0, 11.0]
    assert copied._metadata == {"": {"version": 1}}


def test_the_same_state_gives_the_same_bytes_with_training_and_without(tmp_path: Path) -> None:
    state = {"weights": torch.randn(100), "names": ["a", "b"]}
    reports = []
    for name, in_background in (("one", True), ("two", False)):
        writer = CheckpointWriter(tmp_path / name, in_background=in_background)
        writer.add(state, tmp_path / name / "state.pt")
        reports.append(written(writer))
    assert reports[0].files == reports[1].files


def test_an_error_in_the_background_that_is_no_fault_of_the_disk_is_raised_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    writer = CheckpointWriter(tmp_path, in_background=True)
    (tmp_path / "a_file").write_text("")
    writer.add({}, tmp_path / "a_file" / "state.pt")
    with pytest.raises(FileExistsError):
        written(writer)


def test_a_manifest_survives_json() -> None:
    manifest = checkpoints.CheckpointManifest(2, 3, "bfloat16", {"a": checkpoints.FileRecord(5, 7)}, {"x": [1]})
    text = checkpoints.manifest_text(manifest)
    assert json.loads(text)["files"] == {"a": {"num_bytes": 5, "crc32": 7}}
    assert checkpoints.parse_manifest(text.encode()) == manifest
