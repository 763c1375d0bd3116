"""Metrics of Ray itself that rules may name; an integration test finds each of them in a real Ray."""

RAY_METRICS = frozenset(
    {
        "ray_node_disk_free",
        "ray_node_disk_usage",
        "ray_node_mem_total",
        "ray_node_mem_used",
        "ray_object_store_available_memory",
        "ray_object_store_memory",
        "ray_object_store_used_memory",
    }
)

GPU_METRICS = frozenset({"ray_node_gram_available", "ray_node_gram_used"})
"""Those that only a node with GPUs exports: a test finds them in the list of Ray's agent."""

RAY_LABELS = frozenset({"SessionName", "ip", "NodeAddress", "Location", "GpuIndex"})
"""Labels of Ray's metrics that rules may name."""
