"""Mistakes in what the command on checkpoints was given."""


class InputError(Exception):
    """One line that names the flag or file, its value and the fix."""
