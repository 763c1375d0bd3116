"""Any model folder with broken files either works or is refused with one clear line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings.exit_codes import FINISHED
from tests.examples import examples
from tests.unit.conftest import MODELS
from tests.unit.fuzzing import arguments_of, check, refusal, values

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
CONFIG = json.loads((MODELS / "teacher" / "config.json").read_text())
BROKEN = {"nothing": b"", "bytes": b"\xff\xfe\x00", "a list": b"[]", "a number": b"1", "deep": b"[" * 100_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that may be broken and nothing else that may change."""
    folder = tmp_path_factory.mktemp("fuzz")
    arguments_of(folder)
    shutil.copytree(MODELS / "teacher", folder / "model")
    return folder


def test_the_files_that_are_broken_here_are_there(folder: Path) -> None:
    assert [name for name in FILES if not (folder / "model" / name).is_file()] == []
    assert check(arguments_of(folder, f"--teacher.model_path={folder / 'model'}"), folder) == FINISHED


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize(("role", "name"), [*(("teacher", name) for name in FILES), ("student", FILES[1])])
def test_a_model_with_a_broken_file_is_refused_by_name(folder: Path, role: str, name: str, content: bytes) -> None:
    file = folder / "model" / name
    before = file.read_bytes()
    try:
        file.write_bytes(content)
        line = refusal(arguments_of(folder, f"--{role}.model_path={folder / 'model'}"), folder)
        assert "model_path" in line
        if role == "student":
            options = [f"--evaluation.data_path={folder / 'train.jsonl'}", f"--model={folder / 'model'}"]
            assert "model_path" in refusal(["eval", *arguments_of(folder, *options)[1:]], folder)
    finally:
        file.write_bytes(before)


@given(key=st.sampled_from(sorted(CONFIG)), value=values)
@examples(10)
def test_a_model_with_any_value_in_its_configuration_works_or_is_refused(
    folder: Path, key: str, value: Any
) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(CONFIG | {key: value}))
    check(arguments_of(folder, f"--teacher.model_path={folder / 'model'}"), folder)
    file.write_text(json.dumps(CONFIG))
