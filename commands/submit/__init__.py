"""`launch.py submit`: a run as a job, on a Ray cluster or as a RayJob on Kubernetes.

In: the arguments of `train`. Out: a job, its log, its state, its end.
Start with `command.py`; `request.py` says what is sent, `ray_jobs.py` and `kubernetes.py` are the two places.
"""
