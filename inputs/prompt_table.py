"""Prompts in an Arrow file: written once, then looked up one by one through a memory map.

    with PromptWriter(path) as writer: writer.write(prompts)
    StoredPrompts(path)[7]

Memory holds one batch while writing, and while reading what the operating system keeps of the file.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from inputs.prompt_sequence import PromptSequence
from inputs.rendering import Prompt

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
