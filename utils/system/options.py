"""A setting declared once: its default, its bounds and its help, from which its flag is made."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass
from typing import Any

OPTION = "option"  # in a field's metadata


@dataclass(frozen=True)
class Option:
    """What a flag is made of.

    Attributes:
        default: the flag's value where it is left out; None where it depends on other settings.
        help: what the setting means.
        type: parses the text, and raises argparse.ArgumentTypeError for a value out of bounds.
        choices: the values to choose from, None for any.
        metavar: stands for the value in --help.
        told: the default in words, None for the default itself.
    """

    default: Any
    help: str
    type: Callable[[str], Any]
    choices: Collection[str] | None
    metavar: str | None
    told: str | None


def option(
    default: Any,
    help: str,
    type: Callable[[str], Any] = str,
    choices: Collection[str] | None = None,
    metavar: str | None = None,
    told: str | None = None,
    before: Any = MISSING,
) -> Any:
    """Return a field of a settings class, with its flag; for the other arguments see `Option`.

    Args:
        before: the value, which may be None, in runs made before the setting existed. Left out, it
            is the default, and where that is None, every run must have recorded the setting.
    """
    if before is MISSING and default is not None:
        before = default
    known = Option(default, help, type, choices, metavar, told)
    return dataclasses.field(default=before, metadata={OPTION: known})


def same_option(settings: type, name: str) -> Any:
    """Return the field of another settings class, so that both have one declaration."""
    [field] = (field for field in dataclasses.fields(settings) if field.name == name)
    return dataclasses.field(default=field.default, metadata=field.metadata)


def options_of(settings: type) -> dict[str, Option]:
    """Return the options of a settings class by name, inherited ones first, without the fields
    that have no flag."""
    found = dataclasses.fields(settings)
    return {field.name: field.metadata[OPTION] for field in found if OPTION in field.metadata}
