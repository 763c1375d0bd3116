"""What a run is checked for before it takes devices: results, limits of nodes, and how they are shown."""
