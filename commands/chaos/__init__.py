"""`launch.py chaos`: kills workers and nodes of a running run, and reports what became of it.

In: a run's name, targets, a seed. Out: kills through the run's mailbox, and a report from its folder.
Start with `command.py`; `schedule.py` draws the kills, `report.py` counts what was lost.
"""
