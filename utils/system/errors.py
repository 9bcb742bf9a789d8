"""Mistakes that a user can mend."""


class UserError(Exception):
    """One line that names the flag, the value and the fix; the command ends with exit code 2."""


class NoRoomError(UserError):
    """A disk is full, perhaps that of one process among several."""
