"""What stands between a connection and a protocol: limits, refusals, logs."""
