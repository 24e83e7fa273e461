"""What operators see: names, logs, metrics."""
