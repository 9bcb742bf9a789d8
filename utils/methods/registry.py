"""The methods there are. To add one, write its class (utils.methods.base) and name it here."""

from dataclasses import dataclass

from utils.methods.averages import EMA, LAWA, SWA
from utils.methods.base import SGD, Method
from utils.methods.cmd import AdaptiveCMD, OnlineCMDMethod, PostHocCMD
from utils.methods.embedded import EmbeddedCMD
from utils.methods.pbfgs import PBFGS, EqualPBFGS

METHODS: tuple[type[Method], ...] = (
    SGD,
    PostHocCMD,
    OnlineCMDMethod,
    AdaptiveCMD,
    EmbeddedCMD,
    PBFGS,
    EqualPBFGS,
    EMA,
    SWA,
    LAWA,
)


def _outermost_settings() -> tuple[type, ...]:
    """The settings classes of all methods, but for those that others inherit from."""
    classes = list(dict.fromkeys(method.Settings for method in METHODS))
    return tuple(
        one
        for one in classes
        if not any(other is not one and issubclass(other, one) for other in classes)
    )


# All settings of a run and of every method: two runs with equal ones are one.
Settings = dataclass(frozen=True, kw_only=True)(type("Settings", _outermost_settings(), {}))
