"""`launch.py chaos`: kills workers and nodes of a run that goes on, and reports what became of it."""
