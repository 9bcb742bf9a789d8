"""P-BFGS: quasi-Newton training in the few directions in which a trajectory varies most.

"Low Dimensional Trajectory Hypothesis is True: DNNs Can Be Trained in Tiny Subspaces", TPAMI 2022.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from utils.cmd.snapshots import Snapshots

SHRINK = 0.4  # of the step, from one trial of the line search to the next
SUFFICIENT = 0.4  # share of the decrease that the slope promises, for a trial to be taken
TRIALS = 20
CURVATURE = 1e-20  # the least y·s that the inverse Hessian learns from
# Elements of the trajectory taken at once on a CPU, in float64 (2 MiB: near the cores' caches).
PIECE_ELEMENTS = 1 << 18


def principal_directions(
    snapshots: Snapshots, n_directions: int, ranges: Sequence[slice] | None = None
) -> Tensor:
    """The directions in which T snapshots vary most, largest first: float32 [d, n], orthonormal.

    The T × T Gram matrix of the centred snapshots has their singular values and left singular
    vectors (float64, summed over chunks); a second pass over the trajectory gives the right ones.
    Signs are such that each direction's largest entry is positive.

    Args:
        ranges: the parts of θ that are looked at, in order, n weights in all; None is all of them.

    Raises ValueError if d < 1 or the snapshots vary in fewer than d directions.
    """
    ranges = [slice(0, snapshots.n_weights)] if ranges is None else list(ranges)
    n_epochs, device = len(snapshots), snapshots.device
    centred = (moved for _, moved in _centred(snapshots, ranges))
    values, vectors = gram_eigenvectors(centred, n_epochs, device)
    values, vectors = values.flip(0), vectors.flip(1)
    rounding = n_epochs * torch.finfo(values.dtype).eps * values[0]
    rank = min(int((values > rounding).sum()), n_epochs - 1)
    if not 1 <= n_directions <= rank:
        raise ValueError(f"{n_directions} directions: the {n_epochs} snapshots span {rank}")

    project = (vectors[:, :n_directions] / values[:n_directions].sqrt()).T.contiguous()
    n_weights = sum(part.stop - part.start for part in ranges)
    directions = torch.empty(n_directions, n_weights, device=device)
    for part, moved in _centred(snapshots, ranges):
        directions[:, part] = project @ moved
    low, high = directions.aminmax(dim=1)
    return directions.mul_(torch.where(high >= -low, 1.0, -1.0)[:, None])


def gram_eigenvectors(
    pieces: Iterable[Tensor], n_epochs: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Eigenvalues, float64 [T], ascending, and eigenvectors, [T, T], of the T × T Gram matrix of
    snapshots.

    Args:
        pieces: the snapshots of some weights each, float [T, n].
    """
    gram = torch.zeros(n_epochs, n_epochs, dtype=torch.float64, device=device)
    for piece in pieces:
        wide = piece.double()
        gram.addmm_(wide, wide.T)
    return torch.linalg.eigh(gram)


