"""Imports go down the list of layers, never up, and no import closes a circle."""

import ast
from graphlib import TopologicalSorter

from tests.conftest import ROOT

# From the top; what stands on one line is one layer, whose parts may not import one another.
LAYERS = """
train_cmd reproduce visualize federated_cmd
utils.federated
utils.results utils.flags
utils.methods
utils.training
utils.base_utils utils.cmd_utils utils.pbfgs_utils
utils.cmd utils.data
utils.storage
utils.system
models
"""
PLACES = {
    name: (number, name) for number, line in enumerate(LAYERS.split("\n")) for name in line.split()
}
ALLOWED = {("reproduce", "train_cmd")}  # whose runs it starts


def modules():
    files = [*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py"), *ROOT.glob("models/*.py")]
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), file


MODULES = dict(modules())


def imported(name, file):
    """The project's modules that a module imports, wherever it does."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            whole = f"{base}{node.module or ''}".strip(".")
            targets = [f"{whole}.{alias.name}" for alias in node.names]
            targets = [each if each in MODULES else whole for each in targets]
        else:
            continue
        yield from (each for each in targets if each in MODULES and each != name)


ARROWS = {name: set(imported(name, file)) for name, file in MODULES.items()}


def place(name):
    while name and name not in PLACES:
        name = name.rpartition(".")[0]
    return PLACES.get(name)


def test_every_module_has_a_place():
    assert [name for name in MODULES if place(name) is None and name != "utils"] == []


def test_imports_go_down():
    climbs = [
        (name, other)
        for name, others in ARROWS.items()
        for other in others - {"utils"}
        if place(other) != place(name)
        and place(other)[0] <= place(name)[0]
        and (name, other) not in ALLOWED
    ]
    assert climbs == []


def test_there_is_no_circle():
    list(TopologicalSorter(ARROWS).static_order())  # raises CycleError
