"""Online CMD: a model that follows another while it trains (paper, section 4)."""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .clustering import sample_weights
from .fitting import check_modes, decaying_parts, fit_parts, mode_dtype, shared_references
from .mirror import Mirror, Which
from .model import CMDModel
from .moments import ReferenceMoments, coefficients, per_weight
from .ranges import part_weights, ranges
from .ranks import ALONE, Ranks
from .snapshots import Snapshots
from .vector import Entry


class History(Protocol):
    """Where the warm-up's snapshots can be read back, such as a trajectory on disk."""

    @property
    def array(self):
        """float32 [T, N]"""


class OnlineCMD:
    """CMD that follows a model, used as torch.optim.swa_utils.AveragedModel is.

    Call `update_parameters(model)` at regular times, such as once an epoch. The first update is
    number 0; at update F, the warm-up's end, modes and references are found from updates start … F,
    and from then on each update makes a, b the least-squares fit on all updates so far. The state
    is O(N): for each weight its mode, its mean and its covariance with the reference, in float64
    and centred.

    With a memory of H updates (adaptive CMD), update s counts λ^(t − s) in the fit at t, where
    λ = 1 − 1/H: a reference that leaves its mode loses its hold on it, and what is left of a weight
    is an average of its own last updates. Modes and references stay those of the warm-up.

    Test with `cmd(x)`, or in a loop that takes the model, where BatchNorm's statistics can also be
    computed for the reconstructed weights instead of being modelled as weights are:

        with cmd.applied_to(model):
            torch.optim.swa_utils.update_bn(loader, model)
            evaluate(model)

    Attributes:
        module: the model to test or save, with the followed model's own weights before update F,
            and with CMD's from then on.
        model: the current CMDModel, None before update F.
        layers: the names of the tensors that are modelled, in θ's order.
        n_updates: how many updates were made.
    """

    def __init__(
        self,
        model: nn.Module,
        modes: int = 10,
        samples: int = 1000,
        warmup: int = 20,
        seed: int = 0,
        start: int = 0,
        history: History | None = None,
        ranks: Ranks = ALONE,
        memory: float | None = None,
        beside: "OnlineCMD | None" = None,
        parameters: Which = None,
        module: nn.Module | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Prepare to follow a model, which is copied and never changed.

        Args:
            model: what is followed, also where it is compiled, distributed or otherwise wrapped
                later on.
            modes: M, modes at the most.
            samples: K, weights that are clustered.
            warmup: F, in updates.
            seed: of the sample.
            start: the first update that is used, 0 ≤ start < warmup.
            history: where the caller keeps each snapshot before the update; without one, the
                warm-up's snapshots are kept in memory until it ends.
            ranks: the processes that follow the same model, each in charge of a range of its
                weights; they call everything here together.
            memory: H, in updates; None for the paper's, in which all snapshots count alike.
            beside: an OnlineCMD of the same settings but for the memory, which is always updated
                before this one: its sample, modes and references are taken over, and the warm-up
                is kept and fitted once for both.
            parameters: which floating-point parameters and persistent buffers are modelled, a
                function of their names, or "trainable" for those that need gradients now; None
                for all. The others are copied.
            module: what becomes `self.module`, of the same layers; None makes a copy of the model.
            device: where the state is kept, and that copy; None is the model's.

        Raises:
            ValueError: M < 1, K < M, N < M, warmup < 1 or start is not below it, memory < 1;
                `beside`, `module` or `parameters` does not fit; or the model cannot be copied.
        """
        if warmup < 1 or not 0 <= start < warmup:
            raise ValueError(f"a warm-up from update {start} to {warmup} spans no two snapshots")
        check_modes(modes, samples)
        if memory is not None and not memory >= 1:
            raise ValueError(f"a memory of {memory} updates: it must be 1 or more, or None")
        self.memory = None if memory is None or math.isinf(memory) else float(memory)
        modes, samples, seed = int(modes), int(samples), int(seed)  # NumPy's would be pickled code
        self.modes, self.samples, self.warmup, self.start = modes, samples, int(warmup), int(start)
        self._mirror = Mirror(model, module, parameters, device)
        self._n_weights = self._mirror.n_weights
        if modes > self._n_weights:
            raise ValueError(f"{modes} modes are more than the {self._n_weights} weights")
        self.n_updates = 0
        self._sample = sample_weights(self._mirror.sizes, samples, seed)
        self._history, self._ranks, self._beside = history, ranks, beside
        if beside is not None:
            if beside._settings() | {"memory": None} != self._settings() | {"memory": None}:
                raise ValueError(f"beside one with {beside._settings()}, not {self._settings()}")
            if beside._mirror.layers != self._mirror.layers:
                raise ValueError("beside one that models other layers")
            self._sample, beside._shared = beside._sample, True
        self._own = ranks.share(self._n_weights)  # where in θ this rank's weights lie
        self._theta: Tensor | None = None  # the buffer that θ is read into
        self._snapshots: list[Tensor] = []  # of the warm-up, where there is no history
        self._shared = False  # whether another is beside this one
        self._warmup: Snapshots | None = None  # for it, from the fit to the next update
        self._state: dict[str, Tensor] = {}  # mean, covariance, mode of own weights; reference [M]
        self._moments: ReferenceMoments | None = None
        self._reference_history: list[Tensor] = []
        self._applied = 0  # how many blocks of `applied_to` are open

    @property
    def module(self) -> nn.Module:
        return self._mirror.module

    @property
    def layers(self) -> list[str]:
        return [layer.name for layer in self._mirror.layers]

    def train(self, mode: bool = True) -> "OnlineCMD":
        """Put `self.module` in training or evaluation mode."""
        self.module.train(mode)
        return self

    def eval(self) -> "OnlineCMD":
        return self.train(False)

    def __getattr__(self, name: str) -> Any:
        """Return from `self.module` what torch's functions ask of a model, such as update_bn."""
        if name in ("training", "modules", "parameters", "named_parameters", "buffers",
                    "named_buffers"):  # fmt: skip
            return getattr(self.module, name)
        raise AttributeError(f"OnlineCMD has no {name!r}; its module may have")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what `self.module` makes of the arguments."""
        return self.module(*args, **kwargs)

    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of the model and bring `self.module` up to date.

        Args:
            model: where it is a DistributedDataParallel of several processes, all of them call
                this, and take the floating-point buffers of the first, which differ by process.

        Raises:
            ValueError: a weight is not finite, or a tensor is missing, new, or of another shape,
                dtype or tie than it was. Nothing has changed then, and the next call may go on as
                if this one had not been. What is the same non-finite number all the time, such as
                a mask of −∞, is a weight that never moves.
        """
        if self._applied:
            raise ValueError("within applied_to the model does not have its own weights")
        epoch = self.n_updates
        with torch.inference_mode(False), torch.no_grad():
            try:
                found = self._mirror.entries(model)
                theta = self._mirror.read(found, self._theta, first=epoch == 0)
                states = self._mirror.extra_states(model)
                fitted = self._fit(theta) if epoch == self.warmup else None
                self._mirror.copy_from(found, epoch < self.warmup, states)
            except ValueError as error:
                raise ValueError(f"update {epoch}: {error}") from error.__cause__
            self._theta = theta
            if epoch < self.warmup:
                if self._history is None and self._beside is None and epoch >= self.start:
                    self._snapshots.append(theta.cpu().clone())
            elif fitted is not None:
                self._begin(*fitted)
                cmd = self.model
                self._mirror.write([cmd.reconstruct(theta[cmd.reference])], found)
            else:
                self._warmup = None
                self._update(theta, found)
            self.n_updates += 1

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[nn.Module]:
        """Give the model, however wrapped, the parameters and buffers of `self.module` within a
        block, and its own again when the block ends, also by an error; yields the model.

        Raises:
            ValueError: it is another model than the one that is followed.
        """
        applied = self._mirror.apply_to(model)
        self._applied += 1
        try:
            yield model
        finally:
            self._applied -= 1
            applied.take_back()

    @property
    def _decay(self) -> float:
        """λ, how much less a snapshot counts with every update after it."""
        return 1 if self.memory is None else 1 - 1 / self.memory

    @property
    def model(self) -> CMDModel | None:
        if self._moments is None:
            return None
        state, reference = self._state, self._state["reference"]
        a = torch.empty(len(state["mean"]), device=state["mean"].device)
        b = torch.empty_like(a)
        table = self._moments.per_mode()
        for part in ranges(len(a), part_weights(a.device)):
            mean, covariance, mode = (state[name][part] for name in ("mean", "covariance", "mode"))
            a[part], b[part] = coefficients(mean, covariance, per_weight(table, mode))
        a, b, mode = (
            self._ranks.gather(values, self._n_weights) for values in (a, b, state["mode"])
        )
        a[reference], b[reference] = 1, 0
        b[self._mirror.constant] = self._mirror.values
        history = torch.stack(self._reference_history)
        return CMDModel(a, b, mode.clone(), reference.clone(), history)

    def _fit(self, theta: Tensor) -> tuple[Snapshots, ReferenceMoments, Tensor, dict[str, Tensor]]:
        """Find modes and references, or take them over, and the moments over the warm-up: what
        `_begin` takes."""
        if self._beside is None:
            snapshots = self._read_warmup(theta)
            reference = shared_references(snapshots, self._sample, self.modes, self._ranks)
        else:
            snapshots = self._beside._warmup
            if snapshots is None:
                raise ValueError("the OnlineCMD beside this one has to be updated first")
            reference = self._beside._state["reference"]
        columns = snapshots.columns(reference)
        own = self._own
        mean = theta.new_empty(own.stop - own.start, dtype=torch.float64)
        covariance = torch.empty_like(mean)
        if self._beside is None:
            mode = theta.new_empty(len(mean), dtype=mode_dtype(len(reference)))
            moments = ReferenceMoments.of(columns)
            for part, *values in fit_parts(snapshots, reference, moments, own):
                here = slice(part.start - own.start, part.stop - own.start)
                mean[here], covariance[here], mode[here] = values
        else:
            mode = self._beside._state["mode"]
        if self._beside is not None or self.memory is not None:
            ages = torch.arange(len(snapshots) - 1, -1, -1, dtype=mean.dtype, device=mean.device)
            weights = self._decay**ages
            moments = ReferenceMoments.of(columns, weights)
            found = decaying_parts(snapshots, reference, moments, weights, mode, own)
            for part, *values in found:
                here = slice(part.start - own.start, part.stop - own.start)
                mean[here], covariance[here] = values
        state = {"mean": mean, "covariance": covariance, "mode": mode, "reference": reference}
        return snapshots, moments, columns, state

    def _begin(
        self,
        snapshots: Snapshots,
        moments: ReferenceMoments,
        columns: Tensor,
        state: dict[str, Tensor],
    ) -> None:
        """End the warm-up with what `_fit` found."""
        self._warmup = snapshots if self._shared else None
        self._snapshots = []
        self._moments, self._reference_history, self._state = moments, list(columns), state

    def _read_warmup(self, theta: Tensor) -> Snapshots:
        """Snapshots start … F, of which θ is the last."""
        if self._history is not None:
            rows = self._history.array[self.start : self.warmup + 1]
            if len(self._mirror.constant):
                rows = torch.tensor(rows)
                rows[:, self._mirror.constant.cpu()] = 0
            return Snapshots(rows, device=theta.device)
        rows = torch.empty(len(self._snapshots) + 1, len(theta))
        rows[-1] = theta
        for number, row in enumerate(self._snapshots):
            # the list takes the place in the matrix, so that memory never holds all of them twice
            rows[number] = row
            self._snapshots[number] = rows[number]
        return Snapshots(rows, device=theta.device)

    def _update(self, theta: Tensor, found: Mapping[str, Entry]) -> None:
        """Take θ into the state, and write a · w_r + b into the module, in one pass over both."""
        values = theta[self._state["reference"]]
        self._reference_history.append(values)
        self._moments.add(values, self._decay)
        table = torch.cat([self._moments.per_mode(), values[None]])
        updated = self._updated(theta[self._own], table)
        if self._ranks.size > 1:
            own = torch.cat([part.clone() for part in updated])
            updated = iter([self._ranks.gather(own, self._n_weights)])
        self._mirror.write(updated, found)

    def _updated(self, theta: Tensor, table: Tensor) -> Iterator[Tensor]:
        """The new model, float32 [n] a part, each as its weights are taken into the state.

        A part is valid until the next one is asked for: all parts use the same room, which costs
        less than fresh memory for each.

        Args:
            theta: this rank's weights.
        """
        references = (self._state["reference"] - self._own.start).tolist()
        count, decay = self._moments.count, self._decay
        size = min(len(theta), part_weights(theta.device))
        wide, narrow = table.new_empty(5, size), theta.new_empty(4, size)
        for part in ranges(len(theta), size):
            n_weights = part.stop - part.start
            deviation, change, *_ = wide[:, :n_weights]
            of_weight = per_weight(table, self._state["mode"][part], wide[2:, :n_weights])
            _, reference_mean, w_r = of_weight
            mean, covariance = self._state["mean"][part], self._state["covariance"][part]

            # Welford's update: the old deviation times the reference's new one; no large sums
            deviation.copy_(theta[part]).sub_(mean)
            torch.sub(w_r, reference_mean, out=change)
            if decay != 1:
                covariance.mul_(decay)
            covariance.addcmul_(deviation, change)
            mean.add_(deviation, alpha=1 / count)
            coefficients(mean, covariance, of_weight[:2])

            a, b, w_r = narrow[:3, :n_weights].copy_(of_weight)
            modelled = torch.addcmul(b, a, w_r, out=narrow[3, :n_weights])
            for reference in references:
                if part.start <= reference < part.stop:  # a = 1, b = 0, to the last bit
                    modelled[reference - part.start] = theta[reference]
            yield modelled

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs to go on, on any number of ranks: tensors, numbers and
        lists of them.

        It holds the warm-up's snapshots until the warm-up ends, unless `history` does, and no
        parameter that is neither modelled nor trained: the model given to the constructor has them.
        """
        moments = self._moments
        return {
            "settings": self._settings(),
            "n_updates": self.n_updates,
            "sample": self._sample,
            "snapshots": list(self._snapshots),
            "state": {
                name: value if name == "reference" else self._ranks.gather(value, self._n_weights)
                for name, value in self._state.items()
            },
            "moments": None if moments is None else vars(moments).copy(),
            "reference_history": list(self._reference_history),
            "layers": self.layers,
        } | self._mirror.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Go on from the state_dict of an OnlineCMD of an equal model and the same settings.

        Raises ValueError if the settings or layers differ; then nothing has changed.
        """
        saved = {"memory": None} | state["settings"]  # there was none before there was a choice
        if saved != self._settings():
            raise ValueError(f"saved with {saved}, this one has {self._settings()}")
        if state.get("layers", self.layers) != self.layers:
            raise ValueError("saved with other layers: of another model, or other parameters=")
        state = copy.deepcopy(state)
        self._mirror.check_state_dict(state)
        n_updates, snapshots = state["n_updates"], state["snapshots"]
        own = self._history is None and self._beside is None and n_updates <= self.warmup
        if len(snapshots) != (max(0, n_updates - self.start) if own else 0):
            raise ValueError(
                f"saved with {len(snapshots)} snapshots of the warm-up after {n_updates} updates: "
                "history= and beside= have to be as they were"
            )
        device = self._mirror.constant.device
        parameters = {
            name: (value if name == "reference" else value[self._own]).to(device)
            for name, value in state["state"].items()
        }
        history = [values.to(device) for values in state["reference_history"]]
        moments = state["moments"]
        if moments is not None:
            moments = ReferenceMoments(
                moments["count"], moments["mean"].to(device), moments["square"].to(device)
            )
        sample = state["sample"]
        with torch.inference_mode(False), torch.no_grad():
            self._mirror.load_state_dict(state)
        self.n_updates, self._sample, self._snapshots = n_updates, sample, snapshots
        self._state, self._moments, self._reference_history = parameters, moments, history

    def _settings(self) -> dict:
        names = ("modes", "samples", "warmup", "start", "memory")
        settings = {name: getattr(self, name) for name in names}
        return settings | {"n_weights": self._n_weights}
