"""A run while it is running: terminal, TensorBoard, Weights & Biases, Prometheus and Grafana.

In: metrics rows, evaluations, events and status. Out: what each dashboard shows of them.
Start with `boards.py`, which tells all of them.
"""
