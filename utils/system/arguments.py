"""Parsing of a command line's values, with errors on one line."""

import argparse
import math
import sys
from collections.abc import Callable


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports errors on one line, takes no abbreviated flags, and keeps the
    line breaks of the description."""

    def __init__(self, **options) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=formatter, allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            flag, _, value = word.partition("=")
            if flag.startswith("-") and value == "--":  # argparse would make an empty list of it
                self.error(f"argument {flag}: {value} is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def one_line(words: str) -> str:
    """Return the words with line breaks and other unprintable characters escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in words
    )


def truth(text: str) -> bool:
    """Return True or False from a flag's value, in upper or lower case."""
    value = text.strip().lower()
    if value in ("", "false", "0", "no"):
        return False
    if value in ("true", "1", "yes"):
        return True
    raise argparse.ArgumentTypeError(f"{text!r} is neither '', False, 0, no nor True, 1, yes")


LARGEST = 2**63 - 1  # whole number that torch takes


def at_least(lowest: int) -> Callable[[str], int]:
    """Return a type for argparse: whole numbers from `lowest` to LARGEST."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{text} is too small: choose {lowest} or more")
        if value > LARGEST:
            raise argparse.ArgumentTypeError(f"{text} is too large: choose {LARGEST} or less")
        return value

    return parse


def positive(text: str, allowed: str = "a finite number above 0") -> float:
    """Parse a finite number above 0; an error says what is allowed."""
    value = _number(text, allowed)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not allowed: choose {allowed}")
    return value


def _number(text: str, allowed: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: choose {allowed}") from None


def up_to(most: float) -> Callable[[str], float]:
    """Return a type for argparse: numbers above 0, up to `most`."""

    def parse(text: str) -> float:
        value = positive(text, f"a number above 0, up to {most:g}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is too large: choose {most:g} or less")
        return value

    return parse


def memory(text: str) -> float:
    """Parse how many updates adaptive CMD remembers, 1 or more."""
    value = positive(text, "a finite number, 1 or more")
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too short: choose 1 or more")
    return value


def memory_or_none(text: str) -> float | None:
    """Parse what `memory` parses, or None from '' or "none"."""
    return None if text.strip().lower() in ("", "none") else memory(text)


def truth_or_count(text: str) -> bool | int:
    """Parse True or False, or a whole number from 2 on."""
    try:
        return truth(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return at_least(2)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither '', False, 0, no nor True, 1, yes nor a whole number from 2 on"
        ) from None


def fraction(text: str) -> float:
    """Parse a number from 0 to below 1."""
    allowed = "a number from 0 to below 1"
    value = _number(text, allowed)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed: choose {allowed}")
    return value
