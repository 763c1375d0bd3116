"""Scored rollouts -> reward -> gradient -> new weights: a DeepSpeed rank per process, without Ray or engines.

In: scored tables of one step. Out: the numbers of that step, published weights, checkpoints.
Start with `rank.py`, one step from start to end; `collate.py` packs tokens, `loss.py` has the objective,
`deepspeed_backend.py` is all that knows DeepSpeed.
"""
