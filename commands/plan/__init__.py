"""`launch.py plan`: what a run would do, simulated on virtual time by the real controller.

In: a run's configuration, and rates that are given, estimated from data sheets or fitted to a run. Out: a
prediction, and the cheapest worker counts for a target.
Start with `run.py`; `workers.py` and `timing.py` take the time that real workers would.
"""
