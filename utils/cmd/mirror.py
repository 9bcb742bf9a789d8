"""A module that follows another: which of its tensors CMD models, and which are copied."""

import contextlib
import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin

from .copies import copy_module, overlaps, unwrapped
from .vector import Entry, assign, named_layers, read_vector, walk, whole, write_pieces

Which = Callable[[str], bool] | Literal["trainable"] | None
# parts of names that compiling, FSDP, checkpointing of activations and Fabric put in
WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
)
DATA_PARALLEL = "module"  # the same of (Distributed)DataParallel, which a model may use itself


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
            ValueError: the model cannot be copied, `module` differs from it, or there is no layer.
        """
        model = unwrapped(model)
        found = _by_name(model)
        for entry in found.values():
            if isinstance(entry.tensor, UninitializedTensorMixin):
                raise ValueError(f"tensor {entry.name!r} has no shape yet: run the model once")
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
        self._known = {name for name, entry in found.items() if _is_fixed(entry)}
        self._apart = _apart(found)
        if module is not None:
            self._require_layers(_by_name(module), "module=", dtypes=False)
        elif device is not None:
            self.module.to(device)
        device = torch.device(device or next(iter(first.values())).device)
        theta = read_vector(first, torch.empty(self.n_weights, device=device))
        self.constant = (~theta.isfinite()).nonzero().flatten()
        self.values = theta[self.constant]

    @property
    def n_weights(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """The number of weights in each layer."""
        return [layer.shape.numel() for layer in self.layers]

    def read(self, model: nn.Module, out: Tensor | None, first: bool) -> Tensor:
        """Read θ of the model, float32 [N], into `out` where it is given.

        Args:
            first: whether nothing was read before: then entries that were not finite when the
                mirror was made may have become so.

        Raises:
            ValueError: the model is not the one that the mirror was made of, or θ is not finite.
        """
        reshard(model)
        found = _by_name(model)
        layers = self._require_layers(found, "the model")
        if out is None:
            out = torch.empty(self.n_weights, device=self.constant.device)
        theta = read_vector(layers, out)
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

    def write(self, pieces: Iterable[Tensor]) -> None:
        """Write θ into the module's layers, in consecutive pieces, float [n] each."""
        found = _by_name(self.module)
        if len(self.constant):
            pieces = self._with_constants(pieces)
        write_pieces(pieces, {layer.name: found[layer.name].tensor for layer in self.layers})

    def copy_from(self, model: nn.Module, layers: bool) -> None:
        """Copy the tensors and extra states of the model.

        Args:
            layers: whether the layers, too, which is exact in any dtype; everything else if not.
        """
        owners, theirs = _modules_by_name(self.module), _modules_by_name(model)
        states = {
            name: copy.deepcopy(part.get_extra_state())
            for name, part in theirs.items()
            if _has_extra_state(part) and name in owners
        }
        for name, state in states.items():
            owners[name].set_extra_state(state)
        ours = _by_name(self.module)
        modelled = set() if layers else {id(ours[layer.name].tensor) for layer in self.layers}
        for name, entry in _by_name(model).items():
            if name not in ours or id(ours[name].tensor) not in modelled:
                copy_entry(entry, ours.get(name), owners.get(name.rpartition(".")[0]))

    @contextlib.contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the module's parameters and buffers within a block, and its own after."""
        reshard(model)
        ours, theirs = _by_name(self.module), _by_name(model)
        self._require_layers(theirs, "the model", dtypes=False)
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for name, entry in theirs.items():
                if name not in ours or ours[name].tensor.shape != entry.tensor.shape:
                    continue
                tensor, value = entry.tensor, ours[name].tensor.detach()
                mine = whole(tensor.detach())
                value = whole(value).to(mine.device, mine.dtype)
                frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
                if (frozen or overlaps(mine)) and torch.equal(mine, value):
                    continue  # a large model's base need not be there twice
                kept.append((tensor, tensor.detach().clone()))
                assign(tensor, value)
            yield
        finally:
            reshard(model)
            with torch.no_grad():
                for tensor, before in reversed(kept):
                    tensor.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs; without tensors of its own."""
        return {
            "module": self.module.state_dict(),
            "buffers": {
                entry.name: entry.tensor for entry in walk(self.module) if not entry.persistent
            },
            "constant": self.constant,
            "values": self.values,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, or from one saved before there were constants and other buffers."""
        ours = {entry.name: entry for entry in walk(self.module)}
        owners = dict(self.module.named_modules(remove_duplicate=False))
        saved = state["module"]
        layers = {layer.name: layer for layer in self.layers}
        for name, entry in _by_name(self.module).items():
            tensor = saved.get(entry.name)
            if name in layers and (tensor is None or tensor.shape != layers[name].shape):
                raise ValueError(f"tensor {entry.name!r} was saved with another shape, or not")
            if tensor is not None and tensor.shape != entry.tensor.shape:
                copy_entry(entry._replace(tensor=tensor), entry, entry.owner)
        self.module.load_state_dict(saved)
        for name, tensor in state.get("buffers", {}).items():
            prefix, _, key = name.rpartition(".")
            entry = Entry(name, self.module, key, tensor, False)
            copy_entry(entry, ours.get(name), owners.get(prefix))
        device = self.constant.device
        self.constant = state.get("constant", self.constant[:0]).to(device)
        self.values = state.get("values", self.values[:0]).to(device)

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

    def _require_layers(
        self, found: dict[str, Entry], what: str, dtypes: bool = True
    ) -> dict[str, Tensor]:
        """Return the layers among the tensors found, in θ's order.

        Raises ValueError naming the first one that is not as it was.
        """
        for layer in (*self.layers, *self._others):
            if layer.name not in found:
                raise ValueError(f"tensor {layer.name!r} is missing from {what}")
            entry = found[layer.name]
            shape, dtype = entry.tensor.shape, entry.tensor.dtype
            if shape != layer.shape:
                raise ValueError(
                    f"tensor {entry.name!r} is {list(shape)} in {what}, it was {list(layer.shape)}"
                )
            if dtypes and layer.dtype not in (dtype, None):
                raise ValueError(
                    f"tensor {entry.name!r} is {dtype} in {what}, it was {layer.dtype}"
                )
        for name, entry in found.items():
            if _is_fixed(entry) and name not in self._known:
                raise ValueError(f"tensor {entry.name!r} is new in {what}")
        for name in sorted(self._apart ^ _apart(found)):
            ties = "no longer tied to another" if name not in self._apart else "tied to another now"
            raise ValueError(f"tensor {found[name].name!r} is {ties} in {what}")
        return {layer.name: found[layer.name].tensor for layer in self.layers}

    def _layer_at(self, index: int) -> str:
        """The name of the layer that a weight of θ is in."""
        for layer in self.layers:
            index -= layer.shape.numel()
            if index < 0:
                break
        return layer.name


