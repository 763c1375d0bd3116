"""Imports of modules that compile a function as they are imported, without its compiler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "TORCHDYNAMO_DISABLE"


@contextmanager
def compiler_unused() -> Iterator[None]:
    """Let `torch.compile` return functions as they are, for the functions that it is given meanwhile.

    DeepSpeed decorates Muon's update with it, whatever the optimizer is. The decorator alone imports the whole
    compiler, which takes longer than everything else that DeepSpeed does at its start.
    """
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before
