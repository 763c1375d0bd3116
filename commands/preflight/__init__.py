"""`launch.py preflight`: what would make a run fail or train wrongly, found before it takes devices.

In: configuration, inputs, nodes. Out: a result for each check, with its remedy; `preflight.json` in the run's
folder.
Start with `command.py`, which has the checks in the order of their cost.
"""
