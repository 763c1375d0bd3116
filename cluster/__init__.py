"""Where things run: one Ray, its nodes, and the workers on them, placed, watched, replaced and scaled.

In: how many workers of each role a run wants and what each needs. Out: pools of live actors to call.
Start with `pool.py`; `connection.py` finds or starts Ray, `placement.py` decides where workers go,
`supervisor.py` keeps watch, and `waiting.py` gives every wait a limit.
"""
