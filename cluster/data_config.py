"""Settings of the training problems: where they come from, and how they become prompts."""

from typing import Any

from pydantic import Field

from cluster.engine_config import Section


class DataConfig(Section):
    """Prompts to roll out on: JSON lines with a `problem` and, for evaluation, an `answer`."""

    train_path: str
    """JSONL file of training problems, one object per line: `{"id", "problem", "answer", "source"}`."""
    system_prompt: str | None = None
    """Text of a system message put before every problem; none by default."""
    template_arguments: dict[str, Any] = Field(default={})
    """Extra arguments of the chat template, e.g. `{enable_thinking: false}` for Qwen3."""
