"""The methods there are. To add one, write a class (utils.method) and name it here."""

from utils.method import SGD, Method
from utils.method_averages import EMA, LAWA, SWA
from utils.method_cmd import AdaptiveCMD, OnlineCMDMethod, PostHocCMD
from utils.method_embedded import EmbeddedCMD
from utils.method_pbfgs import PBFGS, EqualPBFGS

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