def _centred(snapshots: Snapshots, ranges: Sequence[slice]) -> Iterator[tuple[slice, Tensor]]:
    """The weights of the ranges, without their mean over time, a piece at a time.

    Yields (the piece's place among the n weights, float64 [T, m], valid until the next one is
    asked for).
    """
    n_epochs, on_cpu = len(snapshots), snapshots.device.type == "cpu"
    room = torch.empty(0, dtype=torch.float64, device=snapshots.device)
    for part, columns in snapshots.parts():
        width = max(1, PIECE_ELEMENTS // n_epochs) if on_cpu else columns.shape[1]
        before = 0
        for kept in ranges:
            first, last = max(part.start, kept.start), min(part.stop, kept.stop)
            for start in range(first, last, width):
                here = slice(start, min(start + width, last))
                n_weights = here.stop - start
                if room.numel() < n_epochs * n_weights:
                    room = room.new_empty(n_epochs * n_weights)
                moved = room[: n_epochs * n_weights].view(n_epochs, n_weights)
                moved.copy_(columns[:, start - part.start : here.stop - part.start])
                moved -= moved[0].clone()  # exact where the movement is small
                moved -= moved.mean(0)
                place = before + start - kept.start
                yield slice(place, place + n_weights), moved
            before += kept.stop - kept.start


class SubspaceBFGS:
    """Minimises a loss over θ₀ + Pᵀx, where θ are a module's trainable parameters, by BFGS in x.

    Attributes:
        x: float64 [d], where it is, from θ₀, the module's parameters when it began.
        inverse_hessian: B, float64 [d, d], from the identity.
        gradient: of the last step, float64 [d]; None before the first.
        last_step: the last step itself, float64 [d]; None before the first.
    """

    def __init__(
        self,
        module: nn.Module,
        directions: Tensor,
        keep_curvature: bool = True,
        total: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        """Begin at the module's parameters.

        Args:
            directions: P, float32 [d, n], orthonormal rows over the n trainable parameters in
                their order, on the module's device.
            keep_curvature: whether B lasts from step to step; otherwise each step starts it from
                the identity.
            total: sums a tensor over the processes that have a share of each loss; all of them
                make the same steps.

        Raises ValueError if n is another.
        """
        self.module = module
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        n_weights = sum(p.numel() for p in self._parameters)
        if directions.shape[1] != n_weights:
            raise ValueError(f"{directions.shape[1]} weights in P, {n_weights} to be trained")
        self._directions, self._keep, self._total = directions, keep_curvature, total
        self._origin = torch.cat([p.detach().reshape(-1) for p in self._parameters])
        self._theta = self._origin.clone()
        self.x = torch.zeros(len(directions), dtype=torch.float64, device=directions.device)
        self.inverse_hessian = self._identity()
        self.gradient: Tensor | None = None
        self.last_step: Tensor | None = None

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """One BFGS step on the sum of some losses; returns the sum before it.

        losses: each computes its share of the loss from the module as it stands, the same at each
            call but for what the module draws (dropout) and counts (running statistics). The
            first call of each is differentiated and moves the running statistics; the line
            search's calls come with the same draws, in inference mode, and leave them alone.
        """
        draws = _Draws(self.x.device)
        self.module.zero_grad(set_to_none=True)
        values = []
        for share in losses:
            values.append(share())
            values[-1].backward()
        loss = self._sum(values)
        gradient = self._total(self._project())
        self._learn(gradient)
        along = -(self.inverse_hessian @ gradient)
        slope = float(along @ gradient)
        direction = self._directions.T @ along.float()

        size = 1.0
        with _KeptBuffers(self.module):
            for _ in range(TRIALS):
                self._move(direction, size)
                draws.repeat()
                with torch.inference_mode():
                    value = self._sum([share() for share in losses])
                if value <= loss + SUFFICIENT * size * slope:
                    break
                size *= SHRINK
            else:
                size = 0.0  # nothing helped: stay
                self._move(direction, size)
        self._theta.add_(direction, alpha=size)
        self.last_step = size * along
        self.x += self.last_step
        self.gradient = gradient
        return loss

    @torch.no_grad()
    def settle(self) -> None:
        """Set the parameters to θ₀ + Pᵀx, free of what the steps were rounded by."""
        torch.addmv(self._origin, self._directions.T, self.x.float(), out=self._theta)
        self._move(self._theta, 0.0)

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs, with the same θ₀ and P, to go on."""
        names = ("x", "inverse_hessian", "gradient", "last_step")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `settle`d state."""
        for name, value in state.items():
            setattr(self, name, None if value is None else value.to(self.x.device))
        self.settle()

    def _learn(self, gradient: Tensor) -> None:
        """The BFGS update of B from the last step s and the gradients' difference y."""
        if not self._keep:
            self.inverse_hessian = self._identity()
        if self.gradient is None:
            return
        s, y = self.last_step, gradient - self.gradient
        curvature = y @ s
        if curvature > CURVATURE:
            shift = self._identity() - torch.outer(s, y) / curvature
            self.inverse_hessian = shift @ self.inverse_hessian @ shift.T
            self.inverse_hessian += torch.outer(s, s) / curvature

    def _sum(self, values: Sequence[Tensor]) -> float:
        """Of the losses of all shares, in float64."""
        return float(self._total(torch.stack([value.detach() for value in values]).double().sum()))

    def _identity(self) -> Tensor:
        return torch.eye(len(self.x), dtype=self.x.dtype, device=self.x.device)

    def _project(self) -> Tensor:
        """P∇f, float64 [d]; a parameter that the loss does not reach has gradient 0."""
        flat = [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.reshape(-1)
            for p in self._parameters
        ]
        return (self._directions @ torch.cat(flat)).double()

    @torch.no_grad()
    def _move(self, direction: Tensor, size: float) -> None:
        """Set the module's parameters to θ + size · direction."""
        start = 0
        for parameter in self._parameters:
            here = slice(start, start + parameter.numel())
            moved = torch.add(self._theta[here], direction[here], alpha=size)
            parameter.copy_(moved.view(parameter.shape))
            start = here.stop


class _Draws:
    """What torch's global generators will draw from here on, to be drawn again."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._host = device, torch.get_rng_state()
        self._own = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def repeat(self) -> None:
        torch.set_rng_state(self._host)
        if self._own is not None:
            torch.cuda.set_rng_state(self._own, self._device)


class _KeptBuffers:
    """A module's buffers are afterwards what they were before."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = list(module.buffers())

    def __enter__(self) -> None:
        self._before = [buffer.clone() for buffer in self._buffers]

    def __exit__(self, *_) -> None:
        with torch.no_grad():
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)
