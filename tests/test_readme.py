"""What the READMEs say is so."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import federated_cmd
import train_cmd
import visualize
from tests.conftest import ROOT
from utils import flags
from utils.base_utils import MODELS

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:\bpython|^torchrun\b.*?) (-m utils\.cmd_utils|(?:\w+/)?\w+\.py)(.*)")
PROGRAMS = ("train_cmd", "reproduce", "visualize", "federated_cmd")
PAPERS = ["", "--p_bfgs True", "--cmd_PostHoc ''", "--p_bfgs True --sgd '' --cmd_PostHoc ''"]


def find_readmes():
    """The path from the root, and the text, of each README of the repository."""
    for folder, inside, files in os.walk(ROOT):
        here = Path(folder)
        inside[:] = [
            name
            for name in inside
            if not name.startswith(".")
            and not (here == ROOT and (name == "data" or name.startswith("results")))
            and not (here / name / "pyvenv.cfg").exists()
        ]
        if "README.md" in files:
            path = here / "README.md"
            yield path.relative_to(ROOT).as_posix(), path.read_text()


READMES = dict(sorted(find_readmes()))
MAIN, FEDERATED = READMES["README.md"], READMES["utils/federated/README.md"]
OF_MODELS = READMES["models/README.md"]


def lines_of_code(readme):
    """The lines of its sh blocks, and what stands in backticks outside of blocks."""
    for kind, text in BLOCK.findall(readme):
        if kind == "sh":
            yield from text.splitlines()
    for code in re.findall(r"`([^`]+)`", BLOCK.sub("", readme)):
        yield " ".join(code.split())


def commands_of(readme):
    """(program, arguments) of each command that starts a program of ours."""
    for line in lines_of_code(readme):
        for program, rest in COMMAND.findall(line):
            yield program, tuple(shlex.split(rest, comments=True))
        for rest in re.findall(r"^flwr run .*'arguments=\"(.*)\"'", line):
            yield "federated_cmd.py", tuple(shlex.split(rest))


COMMANDS = sorted({command for readme in READMES.values() for command in commands_of(readme)})
EXAMPLES = [
    (name, text)
    for name, readme in READMES.items()
    for kind, text in BLOCK.findall(readme)
    if kind == "python"
]


# what examples within another library's training loop are given
GIVEN = """
import warnings; warnings.simplefilter("ignore")
from transformers import TrainingArguments
from torch.utils.data import DataLoader, TensorDataset
from tests.test_callbacks import Lit, Rows, bert, images
model, bert, data = Lit(), bert(), Rows()
train_loader, validation_loader = (DataLoader(TensorDataset(*images()), 8) for _ in range(2))
arguments = TrainingArguments("out", num_train_epochs=60, report_to=[])
"""


class Understood(BaseException):
    """Stands in for a program's work, once it has parsed its arguments."""


@pytest.mark.parametrize(
    ("program", "arguments"), COMMANDS, ids=[shlex.join([p, *a]) for p, a in COMMANDS]
)
def test_every_command_is_understood(program, arguments, monkeypatch):
    if program == "-m utils.cmd_utils":
        program = "utils/cmd_utils.py"
    assert (ROOT / program).is_file()
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    real = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *given):
        real(self, *given)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    try:
        module.main(list(arguments))
    except Understood:
        return
    except SystemExit as stopped:
        assert stopped.code == 0 and "--help" in arguments
        return
    pytest.fail("it parsed nothing")


def test_every_program_has_commands():
    named = [program for program, _ in COMMANDS]
    for program in PROGRAMS:
        assert named.count(f"{program}.py") >= 4, program
    for script in (ROOT / "benchmarks").glob("*.py"):
        if "__main__" in script.read_text():
            assert f"benchmarks/{script.name}" in named


def test_every_picture_has_its_command_and_is_shown():
    pictured = "\n".join(READMES.values())
    for picture in visualize.PICTURES:
        assert f"python visualize.py {picture} " in pictured
        assert f"images/{picture}.png)" in pictured


@pytest.mark.parametrize("command", PAPERS)
def test_the_papers_commands_are_given(command):
    assert ("train_cmd.py", tuple(shlex.split(command))) in commands_of(MAIN)


def test_the_tests_command_is_where_it_is_looked_for():
    """.ci/run runs the first line that ends so."""
    first = next(line for line in MAIN.splitlines() if line.endswith("pytest"))
    assert first.startswith("python3 -m venv .venv && ") and "-r requirements-dev.txt" in first


