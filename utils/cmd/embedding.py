"""Which weights embedded CMD takes out of training next (paper, section 4)."""

import torch
from torch import Tensor


def steadiest(change: Tensor, embedded: Tensor, reference: Tensor, count: int) -> Tensor:
    """Choose the weights whose (a, b) changed least, of those that can still be embedded.

    A reference cannot be, nor can a weight whose change is not finite.

    Args:
        change: float [N], how far each weight's (a, b) moved since the last choice; at least 0.
        embedded: bool [N], the weights that are embedded already.
        reference: int64 [M], the modes' reference weights.
        count: the number of weights to choose, at least 0; fewer are chosen where fewer are left.

    Returns:
        int64 [n], n ≤ count: the steadiest first, those that are equal in θ's order.
    """
    change = change.masked_fill(embedded, torch.inf)
    change[reference] = torch.inf
    left = int(change.isfinite().sum())
    return change.argsort(stable=True)[: min(count, left)]
