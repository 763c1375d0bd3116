"""Settings of the training problems: where they come from, and how they become prompts."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from settings.engine import Positive, Section

ColumnName = Annotated[str, Field(min_length=1, max_length=1000)]
"""Of a column, or `extra.answer` of what lies inside one; `choices.0` is the first of a list."""


class ColumnsConfig(Section):
    """Names of the columns of a data set. `extra.answer` is inside `extra`, `choices.0` the first of a list."""

    problem: ColumnName = "problem"
    """Text of the problem; not read where `messages` is set."""
    answer: ColumnName = "answer"
    """Answer to grade against; a data set may have none."""
    id: ColumnName = "id"
    """Id of the problem, the only one in its source; by default the number of the line."""
    source: ColumnName = "source"
    """Which kind of problem it is, which decides between several teachers; `default` without such a column."""
    messages: ColumnName | None = None
    """Chat messages, `[{role, content}, ...]`, instead of a problem: the prompt is all before the assistant's
    last turn."""


class DataSourceConfig(Section):
    """One of several data sets that training problems are taken from."""

    path: str
    """File (JSON lines, JSON, Parquet, also .gz and .zst), folder, or name of a data set of the hub."""
    subset: str | None = None
    """Subset of a data set of the hub (`main`), or folder inside a folder."""
    split: Annotated[str, Field(min_length=1)] = "train"
    """Split of a folder or of a data set of the hub; a single file has none."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub."""
    columns: ColumnsConfig = ColumnsConfig()
    """Names of its columns."""
    source: ColumnName | None = None
    """Source of all its problems, instead of a column."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Share of the slots that take their prompt from here, relative to the other sources' weights."""
    max_rows: Positive | None = None
    """Read only the first so many rows."""
    answer_after: Annotated[str, Field(min_length=1)] | None = None
    """The answer is what follows the last of these in its column: `####` for GSM8K."""


class DataConfig(Section):
    """Prompts to roll out on: rows with a `problem` (or chat messages) and, for grading, an `answer`."""

    train_path: str | None = None
    """Training problems with the columns `problem`, `answer`, `id` and `source`: a file (JSON lines, JSON,
    Parquet, also .gz and .zst), a folder, or a name of the hub. Either this or `sources` must be set."""
    sources: list[DataSourceConfig] = Field(default=[], max_length=1000)
    """Several data sets, or one with other columns: `[{path: a.jsonl, weight: 3}, {path: openai/gsm8k,
    subset: main, columns: {problem: question}, answer_after: "####"}]`."""
    system_prompt: str | None = None
    """Text of a system message put before every problem, and in place of one in chat messages; by default none is
    put, and those in the data stay."""
    template_arguments: dict[str, Any] = Field(default={})
    """Extra arguments of the chat template, e.g. `{enable_thinking: false}` for Qwen3."""
    max_prompt_tokens: Positive | None = None
    """Longer prompts are dropped; by default none is, and one that leaves no room for a response is refused."""
    drop_duplicates: bool = False
    """Of problems with the same text (but for case, spaces and width of letters), keep the first."""
    decontaminate: bool = False
    """Drop problems that share 13 words in a row with a problem of the evaluation sets."""
    decontaminate_paths: list[str] = Field(default=[])
    """Further problems that must not be trained on, beside the run's own evaluation: files with a `problem`."""
    streaming: bool = False
    """Keep prompts in a file that is looked up, not in memory: for data larger than it. All are tokenized once."""
    cache_path: str = "~/.cache/poweropd"
    """Folder for the files of `streaming`; they are used again for as long as data and settings are the same."""

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
        """Every data set by the setting that names it: `data.train_path`, or `data.sources.0` and so on."""
        if self.train_path is not None:
            return {"data.train_path": DataSourceConfig(path=self.train_path)}
        return {f"data.sources.{index}": source for index, source in enumerate(self.sources)}