def test_the_first_command_runs(tmp_path, capsys):
    program, command = next(found for found in commands_of(MAIN) if "digits" in found[1])
    assert program == "train_cmd.py"
    assert train_cmd.main([*command, "--results_dir", str(tmp_path)]) == 0
    parts = capsys.readouterr().out.split("\n\n")
    lines = next(part for part in parts if part.startswith("method ")).splitlines()
    assert len(lines) == 5
    assert all(float(line.split("%")[0].split()[-1]) > 90 for line in lines[2:])


@pytest.mark.parametrize("example", EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_examples_run(example, tmp_path, real_run):
    name, code = example
    code = re.sub(r"correlation_modes(?=\.callbacks)", "utils.cmd", code)
    code = code.replace("correlation_modes", "utils.cmd_utils")  # its name where it is installed
    assert len(code.strip().splitlines()) <= 16
    if "CMDCallback" in code:
        code = GIVEN + code
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "lenet").symlink_to(real_run)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (name, done.stderr)
    assert "print(" not in code or "tensor" in done.stdout


def test_there_is_an_example_in_the_first_readme():
    assert "README.md" in dict(EXAMPLES) and len(EXAMPLES) >= 2


def flags_of(readme):
    """The flags in the tables of its section on them, with the defaults told beside them."""
    text = readme.split("\n## Flags\n")[1].split("\n## ")[0]
    found = {}
    for names, defaults in re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", text, re.MULTILINE):
        names = re.findall(r"`(--\w+)`", names)
        values = defaults.split(", ") if len(names) > 1 else [defaults]
        assert len(values) in (1, len(names)), names
        found |= dict(zip(names, values * (len(names) // len(values)), strict=True))
    return found


def flags_in(parser):
    """(flag, its action) of each but --help."""
    for action in parser._actions:
        for flag in set(action.option_strings) - {"-h", "--help"}:
            yield flag, action


def test_every_federated_flag_and_its_default_are_told():
    own, shared = flags_of(FEDERATED), flags_of(MAIN)
    known = dict(flags_in(federated_cmd.build_parser()))
    assert set(own) <= set(known) <= set(own) | set(shared)
    for flag in set(own) - {"--methods", "--transport"}:
        default = known[flag].default
        if isinstance(default, float):
            default = f"{default:g}"
        assert own[flag] == ("none" if default is None else str(default)), flag


def test_the_table_of_flags_is_that_of_the_settings():
    assert flags.markdown(train_cmd.build_parser()) in MAIN


def test_the_table_of_models_is_get_models():
    rows = {
        name: row
        for name, row in re.findall(r"^\| `(\w+)` [^|]*(\|.*)$", OF_MODELS, re.MULTILINE)
        if name in MODELS
    }
    assert set(rows) == set(MODELS)
    for name, entry in MODELS.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        assert cells[1].lower().startswith(entry.optimizer)
        assert cells[2].split(",")[0] == f"{entry.lr:g}"
        assert cells[3:] == [f"{entry.epochs}", f"{entry.modes}", f"{entry.samples:,}"]


@pytest.mark.parametrize("name", READMES)
def test_what_is_linked_and_named_exists(name):
    text = BLOCK.sub("", READMES[name])
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, section = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not section or section in sections_of(target.read_text()), link
    for path in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        assert (ROOT / path).is_file() or (ROOT / name).with_name(path).is_file(), path


def sections_of(readme):
    """The headings as they are spelled in links."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", readme), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_every_readme_can_be_found():
    """From the first one, by links."""
    found, new = set(), {"README.md"}
    while new:
        found |= new
        linked = {
            os.path.normpath(Path(name).parent / link)
            for name in new
            for link in re.findall(r"\]\(([^)#]+README\.md)", READMES[name])
        }
        new = linked - found
    assert found == set(READMES)


def test_the_map_is_of_the_code():
    text = MAIN.split("\n## Map of the code\n")[1].split("\n## ")[0]
    ((_, drawn),) = BLOCK.findall(text)
    named = set(re.findall(r"(?:\w+/)*\w+\.py|(?:\w+/)+", drawn))
    there = [*ROOT.glob("*.py"), *ROOT.glob("utils/*.py")]
    there += [ROOT / "models", *(init.parent for init in ROOT.glob("utils/*/__init__.py"))]
    paths = {path.relative_to(ROOT).as_posix() + "/" * path.is_dir() for path in there}
    assert named == paths - {"utils/__init__.py"}


def test_the_first_readme_is_short():
    assert len(MAIN.splitlines()) <= 200
    for line in BLOCK.sub("", MAIN).splitlines():
        assert len(line) <= 110 or line.startswith(("|", "![")), line
