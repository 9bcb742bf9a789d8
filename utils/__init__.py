"""The suite's parts, one idea a file; see the README for where to start."""
