"""Data file -> rows, in any of the `FORMATS`, each optionally compressed by one of `COMPRESSIONS`.

Every row comes with its place, `path:3`: the line number in JSON lines, else the number of the row, from 1. To add
a format, write a reader and list it in `FORMATS`.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from settings.exit_codes import first_line

Row = dict[str, Any]
Places = Iterator[tuple[str, Row]]


class ArrowRow(dict[str, Any]):
    """A row of a table: all rows have the same keys at every depth, and null is what a row does not have."""


MAX_LINE_BYTES = 4_000_000
MAX_JSON_BYTES = 2**30
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Format:
    """One kind of data file."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[BufferedReader, str], Places]
    note: str
    """What users should know, for the documentation."""


def file_rows(path: str) -> Places:
    """Rows of a file with their places; ValueError naming the file, and the place if known, if it is broken.

    A file with an unknown suffix is read as JSON lines.
    """
    data_format = format_of(path) or FORMATS[0]
    try:
        with _opened(path) as file:
            yield from data_format.read(file, path)
    except (pa.ArrowException, EOFError, zlib.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is broken: {first_line(error)}") from error


def format_of(path: str) -> Format | None:
    """The format of a file by its suffix, which one of a compression may follow; None if it is unknown."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((each for each in FORMATS if name.endswith(each.suffixes)), None)


def _opened(path: str) -> BufferedReader:
    decompress = next((each for suffix, each in COMPRESSIONS.items() if path.lower().endswith(suffix)), None)
    return open(path, "rb") if decompress is None else decompress(path)


def _open_gzip(path: str) -> BufferedReader:
    return cast(BufferedReader, gzip.open(path, "rb"))


def _open_zstd(path: str) -> BufferedReader:
    stream = pa.CompressedInputStream(pa.OSFile(path, "rb"), "zstd")
    return BufferedReader(cast(Any, stream), 2**16)


def _json_lines(file: BufferedReader, path: str) -> Places:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes")
        if line.strip():
            place = f"{path}:{number}"
            yield place, _object(_parsed(line, place), place)


def _json(file: BufferedReader, path: str) -> Places:
    """A JSON list, read at once; anything else is read as JSON lines."""
    if not file.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json_lines(file, path)
        return
    text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: a JSON list of more than {MAX_JSON_BYTES} bytes (nearest valid: JSON lines)")
    for number, row in enumerate(_parsed(text, path), start=1):
        yield f"{path}:{number}", _object(row, f"{path}:{number}")


def _parquet(file: BufferedReader, path: str) -> Places:
    # A compressed Parquet file is unusual, and needs random access: it is read at once.
    source = pa.BufferReader(file.read()) if path.lower().endswith(tuple(COMPRESSIONS)) else file
    number = 0
    for batch in pq.ParquetFile(source).iter_batches(batch_size=PARQUET_ROWS):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # text that is not UTF-8, dates beyond Python's
            raise ValueError(
                f"{path}: one of the rows {number + 1} to {number + len(batch)} is broken: {error}"
            ) from error
        for row in rows:
            number += 1
            yield f"{path}:{number}", ArrowRow(row)


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except ValueError as error:  # also a wrong encoding, and an integer with too many digits
        raise ValueError(f"{place}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not valid JSON: it is nested too deep") from error


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: needs an object, not a {type(row).__name__}")
    return row


FORMATS = (
    Format("JSON lines", (".jsonl", ".ndjson"), _json_lines, "Also any file with another suffix."),
    Format("JSON list", (".json",), _json, f"Read at once, up to {MAX_JSON_BYTES // 2**30} GiB; or JSON lines."),
    Format("Parquet", (".parquet",), _parquet, "Read at once if compressed as a whole."),
)
COMPRESSIONS: dict[str, Callable[[str], BufferedReader]] = {".gz": _open_gzip, ".zst": _open_zstd}
SUFFIXES = tuple(suffix for each in FORMATS for suffix in each.suffixes)
