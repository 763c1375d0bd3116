"""What a run reads, read and checked before anything starts.

In: data files or data sets of the hub, model folders. Out: tokenized prompts in a seeded order, tokenizers,
stop tokens and facts about each model.
Start with `inputs.py`, which reads it all; rows come from `rows.py`, pass `filters.py` and `rendering.py` and
end in `prompts.py`. `check_*.py` compare student and teacher.
"""
