"""The architectures that the paper compares, one a file; `utils.base_utils.get_model` is their table."""
