"""What the README says is so."""

import re
import shlex
import subprocess
import sys

import pytest

import federated_cmd
import reproduce
import train_cmd
import visualize
from tests.conftest import ROOT
from utils.base_utils import MODELS

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(match, comments=True)
    for kind, text in BLOCKS
    if kind == "sh"
    for match in re.findall(r"python train_cmd\.py(.*)", text)
]
PAPERS = ["", "--p_bfgs True", "--cmd_PostHoc ''", "--p_bfgs True --sgd '' --cmd_PostHoc ''"]


def run_python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip


def test_every_command_is_understood():
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        train_cmd.build_parser().parse_args(command)


@pytest.mark.parametrize(
    ("program", "parser"),
    [
        ("reproduce", reproduce.build_parser()),
        ("visualize", visualize.build_parser()),
        ("federated_cmd", federated_cmd.build_parser()),
    ],
)
def test_the_other_commands_are_understood(program, parser):
    commands = re.findall(rf"python {program}\.py([^`\n]*)", README)
    assert len(commands) >= 4
    for command in commands:
        parser.parse_args(shlex.split(command, comments=True))


def test_every_picture_has_its_command():
    for picture in visualize.PICTURES:
        assert f"python visualize.py {picture} " in README and f"images/{picture}.png" in README


@pytest.mark.parametrize("command", PAPERS)
def test_the_papers_commands_are_given(command):
    assert shlex.split(command) in COMMANDS


def test_the_first_command_runs(tmp_path, capsys):
    command = next(command for command in COMMANDS if "digits" in command)
    assert train_cmd.main([*command, "--results_dir", str(tmp_path)]) == 0
    last = capsys.readouterr().out.split("\n\n")[-2]
    assert all(float(line.split("%")[0].split()[-1]) > 90 for line in last.splitlines()[2:])


def test_examples_run(tmp_path, real_run):
    first, second = (text for kind, text in BLOCKS if kind == "python")
    assert len(first.strip().splitlines()) <= 16
    done = run_python(first, tmp_path)
    assert done.returncode == 0 and "tensor" in done.stdout, done.stderr
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "lenet").symlink_to(real_run)
    done = run_python(second, tmp_path)
    assert done.returncode == 0, done.stderr


def flags_of(section):
    """The flags in a section's tables, with the defaults that are told beside them."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = {}
    for flags, defaults in re.findall(r"^\| (`--[^|]*) \| ([^|]*) \|", text, re.MULTILINE):
        names = re.findall(r"`(--\w+)`", flags)
        values = defaults.split(", ") if len(names) > 1 else [defaults]
        found |= dict(zip(names, values * len(names), strict=False))
    return found


def test_every_federated_flag_and_its_default_are_told():
    own, shared = flags_of("Federated learning"), flags_of("Flags")
    parser = federated_cmd.build_parser()
    for action in parser._actions:
        for flag in set(action.option_strings) - {"-h", "--help"}:
            assert flag in own or flag in shared, flag
            if flag in own and flag != "--methods":
                default = action.default if action.type is not float else f"{action.default:g}"
                assert float(own[flag]) == default if _is_number(default) else own[flag] == default


def _is_number(value):
    return isinstance(value, int | float)


def test_every_flag_and_its_default_are_told():
    table = flags_of("Flags")
    parser = train_cmd.build_parser()
    for action in parser._actions:
        for flag in set(action.option_strings) - {"-h", "--help"}:
            assert flag in table, flag
            if action.default not in (None, False, "auto") and flag != "--help":
                assert str(action.default) == table[flag].strip(), flag


def test_the_table_of_models_is_get_models():
    rows = {
        name: row
        for name, row in re.findall(r"^\| `(\w+)` [^|]*(\|.*)$", README, re.MULTILINE)
        if name in MODELS
    }
    assert set(rows) == set(MODELS)
    for name, entry in MODELS.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        assert cells[1].lower().startswith(entry.optimizer)
        assert cells[2].split(",")[0] == f"{entry.lr:g}"
        assert cells[3:] == [f"{entry.epochs}", f"{entry.modes}", f"{entry.samples:,}"]


def test_files_named_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
