"""The vLLM engine: the only package that imports vllm, and only once an engine is opened.

In: engine settings, prompts, rollouts, weights. Out: sampled tokens, log-probs.
Start with `open_engine` below and `engine.py`; `weight_transfer.py` and `staging.py` load weights between steps.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from actors.engine import Engine, EngineSettings


def open_engine(settings: EngineSettings) -> Engine:
    """Build a vLLM engine in this process; blocks until the model is loaded."""
    prepare_environment(settings)
    with collection_paused():
        from actors.vllm.engine import VllmEngine

    return VllmEngine(settings)


def prepare_environment(settings: EngineSettings) -> None:
    """Set what vLLM and torch read at import: quiet, in this process, and on CPUs no compiler or core binding."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's steps are ours, see engine.py
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # it refuses the logits processor of sampling.py
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if settings.device == "cpu":
        threads = str(settings.config.num_threads)
        os.environ["OMP_NUM_THREADS"] = threads
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # several engines share the cores
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # parts of the sampler would need a C++ compiler


@contextmanager
def collection_paused() -> Iterator[None]:
    """Disable garbage collection inside the block, and exempt what exists at its end from later collections.

    vllm, torch and transformers create millions of objects that live as long as the process. Every collection
    during their import, and every full one afterwards, would traverse them: a fifth of the import time.
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
