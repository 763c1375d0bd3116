"""Settings of the training data: where it comes from, and how rows become prompts."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from settings.engine import Positive, Section

ColumnName = Annotated[str, Field(min_length=1, max_length=1000)]


class ColumnsConfig(Section):
    """Column names of a data set. `extra.answer` is a field inside `extra`, `choices.0` the first item of a
    list."""

    problem: ColumnName = "problem"
    """Text of the problem; ignored if `messages` is set."""
    answer: ColumnName = "answer"
    """Answer to grade against; optional."""
    id: ColumnName = "id"
    """Id of the problem, unique in its data set; by default the line number."""
    source: ColumnName = "source"
    """Kind of problem, which selects among several teachers; `default` without this column."""
    messages: ColumnName | None = None
    """Chat messages, `[{role, content}, ...]`, instead of a problem: the prompt is everything before the
    assistant's last turn. Further keys of a message go to the chat template."""
    tools: ColumnName | None = "tools"
    """Tools that the assistant may call, a list of JSON schemas (or one JSON text), which go to the chat template;
    null leaves them out."""


class DataSourceConfig(Section):
    """One data set of training problems."""

    path: str
    """File in any of the data formats, folder, or name of a hub data set."""
    subset: str | None = None
    """Subset of a hub data set (`main`), or sub-folder of a folder."""
    split: Annotated[str, Field(min_length=1)] = "train"
    """Split of a folder or hub data set; ignored for a single file."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names."""
    source: ColumnName | None = None
    """Value of `source` for all its problems, instead of a column."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Fraction of slots that take their prompt from here, relative to the weights of the other data sets."""
    max_rows: Positive | None = None
    """Maximum number of rows to read."""
    answer_after: Annotated[str, Field(min_length=1)] | None = None
    """Marker in the answer column: the answer is the text after its last occurrence, e.g. `####` for GSM8K."""


class DataConfig(Section):
    """Training prompts: rows with a `problem` (or chat messages) and, for grading, an `answer`."""

    train_path: str | None = None
    """Training problems with the columns `problem`, `answer`, `id` and `source`: a file in any of the
    data formats, a folder, or the name of a hub data set. Either this or `sources` must be set."""
    sources: list[DataSourceConfig] = Field(default=[], max_length=1000)
    """Several data sets, or one with other column names: `[{path: a.jsonl, weight: 3}, {path: openai/gsm8k,
    subset: main, columns: {problem: question}, answer_after: "####"}]`."""
    system_prompt: str | None = Field(default=None, max_length=100_000)
    """System message, of at most 100,000 characters, added to every problem, replacing any in chat messages; by
    default none is added, and those in the data stay."""
    template_arguments: dict[str, Any] = Field(default={})
    """Additional arguments of the chat template, e.g. `{enable_thinking: false}` for Qwen3."""
    max_prompt_tokens: Positive | None = None
    """Drop longer prompts. By default, the run is refused if a prompt leaves too few tokens for a full
    response."""
    drop_duplicates: bool = False
    """Keep only the first of problems with the same text, ignoring case, spaces and letter width."""
    decontaminate: bool = False
    """Drop problems that share 13 consecutive words with an evaluation problem."""
    decontaminate_paths: list[str] = Field(default=[])
    """Files with more problems to exclude from training, in addition to the run's own evaluation."""
    streaming: bool = False
    """Store tokenized prompts in a memory-mapped file, for data larger than memory."""
    cache_path: str = "~/.cache/poweropd"
    """Folder for the files of `streaming`, which are reused while data and settings are unchanged."""

    @model_validator(mode="after")
    def _exactly_one_origin(self) -> Self:
        if self.train_path is None and not self.sources:
            raise ValueError("data.train_path: required, but not set (nor is data.sources)")
        if self.train_path is not None and self.sources:
            raise ValueError(
                "data.train_path must be null where data.sources is set (nearest valid: make it one of them)"
            )
        if self.decontaminate_paths and not self.decontaminate:
            raise ValueError("data.decontaminate must be true where data.decontaminate_paths is set, got false")
        return self

    @property
    def source_of_field(self) -> dict[str, DataSourceConfig]:
        """The data sets by the setting that names each: `data.train_path`, or `data.sources.0` and so on."""
        if self.train_path is not None:
            return {"data.train_path": DataSourceConfig(path=self.train_path)}
        return {f"data.sources.{index}": source for index, source in enumerate(self.sources)}