def reshard(model: nn.Module) -> None:
    """Have the modules of FSDP2 let go of whole parameters, which they may keep from a forward pass
    to the next, so that the sharded ones are read and written."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where it was not imported there is none
    if fsdp is not None:
        for part in model.modules():
            if isinstance(part, fsdp.FSDPModule):
                part.reshard()


def is_layer(entry: Entry) -> bool:
    """Whether CMD can model this tensor: a floating-point parameter or persistent buffer."""
    tensor = entry.tensor
    return entry.persistent and tensor.is_floating_point() and tensor.layout == torch.strided


@torch.no_grad()
def copy_entry(entry: Entry, ours: Entry | None, owner: nn.Module | None) -> None:
    """Copy a parameter or buffer into ours, or put a copy of it in our owner's place where ours is
    of another shape or dtype, or is not there."""
    if ours is not None and (ours.tensor.shape, ours.tensor.dtype) == (
        entry.tensor.shape,
        entry.tensor.dtype,
    ):
        assign(ours.tensor, whole(entry.tensor.detach()))
    elif ours is not None and isinstance(ours.tensor, nn.Parameter):
        assign(ours.tensor, whole(entry.tensor.detach()))  # of a copy in another dtype
    elif owner is not None and entry.key not in owner._parameters:
        device = entry.tensor.device if ours is None else ours.tensor.device
        value = whole(entry.tensor.detach()).clone().to(device)
        owner.register_buffer(entry.key, value, persistent=entry.persistent)


def _is_fixed(entry: Entry) -> bool:
    """Whether a tensor of this name may neither come nor go while the model is followed."""
    return isinstance(entry.tensor, nn.Parameter) or is_layer(entry)


def _chosen(entry: Entry, which: Which) -> bool:
    if which is None:
        return True
    if which == "trainable":
        return entry.tensor.requires_grad
    return which(entry.name)


def _apart(found: dict[str, Entry]) -> set[str]:
    """The names of the tensors that could be layers, the first of those tied together."""
    tensors = {name: entry.tensor for name, entry in found.items() if is_layer(entry)}
    return {name for name, _ in named_layers(tensors)}


def _by_name(module: nn.Module) -> dict[str, Entry]:
    """The parameters and buffers by their names without those of wrappers."""
    found: dict[str, Entry] = {}
    entries = list(walk(module))
    for entry in entries:
        name = _without(entry.name, (*WRAPPERS, DATA_PARALLEL))
        if found.setdefault(name, entry).tensor is not entry.tensor:
            break  # the model has a module of the name `module` beside others: keep them apart
    else:
        return found
    names = [_without(entry.name, WRAPPERS) for entry in entries]
    while all(name.startswith(f"{DATA_PARALLEL}.") for name in names):
        names = [name.removeprefix(f"{DATA_PARALLEL}.") for name in names]
    return dict(zip(names, entries, strict=True))


def _modules_by_name(module: nn.Module) -> dict[str, nn.Module]:
    """The modules by their names without those of wrappers; a wrapper's is of what it wraps."""
    return {
        _without(f"{name}.", (*WRAPPERS, DATA_PARALLEL)).rstrip("."): part
        for name, part in module.named_modules(remove_duplicate=False)
    }


def _without(name: str, parts: tuple[str, ...]) -> str:
    """A tensor's name without some parts of the names of its modules."""
    *modules, key = name.split(".")
    return ".".join([*(module for module in modules if module not in parts), key])


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state
