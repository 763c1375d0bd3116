"""The report of a run: files in (`run_data.py`), figures and tables (`page.py`), one HTML file (`command.py`)."""
