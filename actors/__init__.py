"""Prompts -> rollouts -> teacher scores: the workers that Ray hosts, free of Ray themselves."""
