"""What people look at: while a run is running (`live/`) and afterwards (`page/`).

In: rows, events and status of a run. Out: terminal, dashboards, a report, a summary and a model card.
Start with `advisor.py`, which says what limits a run, and with `live/boards.py`, which all dashboards hang
from.
"""
