"""What can be wrong with a checkpoint."""

from ..errors import InputError


class NoWeightsError(InputError):
    """A file or folder that holds no weights of a model, though nothing is wrong with it."""


class DamagedError(ValueError):
    """Content that contradicts itself or its length; the message says how."""
