"""Keeps `data_report.json` in the run folder, and says when a resumed run meets other data than before."""

import json
import logging
from typing import Any

from records.events import Events
from records.run_folder import RunFolder

logger = logging.getLogger(__name__)


def record_data(folder: RunFolder, events: Events, report: dict[str, Any]) -> None:
    """Write the report of the training data, and note it as an event.

    Of data that changed while the run was interrupted, the slots that are left have other prompts: that is noted
    and logged, and no error, since it may be meant.
    """
    before = _read(folder)
    folder.write_data_report(report)
    kept = {source["setting"]: source["kept"] for source in report["sources"]}
    dropped = {source["setting"]: source["dropped"] for source in report["sources"]}
    events.add("data", fingerprint=report["fingerprint"], kept=kept, dropped=dropped)
    if before is not None and before.get("fingerprint") != report["fingerprint"]:
        logger.warning(
            "the training data are not those that the run began with (%s has the report of these): from here on "
            "slots have other prompts",
            folder.data_report,
        )
        events.add("data_changed", reason="other prompts than before the run was resumed")


def _read(folder: RunFolder) -> dict[str, Any] | None:
    if not folder.data_report.is_file():
        return None
    try:
        content = json.loads(folder.data_report.read_text(encoding="utf-8"))
    except ValueError as error:  # it tells nothing, and is written anew
        logger.warning("%s is damaged: %s", folder.data_report, error)
        return None
    return content if isinstance(content, dict) else None
