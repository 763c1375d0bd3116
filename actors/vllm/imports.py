"""Imports of large libraries without garbage collection, which finds nothing there and takes time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collect no garbage meanwhile, and never again look for it in what there is at the end.

    vllm, torch and transformers make millions of objects that live as long as the process. Each collection while
    they are imported, and each full one afterwards, would walk through all of them: a fifth of the time of an
    import. Where collection is off already it stays off.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
