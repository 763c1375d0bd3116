"""Every setting of a run: read from YAML and options, checked, explained. No torch, no Ray.

In: a configuration file, the files it extends, and `--dotted.name value` options.
Out: one frozen `RunConfig`, or a one-line error that names the setting and the nearest valid value; exit codes.
Start with `run.py`, the tree of sections; `load.py` reads into it.
"""
