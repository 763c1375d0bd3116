"""Where things run and how they travel: configuration, schemas, pools, stages, and the controller."""
