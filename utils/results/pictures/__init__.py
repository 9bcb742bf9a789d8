"""Pictures of a finished run, one a file."""
