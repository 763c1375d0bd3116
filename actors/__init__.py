"""Engines, and the workers around them that Ray hosts; no Ray in here.

In: requests for rollouts, rollouts to score, weights. Out: a stream of rollouts as Arrow tables, and the same
tables with the log-probs of teacher and reference.
Start with `rollout_worker.py` and `teacher_worker.py`; `engine.py` is all they know of an inference library.
"""
