"""What a run records: log, sinks, curves, published figures, environment."""
