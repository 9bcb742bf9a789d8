"""The flags of the commands: those of the settings, made from their declarations, and the rest."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from utils.base_utils import MODELS
from utils.methods.base import Method
from utils.methods.identity import undecided
from utils.methods.registry import METHODS, Settings
from utils.system.arguments import at_least, truth
from utils.system.errors import UserError
from utils.system.options import Option, options_of

OPTIONS = options_of(Settings)


def model_table() -> str:
    """The defaults of each model, for the end of --help."""
    rows = "\n".join(
        f"  {name:<10} {entry.optimizer:<5} {entry.lr:<6g} {entry.epochs:>6} {entry.modes:>6} "
        f"{entry.samples:>8}"
        for name, entry in MODELS.items()
    )
    return f"defaults by model:\n  model      optim lr     epochs  modes  samples\n{rows}"


def group(parser: argparse.ArgumentParser, title: str, words: str | None = None):
    """The parser's group of flags with a title, made where there is none yet."""
    for known in parser._action_groups:
        if known.title == title:
            return known
    return parser.add_argument_group(title, words)


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a method, True or False."""
    words = "each takes '', False, 0 or no to leave it out, True, 1 or yes to have it"
    for method in METHODS:
        option = Option(
            method.default, f"{method.label}: {method.help}", method.value, None, method.metavar,
            None,
        )  # fmt: skip
        _add(group(parser, "methods", words), method.flags, option, dest=method.name)


def add_settings(
    parser: argparse.ArgumentParser, *classes: type, without: Collection[str] = ()
) -> None:
    """A flag for each setting of some classes, in the groups of the classes that declare them."""
    seen = set(without)
    for outermost in classes:
        for block in reversed(outermost.__mro__):
            for name, option in options_of(block).items() if hasattr(block, "group") else ():
                if name not in seen:
                    seen.add(name)
                    _add(group(parser, block.group), (f"--{name}",), option)


def add_setting(container, *names: str) -> None:
    """The flags of some settings."""
    for name in names:
        _add(container, (f"--{name}",), OPTIONS[name])


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Which images."""
    data = group(parser, "data")
    add_setting(data, "dataset", "limit")
    add_data_dir_flag(data)


def add_data_dir_flag(container) -> None:
    """--data_dir."""
    option = Option("data", "where the images are, or are downloaded to", str, None, "DIR", None)
    _add(container, ("--data_dir",), option)


def add_seed_flags(container, options: Mapping[str, Option] = OPTIONS) -> None:
    """--seed, which is among the options, or --seeds."""
    either = container.add_mutually_exclusive_group()
    # As text, which argparse parses: to Python 3.11's, a value that is the default is not given.
    seed = replace(options["seed"], default=str(options["seed"].default))
    _add(either, ("--seed",), seed)
    add_seeds_flag(either)


def add_seeds_flag(container, default: list[int] | None = None) -> None:
    """--seeds, for a run with each."""
    told = "one run" if default is None else " ".join(map(str, default))
    option = Option(
        default, "a run with each of several seeds, and mean ± standard deviation; not with --seed",
        at_least(0), None, "SEED", told,
    )  # fmt: skip
    _add(container, ("--seeds",), option, nargs="+")


def add_device_flag(container) -> None:
    """--device, for `utils.system.devices.choose_device`."""
    option = Option("auto", "cpu, cuda, cuda:1, …", str, None, None, "CUDA if there is one")
    _add(container, ("--device",), option)


def add_compute_flags(container) -> None:
    """--device and --compile: how the model's passes are computed."""
    add_device_flag(container)
    option = Option(
        False, "compile the model by torch.compile, to a graph for each size of batch", truth, None,
        "BOOL", None,
    )  # fmt: skip
    _add(container, ("--compile",), option)


def add_pieces_flag(parser: argparse.ArgumentParser) -> None:
    """--pbfgs_pieces: how much memory P-BFGS takes."""
    option = Option(
        None,
        "images differentiated at once, to need less memory; below a mini-batch, a model with "
        "BatchNorm computes activations twice instead",
        at_least(1), None, "B", "what suits the model",
    )  # fmt: skip
    _add(group(parser, "P-BFGS"), ("--pbfgs_pieces",), option)


def add_draws_flag(parser: argparse.ArgumentParser) -> None:
    """--cmd_draws: how many samples of the weights follow a run."""
    option = Option(
        1, "N samples of the weights for online CMD, and for adaptive CMD where it is on, to see "
        "what depends on the sample", at_least(1), None, "N", None,
    )  # fmt: skip
    _add(group(parser, "CMD"), ("--cmd_draws",), option)


def add_result_flags(
    parser: argparse.ArgumentParser, where: str = "DIR/MODEL, with --seeds to DIR/MODEL_seeds"
) -> None:
    """Where results go, and whether over others."""
    results = group(parser, "results")
    option = Option("results", f"results go to {where}", str, None, "DIR", None)
    _add(results, ("--results_dir",), option)
    option = Option(
        False, "also write the rows of metrics to DIR/…/tensorboard, live, for TensorBoard", truth,
        None, "BOOL", None,
    )  # fmt: skip
    _add(results, ("--tensorboard",), option)
    results.add_argument(
        "--overwrite", action="store_true",
        help="start afresh, and replace what the folder holds (default: go on with it)",
    )  # fmt: skip


def idle(
    args: argparse.Namespace, settings: Settings, selected: Collection[type[Method]]
) -> list[str]:
    """The flags that were given a value and that no selected method depends on."""
    names = undecided(settings, selected, tested=True)
    return [
        f"--{name}"
        for name, option in OPTIONS.items()
        if name in names and getattr(args, name) != option.default
    ]


def markdown(parser: argparse.ArgumentParser) -> str:
    """A parser's flags as a table in Markdown: flag, default, meaning."""
    rows = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for action in parser._actions:
        if action.dest == "help":
            continue
        flags = ", ".join(f"`{flag}`" for flag in action.option_strings)
        words, _, told = action.help.replace("%%", "%").removesuffix(")").rpartition(" (default: ")
        if action.choices is not None and not all(choice in words for choice in action.choices):
            words += f": {', '.join(f'`{choice}`' for choice in action.choices)}"
        rows.append(f"| {flags} | {told} | {words} |")
    return "\n".join(rows)


def _add(container, flags: tuple[str, ...], option: Option, **more: Any) -> None:
    told = f"{option.default}" if option.told is None else option.told
    words = f"{option.help} (default: {told})".replace("%", "%%")
    container.add_argument(
        *flags, type=option.type, default=option.default, choices=option.choices,
        metavar=option.metavar, help=words, **more,
    )  # fmt: skip


def require_once(flag: str, values: Sequence[str | int]) -> None:
    """Check that a flag's values differ.

    Raises:
        UserError: two are the same.
    """
    if len(set(values)) < len(values):
        one = flag.removeprefix("--").removesuffix("s")
        raise UserError(f"{flag} {' '.join(map(str, values))}: give each {one} once")
