"""Rows of one data file: JSON lines, a JSON list or Parquet, each also compressed by gzip or zstd.

Every row comes with its place, `path:3`: the line of JSON lines, else the number of the row, counted from 1.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]

MAX_LINE_BYTES = 4_000_000
MAX_JSON_BYTES = 2**30
"""Largest JSON list, decompressed: it is read at once, unlike the other formats."""
PARQUET_ROWS = 1024
COMPRESSIONS = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*JSON_LINES, ".json", ".parquet")
"""Of data files; any may be followed by one of `COMPRESSIONS`."""


def format_of(path: str) -> str | None:
    """The suffix that tells the format of a file, without that of a compression; None for an unknown one."""
    name = Path(path).name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def file_rows(path: str) -> Iterator[tuple[str, Row]]:
    """Rows of a file with their places; ValueError naming the file, and the place if it is known, if it is broken.

    A file of an unknown suffix is taken for JSON lines.
    """
    try:
        with _opened(path) as file:
            if format_of(path) == ".parquet":
                yield from _parquet(file, path)
            elif format_of(path) == ".json" and _is_list(file):
                yield from _json_list(file, path)
            else:
                yield from _json_lines(file, path)
    except (pa.ArrowException, EOFError, zlib.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is broken: {_first_line(error)}") from error


def _opened(path: str) -> BufferedReader:
    if path.lower().endswith(".gz"):
        return cast(BufferedReader, gzip.open(path, "rb"))
    if path.lower().endswith(".zst"):
        stream = pa.CompressedInputStream(pa.OSFile(path, "rb"), "zstd")
        return BufferedReader(cast(Any, stream), 2**16)
    return open(path, "rb")


def _json_lines(file: BufferedReader, path: str) -> Iterator[tuple[str, Row]]:
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES} bytes")
        if line.strip():
            place = f"{path}:{number}"
            yield place, _object(_parsed(line, place), place)


def _is_list(file: BufferedReader) -> bool:
    """Whether the JSON of a file is one list, not lines; nothing is read."""
    start = file.peek(4096)
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _json_list(file: BufferedReader, path: str) -> Iterator[tuple[str, Row]]:
    text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: a JSON list of more than {MAX_JSON_BYTES} bytes (nearest valid: JSON lines)")
    for number, row in enumerate(_parsed(text, path), start=1):
        yield f"{path}:{number}", _object(row, f"{path}:{number}")


def _parquet(file: BufferedReader, path: str) -> Iterator[tuple[str, Row]]:
    # A compressed Parquet file is unusual, and needs random access: it is read at once.
    source = pa.BufferReader(file.read()) if path.lower().endswith(COMPRESSIONS) else file
    number = 0
    for batch in pq.ParquetFile(source).iter_batches(batch_size=PARQUET_ROWS):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # texts that are not UTF-8, dates beyond Python's
            raise ValueError(
                f"{path}: one of the rows {number + 1} to {number + len(batch)} is broken: {error}"
            ) from error
        for row in rows:
            number += 1
            yield f"{path}:{number}", row


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except ValueError as error:  # also a wrong encoding, and an integer of too many digits
        raise ValueError(f"{place}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{place}: not valid JSON: it is nested too deep") from error


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place}: needs an object, not a {type(row).__name__}")
    return row


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
