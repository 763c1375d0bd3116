"""The vLLM engine: the only package that imports vllm, and only once an engine is opened."""

from actors.engine import Engine, EngineSettings
from actors.vllm.environment import prepare_environment
from actors.vllm.imports import collection_paused


def open_engine(settings: EngineSettings) -> Engine:
    """Build a vLLM engine in this process; blocks until the model is loaded."""
    prepare_environment(settings)
    with collection_paused():
        from actors.vllm.engine import VllmEngine

    return VllmEngine(settings)
