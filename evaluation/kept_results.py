"""The per-problem results of evaluations in a run's folder: `evaluations/step_N/BENCHMARK.parquet`."""

import threading
from collections.abc import Callable

import pyarrow as pa

from evaluation.results import ResultFolder
from records.disk import is_disk_error
from records.events import Events, reason_of
from records.run_folder import RunFolder


class KeptResults:
    """Those of one evaluation. A full disk costs them, with an event, and not the run."""

    def __init__(self, folder: RunFolder, name: str, events: Events) -> None:
        """`name` is `step_N` for the student, a teacher's role for a teacher."""
        self._folder = folder
        self._name = name
        self._results = ResultFolder(folder.evaluation_results / name)
        self._events = events
        self._is_lost = False
        self._lock = threading.Lock()  # `keep` comes from a thread, which may outlive its evaluation

    def begin(self) -> None:
        """Begin anew: what an abandoned evaluation has left is removed."""
        self._attempt(self._results.begin)

    def keep(self, table: pa.Table) -> None:
        """Write graded problems."""
        self._attempt(lambda: self._results.keep(table))

    def finish(self) -> None:
        """Put everything together."""
        self._attempt(self._results.finish)

    def discard(self) -> None:
        """Remove what was kept of an evaluation that came to no end, and take nothing more."""

        def remove() -> None:
            self._is_lost = True
            self._results.discard()

        self._attempt(remove)

    def _attempt(self, write: Callable[[], object]) -> None:
        """Write, unless something is missing already. NotOwnerError if the run's folder is another's by now."""
        with self._lock:
            if self._is_lost:
                return
            self._folder.owner.check()
            try:
                write()
            except OSError as error:
                if not is_disk_error(error):
                    raise
                self._is_lost = True
                self._events.add("evaluation_not_kept", name=self._name, reason=reason_of(error))
