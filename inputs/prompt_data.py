"""The training data: every source is opened, filtered, rendered and tokenized, into memory or into a file.

training = prepare_prompts(config.data, tokenizer, held_out)
training.prompts[0]; training.report.kept
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from inputs.data_report import DataReport, SourceReport
from inputs.filters import Filters, HeldOut
from inputs.mixture import PromptMixture
from inputs.problems import OpenedProblems
from inputs.prompt_table import PromptCache, PromptWriter, cache_key
from inputs.rendering import Prompt, render_prompts
from settings.data import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPrompts:
    """The prompts of all sources, and what became of the data. Of several sources it is a `PromptMixture`."""

    prompts: Sequence[Prompt]
    report: DataReport


def prepare_prompts(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut | None
) -> TrainingPrompts:
    """Read all training data; ValueError with one line for the first mistake, or if a source has nothing left.

    With `streaming` the prompts are in files under `cache_path`, which are made unless they are there.
    """
    opened = [OpenedProblems(source, field) for field, source in config.source_of_field.items()]
    render = partial(
        render_prompts,
        tokenizer=tokenizer,
        system_prompt=config.system_prompt,
        template_arguments=config.template_arguments,
    )
    filters = Filters(config, held_out, render)
    if config.streaming:
        key = cache_key(config, tokenizer, held_out, [each.files for each in opened])
        cache = PromptCache(Path(config.cache_path).expanduser(), key)
        if not cache.is_there():
            _store(cache, config, held_out, filters, opened)
        parts, report = cache.read(len(opened))
    else:
        kept: list[list[Prompt]] = [[] for _ in opened]
        report = _pass_on(config, held_out, filters, opened, [part.extend for part in kept])
        parts = kept
    weights = [source.weight for source in config.source_of_field.values()]
    for source, weight in zip(report.sources, weights, strict=True):
        source.share = weight / sum(weights)
    return TrainingPrompts(parts[0] if len(parts) == 1 else PromptMixture(parts, weights), report)


def _store(
    cache: PromptCache,
    config: DataConfig,
    held_out: HeldOut | None,
    filters: Filters,
    opened: Sequence[OpenedProblems],
) -> None:
    with cache.making() as folder:
        with ExitStack() as stack:
            writers = [stack.enter_context(PromptWriter(path)) for path in cache.parts(folder, len(opened))]
            report = _pass_on(config, held_out, filters, opened, [writer.write for writer in writers])
        cache.write_report(folder, report)


def _pass_on(
    config: DataConfig,
    held_out: HeldOut | None,
    filters: Filters,
    opened: Sequence[OpenedProblems],
    writes: Sequence[Callable[[Sequence[Prompt]], object]],
) -> DataReport:
    """Read every source to its end, and hand its prompts on; ValueError if one has none to hand on."""
    started = time.monotonic()
    reports: list[SourceReport] = []
    for (field, source), problems, write in zip(config.source_of_field.items(), opened, writes, strict=True):
        logger.info("reading %s: %s", field, source.path)
        report = SourceReport(setting=field, path=source.path)
        filters.pass_on(problems, report, write)
        report.unused_columns = problems.unused_columns
        if not report.kept:
            dropped = report.dropped_in_words
            raise ValueError(f"{field}: no problem of {source.path} is left of {report.rows} (dropped: {dropped})")
        reports.append(report)
    seconds = round(time.monotonic() - started, 3)
    return DataReport(reports, held_out.num_problems if held_out is not None else 0, seconds)
