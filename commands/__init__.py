"""The command line: a file or folder for each verb.

In: arguments. Out: an exit code, and what the verb does.
Start with `parser.py` for the options of every verb, with `train.py` for a run; `wiring.py` alone knows all
parts of a run and connects them.
"""
