"""Everything around the training loop."""
