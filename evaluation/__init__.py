"""Held-out problems: sampled, graded, kept and summed up.

In: engines and problems. Out: graded responses in Parquet files, and a row per benchmark and k.
Start with `evaluation.py`; `metrics.py` has the measures, `results.py` the files.
"""
