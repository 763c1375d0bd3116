"""Reward -> gradient -> new weights: one DeepSpeed rank per process, free of Ray and of inference engines."""
