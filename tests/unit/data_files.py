"""Rows written in every data format, by suffix: `FILES[".parquet"](rows)`, and the same compressed."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def json_list(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def parquet(rows: Rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


def gzipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


FILES: dict[str, Callable[[Rows], bytes]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_list,
    ".parquet": parquet,
}
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {".gz": gzipped, ".zst": zstd}
