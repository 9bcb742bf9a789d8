"""The parameters, buffers and modules of a model by name, however it is wrapped."""

from torch import nn

from .vector import Entry, walk

# parts of names that compiling, FSDP, checkpointing of activations and Fabric put in
WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_original_module",
)
DATA_PARALLEL = "module"  # the same of (Distributed)DataParallel, which a model may use itself


def by_name(model: nn.Module) -> dict[str, Entry]:
    """Return the parameters and buffers by their names without those of wrappers."""
    found: dict[str, Entry] = {}
    entries = list(walk(model))
    for entry in entries:
        name = without(entry.name, (*WRAPPERS, DATA_PARALLEL))
        if found.setdefault(name, entry).tensor is not entry.tensor:
            break  # the model has a module of the name `module` beside others: keep them apart
    else:
        return found
    names = [without(entry.name, WRAPPERS) for entry in entries]
    while all(name.startswith(f"{DATA_PARALLEL}.") for name in names):
        names = [name.removeprefix(f"{DATA_PARALLEL}.") for name in names]
    return dict(zip(names, entries, strict=True))


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by their names without those of wrappers; that of a wrapper and of what it
    wraps is the latter's."""
    return {
        without(f"{name}.", (*WRAPPERS, DATA_PARALLEL)).rstrip("."): part
        for name, part in model.named_modules(remove_duplicate=False)
    }


def without(name: str, parts: tuple[str, ...]) -> str:
    """Return a tensor's name without some parts of the names of its modules."""
    *modules, key = name.split(".")
    return ".".join([*(module for module in modules if module not in parts), key])
