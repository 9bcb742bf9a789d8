"""What embedded CMD does to a model after each local step of a round, on the model's device."""

import numpy as np
import torch
from torch import Tensor, nn

from utils.cmd.vector import layer_sizes, trainable_ranges
from utils.federated.coefficients import Coefficients
from utils.federated.places import Places

# How many sums each mode is added up in, by the type of device. On a CPU one adds in θ's order; on
# a GPU all weights of a mode would wait for each other, to be added to the same place in memory.
SUMS = {"cpu": 1}
MANY_SUMS = 1024


class Projection:
    """Moves a model to the nearest θ in which embedded weights are as their references have it.

    It is the nearest in least squares over the weights that are trained; a reference that is not
    trained stays as it is.
    """

    def __init__(self, known: Coefficients, model: nn.Module) -> None:
        """Prepare for the steps of a round.

        Args:
            known: what is embedded; at least one weight is.
            model: the model that is trained, whose tensors stay what they are.
        """
        device = next(model.parameters()).device

        def of(array: np.ndarray, weights: Tensor) -> Tensor:
            return torch.from_numpy(array).to(device)[weights]

        where = torch.from_numpy(known.embedded).to(device).nonzero().flatten()
        reference, order = torch.from_numpy(known.reference).to(device).sort()
        self._embedded, self._references = Places(model, where), Places(model, reference)
        trained = trained_weights(model)
        self._trained = of(trained, reference)
        self._a, self._b = of(known.a, where), of(known.b, where)
        self._pull = self._a * of(trained, where)

        self._modes, self._sums = len(reference), SUMS.get(device.type, MANY_SUMS)
        self._slot = order.argsort()[of(known.mode, where).long()]
        self._slot += self._modes * (torch.arange(len(where), device=device) % self._sums)
        self._wide = torch.empty_like(self._pull, dtype=torch.float64)
        self._weight = 1 + self._summed(self._pull * self._a)

    def __call__(self, model: nn.Module) -> None:
        """Move the model, in place, without a wait of the host for the device.

        Each operation on an embedded weight is rounded by itself, as the server has it.
        """
        own = self._references.read()
        pulls = self._embedded.read().sub_(self._b).mul_(self._pull)
        nearest = (own + self._summed(pulls)) / self._weight
        nearest = torch.where(self._trained, nearest, own).float()
        self._references.write(nearest)
        values = torch.index_select(nearest.repeat(self._sums), 0, self._slot, out=pulls)
        self._embedded.write(values.mul_(self._a).add_(self._b))

    def _summed(self, values: Tensor) -> Tensor:
        """Sum what each embedded weight has, float32 [n], over modes: float64 [M]."""
        sums = self._wide.new_zeros(self._sums * self._modes)
        sums.index_add_(0, self._slot, self._wide.copy_(values))
        return sums.view(self._sums, self._modes).sum(0)


def trained_weights(model: nn.Module) -> np.ndarray:
    """Find the weights of θ that are parameters which are trained: bool [N]."""
    trained = np.zeros(sum(layer_sizes(model)), dtype=bool)
    for where in trainable_ranges(model):
        trained[where] = True
    return trained
