"""What travels between processes: tables, notes beside them, and weights.

In: what a worker made. Out: the same in a form that every receiver checks: Arrow tables of rollouts and scores
(`batches.py`), small records for the controller (`notes.py`), buckets of weights with a manifest and checksums
(`weights.py`), and the groups that broadcast them (`collective.py`).
Start with `batches.py` for the way of a prompt, with `weights.py` for the way of a weight version.
"""
