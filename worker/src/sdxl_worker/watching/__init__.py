"""What operators see: metrics, timings, logs."""
