"""The architectures that the paper compares, one a file; `get_model()` is their table."""
