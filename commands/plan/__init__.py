"""Whole runs without models: the real controller with workers that only take the time that models would."""
