"""One resumable training run, which knows no method."""
