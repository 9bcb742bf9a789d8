"""A setting declared once: its default, its bounds and its help, from which its flag is made."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass
from typing import Any

OPTION = "option"  # in a field's metadata


@dataclass(frozen=True)
class Option:
    """What a flag needs to know.

    Attributes:
        default: the flag's value where it is left out; None where it depends on other settings.
        help: what the setting means.
        type: parses the text, and raises argparse.ArgumentTypeError out of bounds.
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
    """A field of a settings class, with its flag (see `Option`).

    Args:
        before: the value that runs had which were made before there was the setting; None is one.
            Left out, it is the default, or the setting has to be recorded where that is None.
    """
    if before is MISSING and default is not None:
        before = default
    known = Option(default, help, type, choices, metavar, told)
    return dataclasses.field(default=before, metadata={OPTION: known})


def options_of(settings: type) -> dict[str, Option]:
    """The options of a settings class by name, inherited ones first; fields without a flag are
    not among them."""
    found = dataclasses.fields(settings)
    return {field.name: field.metadata[OPTION] for field in found if OPTION in field.metadata}
