"""What the checks found, kept with the run: `preflight.json`, and an event; completed as its engines start.

begin -> note_started (replica check) -> note_step (engines against the learner) -> close
"""

from typing import Any

from commands.preflight.golden import record_golden, record_replicas
from controller.context import RunContext
from settings.checks import Checks


class PreflightRecord:
    """Writes the results of one run; nothing is raised for what they say."""

    def __init__(self, context: RunContext, checks: Checks) -> None:
        """`checks` hold what was found before Ray was asked for anything."""
        self._config, self._pools = context.config, context.pools
        self._folder, self._events = context.folder, context.events
        self._checks = checks
        self._has_begun = False
        self._is_complete = False

    def begin(self) -> str:
        """Write what was found so far; returns it in one line."""
        self._has_begun = True
        results = self._checks.results
        warnings = {result.key: result.message for result in results if result.status == "warning"}
        forced = {result.key: result.message for result in results if result.status == "forced"}
        seconds = round(sum(result.seconds for result in results), 3)
        self._events.add(
            "preflight", warnings=warnings, force=sorted(self._checks.force), forced=forced, seconds=seconds
        )
        self._write()
        noted = [f"{key} {status}" for status, keys in (("forced", forced), ("warning", warnings)) for key in keys]
        return f"preflight: {len(results)} checks in {seconds:.2f} s" + (f", {', '.join(noted)}" if noted else "")

    def note_started(self) -> None:
        """The workers have started: enter how far replicas agree."""
        record_replicas(self._checks, self._pools, self._config.scorers)
        self._write()

    def note_step(self, row: dict[str, Any]) -> None:
        """A step was trained; at the first one, enter how far the engines lay from the learner."""
        if not self._is_complete:
            self._is_complete = True
            limit = self._config.preflight.golden_limit
            record_golden(self._checks, self._pools["rollout"], dtype=self._config.engine_dtype, limit=limit)
            self._write()

    def close(self) -> None:
        """The run ends: enter what is missing."""
        if self._has_begun and not self._is_complete:
            self.note_started()
            self.note_step({})

    def _write(self) -> None:
        self._folder.write_preflight(self._checks.report())
