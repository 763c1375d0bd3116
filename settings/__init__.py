"""Every setting of a run: read, checked and explained."""
