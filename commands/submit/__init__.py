"""Sends a run to a cluster as a job: to the jobs of a Ray cluster, or to Kubernetes as a RayJob."""
