"""`launch.py compare`: several objectives, several seeds, one table.

In: a comparison's settings. Out: a run for each objective and seed, then tables and pictures.
Start with `plan.py`, which makes the runs; `command.py` carries them out, `results.py` sums them up.
"""
