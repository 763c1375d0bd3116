"""What a run leaves on disk, and how it is read back after a crash.

In: rows, events, checkpoints. Out: `runs/NAME/` with metrics, ledger, events, timeline and checkpoints; each is
complete or absent, wherever a process dies.
Start with `run_folder.py`; `ledger.py` proves what was trained, `checkpoints.py` says when a checkpoint counts.
"""
