"""Images, from their files to batches for a model."""
