"""The answer verifier: is the final answer of a response right?

In: a response as text, and the reference answer. Out: a verdict, with the extracted answer.
Start with `outcome.py`; `comparison.py` compares structure, words and numbers, `algebra.py` what needs sympy,
in worker processes with a time limit (`pool.py`).
"""
