"""The process environment of a vLLM engine; it must be set before vllm (and torch) are imported."""

import os

from actors.engine import EngineSettings


def prepare_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads at import: quiet, in this process, and on CPUs without a compiler or core binding."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's steps are ours, see engine.py
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # it refuses the logits processor of vocabulary.py
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if settings.device == "cpu":
        threads = str(settings.config.num_threads)
        os.environ["OMP_NUM_THREADS"] = threads
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # several engines share the cores
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # parts of the sampler would need a C++ compiler
