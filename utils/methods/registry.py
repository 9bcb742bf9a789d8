"""The methods there are. To add one, write a class (utils.methods.base) and name it here."""

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

__all__ = ["METHODS", "SGD", "Method", "OnlineCMDMethod"]
