"""What is trained on: duplicates, overlaps with the evaluation and long prompts are dropped and counted."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np

from inputs.data_report import DUPLICATES, OVERLAPS, TOO_LONG, SourceReport
from inputs.overlap import HeldOut, normalised
from inputs.problems import Problem
from inputs.rendering import BATCH, Prompt
from inputs.seen import Seen
from settings.data import DataConfig


class Filters:
    """The filters of a run; they see its sources one after the other, so a duplicate in a later one is dropped."""

    def __init__(
        self, config: DataConfig, held_out: HeldOut | None, render: Callable[[Sequence[Problem]], list[Prompt]]
    ) -> None:
        self._config = config
        self._held_out = held_out
        self._render = render
        self._seen = Seen()

    def pass_on(
        self, problems: Iterable[Problem], report: SourceReport, write: Callable[[Sequence[Prompt]], object]
    ) -> None:
        """Write the prompts of one source that are to be trained on, in their order, and count in `report`.

        ValueError if two of them have the same id.
        """
        ids, digest, rest = Seen(), hashlib.sha256(), iter(problems)
        while batch := list(islice(rest, BATCH)):
            report.rows += len(batch)
            prompts = self._short(self._render(self._clean(self._first(batch, report), report)), report)
            for prompt, is_new in zip(prompts, ids.are_new([each.prompt_id for each in prompts]), strict=True):
                if not is_new:
                    raise ValueError(f"{report.setting}: {report.path} holds the id {prompt.prompt_id!r} twice")
                report.keep(prompt)
                digest.update(f"{prompt.prompt_id}\0{prompt.answer}\0{prompt.source}\0".encode())
                digest.update(np.array(prompt.token_ids, dtype=np.int32).tobytes())
            write(prompts)
        report.sha256 = digest.hexdigest()

    def _first(self, problems: list[Problem], report: SourceReport) -> list[Problem]:
        if not self._config.drop_duplicates:
            return problems
        are_new = self._seen.are_new([normalised(problem.text) for problem in problems])
        for problem, is_new in zip(problems, are_new, strict=True):
            if not is_new:
                report.drop(DUPLICATES, problem.prompt_id)
        return [problem for problem, is_new in zip(problems, are_new, strict=True) if is_new]

    def _clean(self, problems: list[Problem], report: SourceReport) -> list[Problem]:
        if self._held_out is None:
            return problems
        clean: list[Problem] = []
        for problem in problems:
            overlap = self._held_out.overlap(problem.text)
            if overlap is None:
                clean.append(problem)
            else:
                report.drop(OVERLAPS, f"{problem.prompt_id} with {overlap.name}: {overlap.words!r}")
        return clean

    def _short(self, prompts: list[Prompt], report: SourceReport) -> list[Prompt]:
        limit = self._config.max_prompt_tokens
        if limit is None:
            return prompts
        for prompt in prompts:
            if len(prompt.token_ids) > limit:
                report.drop(TOO_LONG, f"{prompt.prompt_id} with {len(prompt.token_ids):,} tokens")
        return [prompt for prompt in prompts if len(prompt.token_ids) <= limit]
