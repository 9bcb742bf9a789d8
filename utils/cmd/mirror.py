"""A module that follows another: which of its tensors CMD models, and which are copied."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from .applied import Applied
from .copies import copy_module, unwrapped, writable
from .names import DATA_PARALLEL, WRAPPERS, by_name, modules_by_name, without
from .parallel import refuse_fsdp1, reshard, with_first_buffers
from .vector import (
    Entry,
    assign,
    is_layer,
    named_layers,
    own_where_equal,
    read_vector,
    whole,
    write_pieces,
)

TRAINABLE = "trainable"
Which = Callable[[str], bool] | Literal["trainable"] | None
EXTRA_STATE = "_extra_state"  # torch's name for it in state dictionaries


@dataclass(frozen=True)
class Layer:
    """A tensor that CMD models, as it was when the mirror was made.

    Attributes:
        name: without the names of wrappers.
        shape: its shape.
        dtype: its dtype in the model that is followed, None where it may change.
    """

    name: str
    shape: torch.Size
    dtype: torch.dtype | None


class Mirror:
    """A module that follows another one, the model, which may meanwhile be wrapped.

    Tensors belong together that have the same name, once the names of wrappers are left out. θ
    holds the layers, which are floating-point parameters and persistent buffers; all other tensors
    and extra states are copied as they are.

    Attributes:
        module: it has the layers that are written, and a copy of everything else.
        layers: θ's, in its order.
        constant: int64 [n], where in θ the model is not finite and never changes; θ is 0 there.
        values: float32 [n], what it is there.
    """

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module | None = None,
        which: Which = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Copy the model.

        Args:
            module: a copy of the caller's own, of the same layers; None makes one.
            which: of names, "trainable" or a function that tells whether a floating-point
                parameter or persistent buffer of this name is a layer; None for all of them.
            device: where θ is read to, and the copy that is made; None is the model's.

        Raises:
            ValueError: `which` is none of these, the model cannot be copied, `module` differs from
                it, or there is no layer.
        """
        if not (which in (None, TRAINABLE) or callable(which)):
            raise ValueError(f"{which!r} is neither a function of names nor {TRAINABLE!r} nor None")
        for given in (model, module):
            if given is not None:
                refuse_fsdp1(given)
        model = unwrapped(model)
        found = by_name(model)
        for entry in found.values():
            if isinstance(entry.tensor, UninitializedTensorMixin):
                raise ValueError(f"tensor {entry.name!r} has no shape yet: run the model once")
            if entry.tensor.is_meta:
                raise ValueError(f"tensor {entry.name!r} has no values yet: load the model first")
        self.module = copy_module(model) if module is None else module
        followed = {
            name: entry.tensor
            for name, entry in found.items()
            if is_layer(entry) and _chosen(entry, which)
        }
        if not any(tensor.numel() for tensor in followed.values()):
            raise ValueError("there is no floating-point parameter or buffer to follow")
        first = dict(named_layers(followed))
        self.layers = [Layer(name, tensor.shape, tensor.dtype) for name, tensor in first.items()]
        self._others = [
            Layer(name, entry.tensor.shape, None)
            for name, entry in found.items()
            if name not in first and isinstance(entry.tensor, nn.Parameter)
        ]
        self._left_out = {  # of states: the model has them
            name
            for name, entry in found.items()
            if isinstance(entry.tensor, nn.Parameter)
            and not entry.tensor.requires_grad
            and name not in followed
        }
        self._known = {name for name, entry in found.items() if _is_fixed(entry)}
        self._apart = _apart(found)
        if module is not None:
            self._require_layers(by_name(module), "module=", dtypes=False)
        elif device is not None:
            self.module.to(device)
        device = torch.device(device or next(iter(first.values())).device)
        theta = read_vector(first, torch.empty(self.n_weights, device=device))
        endless, start = ~theta.isfinite(), 0
        for tensor in first.values():
            own = endless[start : start + tensor.numel()]
            if tensor.dtype == torch.float64 and own.any():  # it may be finite, beyond float32
                own &= ~whole(tensor.detach()).isfinite().flatten().to(device)
            start += tensor.numel()
        self.constant = endless.nonzero().flatten()
        self.values = theta[self.constant]

    @property
    def n_weights(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of weights in each layer."""
        return [layer.shape.numel() for layer in self.layers]

    def entries(self, model: nn.Module) -> dict[str, Entry]:
        """Return the parameters and buffers of the model by name, to be read and copied. Where
        several processes train it by DistributedDataParallel, floating-point buffers are those of
        the first one, and all have to call this.

        Raises:
            ValueError: the model is not the one that the mirror was made of.
        """
        refuse_fsdp1(model)
        reshard(model)
        found = by_name(model)
        self._require_layers(found, "the model")
        return with_first_buffers(model, found)

    def read(self, found: Mapping[str, Entry], out: Tensor | None, first: bool) -> Tensor:
        """Read θ, float32 [N], into `out` where it is given.

        Args:
            found: the model's `entries`.
            first: whether nothing was read before: then entries that were not finite when the
                mirror was made may have become so.

        Raises:
            ValueError: θ is not finite.
        """
        if out is None:
            out = torch.empty(self.n_weights, device=self.constant.device)
        theta = read_vector(self._tensors(found), out)
        constant, values = self.constant, self.values
        if len(constant):
            now = theta[constant]
            if first:
                still = ~now.isfinite()
                constant, values, now = constant[still], values[still], now[still]
            changed = (now != values) & ~(now.isnan() & values.isnan())
            if changed.any():
                at = int(constant[changed.nonzero()[0]])
                raise ValueError(f"tensor {self._layer_at(at)!r} moves where it was not finite")
            theta[constant] = 0
        # one pass over θ, whose extremes are not finite where any weight is not
        if not torch.stack(torch.aminmax(theta)).isfinite().all():
            wrong = (~theta.isfinite()).nonzero().flatten()
            name = self._layer_at(int(wrong[0]))
            raise ValueError(f"tensor {name!r} is not finite in float32 ({len(wrong):,} weights)")
        self.constant, self.values = constant, values
        return theta

    def write(self, pieces: Iterable[Tensor], found: Mapping[str, Entry]) -> None:
        """Write θ into the module's layers, in consecutive pieces, float [n] each.

        Args:
            found: the model's `entries`, whose float64 values stay where they equal θ in float32.
        """
        ours = self._tensors(by_name(self.module))
        if len(self.constant):
            pieces = self._with_constants(pieces)
        write_pieces(pieces, ours)
        for layer in self.layers:
            if layer.dtype == torch.float64:
                mine = whole(ours[layer.name].detach())
                own = whole(found[layer.name].tensor.detach()).to(mine.device)
                assign(ours[layer.name], own_where_equal(mine, own))

    def extra_states(self, model: nn.Module) -> dict[str, Any]:
        """Copy the extra states of the model's modules, by name.

        Raises:
            ValueError: a module cannot give it, or it cannot be copied.
        """
        states = {}
        for name, part in modules_by_name(model).items():
            if _has_extra_state(part):
                try:
                    states[name] = copy.deepcopy(part.get_extra_state())
                except Exception as error:
                    raise ValueError(
                        f"the extra state of {name or 'the model'!r}: {error}"
                    ) from error
        return states

    def copy_from(
        self, found: Mapping[str, Entry], layers: bool, states: Mapping[str, Any]
    ) -> None:
        """Copy the tensors of the model, and extra states.

        Args:
            found: the model's `entries`.
            layers: whether the layers, too, which is exact in any dtype; everything else if not.
            states: what `extra_states` gave.

        Raises:
            ValueError: a module refuses its extra state; then nothing has changed.
        """
        self._set_extra_states(states)
        owners, ours = modules_by_name(self.module), by_name(self.module)
        modelled = set() if layers else {id(ours[layer.name].tensor) for layer in self.layers}
        for name, entry in found.items():
            if name not in ours or id(ours[name].tensor) not in modelled:
                copy_entry(entry, ours.get(name), _owner(name, ours, owners))

    def apply_to(self, model: nn.Module) -> Applied:
        """Give the model the module's parameters and buffers.

        Raises:
            ValueError: it is not the model that the mirror was made of.
        """
        refuse_fsdp1(model)
        reshard(model)
        theirs = by_name(model)
        self._require_layers(theirs, "the model", dtypes=False)
        return Applied(model, theirs, by_name(self.module))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs; without tensors of its own, and without parameters
        that are neither modelled nor trained."""
        tensors = {name: entry.tensor for name, entry in by_name(self.module).items()}
        return {
            "tensors": {n: tensor for n, tensor in tensors.items() if n not in self._left_out},
            "left_out": sorted(self._left_out),
            "extra_states": self.extra_states(self.module),
            "constant": self.constant,
            "values": self.values,
        }

    def check_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that `load_state_dict` can take a state.

        Raises:
            ValueError: a layer or another parameter is missing that was not left out, or has
                another shape.
        """
        saved, left_out = _saved(state)[0], set(state.get("left_out", ()))
        others = [layer for layer in self._others if layer.name not in left_out]
        for layer in (*self.layers, *others):
            if layer.name not in saved or saved[layer.name].shape != layer.shape:
                raise ValueError(f"tensor {layer.name!r} was saved with another shape, or not")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, also from one saved before there were constants; parameters that were
        left out of it stay as they are."""
        tensors, states = _saved(state)
        self._set_extra_states(states)
        ours, owners = by_name(self.module), modules_by_name(self.module)
        for name, tensor in tensors.items():
            key = name.rpartition(".")[2]
            entry = ours.get(name, Entry(name, self.module, key, tensor, False))
            copy_entry(entry._replace(tensor=tensor), ours.get(name), _owner(name, ours, owners))
        device = self.constant.device
        self.constant = state.get("constant", self.constant[:0]).to(device)
        self.values = state.get("values", self.values[:0]).to(device)

    def _set_extra_states(self, states: Mapping[str, Any]) -> None:
        owners, before = modules_by_name(self.module), []
        for name, state in states.items():
            if name not in owners:
                continue
            owner = owners[name]
            try:
                old = copy.deepcopy(owner.get_extra_state())
                owner.set_extra_state(state)
                before.append((owner, old))
            except Exception as error:
                for changed, old in before:
                    changed.set_extra_state(old)
                raise ValueError(f"the extra state of {name or 'the model'!r}: {error}") from error

    def _with_constants(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        start = 0
        for piece in pieces:
            stop = start + len(piece)
            here = (self.constant >= start) & (self.constant < stop)
            if here.any():
                piece = piece.clone()
                piece[self.constant[here] - start] = self.values[here]
            yield piece
            start = stop

    def _require_layers(self, found: dict[str, Entry], what: str, dtypes: bool = True) -> None:
        """Raise ValueError naming the first of the tensors found that is not as it was."""
        for layer in (*self.layers, *self._others):
            if layer.name not in found:
                raise ValueError(f"tensor {layer.name!r} is missing from {what}")
            entry = found[layer.name]
            shape, dtype = entry.tensor.shape, entry.tensor.dtype
            if entry.tensor.is_meta:
                raise ValueError(f"tensor {entry.name!r} has no values in {what}")
            if shape != layer.shape:
                raise ValueError(
                    f"tensor {entry.name!r} is {list(shape)} in {what}, it was {list(layer.shape)}"
                )
            if dtypes and layer.dtype not in (dtype, None):
                raise ValueError(
                    f"tensor {entry.name!r} is {dtype} in {what}, it was {layer.dtype}"
                )
            if layer.dtype is not None and not is_layer(entry):
                raise ValueError(
                    f"tensor {entry.name!r} is no longer dense, floating-point and in the state "
                    f"dictionary of {what}"
                )
        for name, entry in found.items():
            if _is_fixed(entry) and name not in self._known:
                raise ValueError(f"tensor {entry.name!r} is new in {what}")
        for name in sorted(self._apart ^ _apart(found)):
            ties = "no longer tied to another" if name not in self._apart else "tied to another now"
            raise ValueError(f"tensor {found[name].name!r} is {ties} in {what}")

    def _tensors(self, found: Mapping[str, Entry]) -> dict[str, Tensor]:
        """The layers among the tensors found, in θ's order."""
        return {layer.name: found[layer.name].tensor for layer in self.layers}

    def _layer_at(self, index: int) -> str:
        """The name of the layer that a weight of θ is in."""
        for layer in self.layers:
            index -= layer.shape.numel()
            if index < 0:
                break
        return layer.name


@torch.no_grad()
def copy_entry(entry: Entry, ours: Entry | None, owner: nn.Module | None) -> None:
    """Copy a parameter or buffer into ours, or put a copy of it in our owner's place where ours is
    of another shape or dtype, cannot be written to, or is not there."""
    mine, theirs = None if ours is None else ours.tensor, entry.tensor
    alike = mine is not None and (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    # a parameter may be that of a copy in another dtype
    if isinstance(mine, nn.Parameter) or (alike and writable(mine)):
        assign(mine, whole(theirs.detach()))
    elif owner is not None and entry.key not in owner._parameters:
        device = entry.tensor.device if ours is None else ours.tensor.device
        value = whole(entry.tensor.detach()).clone().to(device)
        owner.register_buffer(entry.key, value, persistent=entry.persistent)


def _owner(
    name: str, ours: Mapping[str, Entry], owners: Mapping[str, nn.Module]
) -> nn.Module | None:
    """The module of ours that has a tensor of this name, or would have it."""
    # a wrapper and what it wraps may share a name, and each have tensors
    return ours[name].owner if name in ours else owners.get(name.rpartition(".")[0])


def _is_fixed(entry: Entry) -> bool:
    """Whether a tensor of this name may neither come nor go while the model is followed."""
    return isinstance(entry.tensor, nn.Parameter) or is_layer(entry)


def _chosen(entry: Entry, which: Which) -> bool:
    if which is None:
        return True
    if which == TRAINABLE:
        return entry.tensor.requires_grad
    return which(entry.name)


def _apart(found: dict[str, Entry]) -> set[str]:
    """The names of the tensors that could be layers, the first of those tied together."""
    tensors = {name: entry.tensor for name, entry in found.items() if is_layer(entry)}
    return {name for name, _ in named_layers(tensors)}


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _saved(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and extra states of a state, by the names of `by_name`."""
    if "tensors" in state:
        return state["tensors"], state["extra_states"]
    tensors, states = {}, {}  # saved when it was the module's own state dictionary
    for name, value in state["module"].items():
        prefix, _, key = without(name, WRAPPERS).rpartition(".")
        if key == EXTRA_STATE:
            states[prefix] = value
        else:
            tensors[without(name, (*WRAPPERS, DATA_PARALLEL))] = value
    return tensors, states
