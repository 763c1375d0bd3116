"""What is shown of a run while it goes on: terminal, TensorBoard, Weights & Biases, Prometheus and Grafana."""
