"""Prompts in Arrow files, written once, looked up through a memory map, and reused while data and settings last.

    with PromptWriter(path) as writer: writer.write(prompts)
    StoredPrompts(path)[7]

`CACHE_PATH/KEY/` holds `part-0.arrow` and so on, one per source, and `report.json`. The folder is created under
another name and renamed when it is complete. Writing holds one batch in memory.
"""

import hashlib
import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, overload

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from inputs.data_report import DataReport
from inputs.filters import HeldOut
from inputs.rendering import Prompt
from settings.data import DataConfig

FORMAT = 2
"""Raised when the same data and settings would give other prompts, or other files."""
END_BYTES = 65_536
"""Of a data file's start and end, which are part of its identity."""
ROWS = 1024
"""Of a record batch, which is the unit of a look-up."""
SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("source", pa.string(), nullable=False),
    ]
)


class PromptSequence(Sequence[Prompt]):
    """Takes indices and slices as a list does; a subclass has `__len__`, and looks up one prompt."""

    @abstractmethod
    def look_up(self, index: int) -> Prompt:
        """The prompt at an index from 0 to the length, exclusive."""

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self.look_up(each) for each in range(*index.indices(len(self)))]
        return self.look_up(range(len(self))[index])


class PromptWriter:
    """Writes a file of prompts, in batches of equal size."""

    def __init__(self, path: Path) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)
        self._waiting: list[Prompt] = []

    def write(self, prompts: Sequence[Prompt]) -> None:
        """Append prompts."""
        self._waiting += prompts
        while len(self._waiting) >= ROWS:
            self._write(self._waiting[:ROWS])
            self._waiting = self._waiting[ROWS:]

    def _write(self, prompts: Sequence[Prompt]) -> None:
        columns = [[getattr(prompt, name) for prompt in prompts] for name in SCHEMA.names]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))

    def __enter__(self) -> "PromptWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._waiting:
            self._write(self._waiting)
        self._writer.close()
        self._sink.close()


class StoredPrompts(PromptSequence):
    """The prompts of a file, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        num_batches = self._reader.num_record_batches
        last = self._reader.get_batch(num_batches - 1).num_rows if num_batches else 0
        self._length = max(0, num_batches - 1) * ROWS + last

    def __len__(self) -> int:
        return self._length

    def look_up(self, index: int) -> Prompt:
        """The prompt at an index."""
        batch, row = divmod(index, ROWS)
        [values] = self._reader.get_batch(batch).slice(row, 1).to_pylist()
        return Prompt(**values)


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
        "tokenizer": [str(tokenizer.chat_template), tokenizer_text(tokenizer)],
        "files": [[_identity(path) for path in each] for each in files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_text(tokenizer: Any) -> str:
    """All that decides which ids a text has."""
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
