"""The report of runs: one HTML file that loads nothing from elsewhere.

In: run folders (`run_data.py`). Out: figures as plotly's JSON, tables, `report.html`.
Start with `write.py`, which puts the page together.
"""
