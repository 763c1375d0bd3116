"""Prompts that were prepared once are used again while neither data nor settings change.

`CACHE_PATH/KEY/` holds `part-0.arrow` and so on, one for each source, and `report.json`. The folder is made under
another name and renamed when it is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from inputs.data_report import DataReport
from inputs.overlap import HeldOut
from inputs.prompt_table import StoredPrompts
from settings.data import DataConfig

FORMAT = 1
"""Raised when the same data and settings would give other prompts, or other files."""
END_BYTES = 65_536
"""Of a data file's start and end, which are part of its identity."""


class PromptCache:
    """The files of one set of prompts, whether they are there or not."""

    def __init__(self, cache_path: Path, key: str) -> None:
        self._cache_path = cache_path
        self.folder = cache_path / key

    def is_there(self) -> bool:
        """Whether the prompts were prepared before."""
        return self.folder.is_dir()

    @contextmanager
    def making(self) -> Iterator[Path]:
        """A folder to write the files into; it gets its name if nothing fails, and else is removed."""
        try:
            self._cache_path.mkdir(parents=True, exist_ok=True)
            folder = Path(mkdtemp(prefix=".making-", dir=self._cache_path))
        except OSError as error:
            raise ValueError(f"data.cache_path: {self._cache_path} cannot be written: {error.strerror}") from error
        try:
            yield folder
            if not self.is_there():  # else another run was faster
                os.rename(folder, self.folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def parts(folder: Path, number: int) -> list[Path]:
        """The file of each source."""
        return [folder / f"part-{index}.arrow" for index in range(number)]

    @staticmethod
    def write_report(folder: Path, report: DataReport) -> None:
        """Write what became of the data beside the prompts."""
        (folder / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")

    def read(self, number: int) -> tuple[list[StoredPrompts], DataReport]:
        """The prompts of each source, and the report; ValueError if the files are damaged."""
        try:
            report = DataReport.from_json(json.loads((self.folder / "report.json").read_text(encoding="utf-8")))
            stored = [StoredPrompts(path) for path in self.parts(self.folder, number)]
            if [len(each) for each in stored] != [source.kept for source in report.sources]:
                raise ValueError("the number of prompts is not that of the report")
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ValueError(f"data.cache_path: {self.folder} is damaged, remove it: {error}") from error
        report.stored_at = str(self.folder)
        return stored, report


def cache_key(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut | None,
    files: Sequence[Sequence[str]],
) -> str:
    """A name for all that decides which prompts come out: files, settings, tokenizer, evaluation sets.

    A file counts by path, size, time of change, and what it starts and ends with.
    """
    unimportant = {"streaming", "cache_path", "decontaminate_paths"}
    settings = config.model_dump(mode="json", exclude=unimportant)
    settings["sources"] = [{k: v for k, v in source.items() if k != "weight"} for source in settings["sources"]]
    content = {
        "format": FORMAT,
        "settings": settings,
        "held_out": held_out.fingerprint if held_out is not None else None,
        "tokenizer": [str(tokenizer.chat_template), _tokenizer_text(tokenizer)],
        "files": [[_identity(path) for path in each] for each in files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_text(tokenizer: Any) -> str:
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()
    return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])


def _identity(path: str) -> list[str | int]:
    stat = os.stat(path)
    with open(path, "rb") as file:
        ends = file.read(END_BYTES)
        file.seek(max(0, stat.st_size - END_BYTES))
        ends += file.read(END_BYTES)
    return [os.path.abspath(path), stat.st_size, stat.st_mtime_ns, hashlib.sha256(ends).hexdigest()]
