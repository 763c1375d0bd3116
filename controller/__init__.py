"""The loop: one asyncio process that moves references from stage to stage and never reads a token.

In: pools of workers, prompts, a run folder. Out: trained steps, each slot exactly once, and published weights.
Start with `pipeline.py` (diagram, table of waits), then `slots.py` (which slot starts, which is trained, and
why no token is too old). `rollouts.py`, `scoring.py` and `learner_group.py` are the stages in the order of the
data.
"""
