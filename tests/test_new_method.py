"""A method is added by its class and its name in the registry."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, SMALL

CLASS = '''
"""The mean of this epoch's weights and some earlier epoch's."""

import copy
from dataclasses import dataclass
from typing import ClassVar

from utils.cmd.vector import read_vector, write_vector
from utils.methods.base import Method
from utils.system.arguments import at_least
from utils.system.options import option
from utils.training.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class MidwaySettings(TrainingSettings):
    group: ClassVar[str] = "averages"

    midway_lag: int = option(2, "epochs that midway looks back", at_least(1), metavar="EPOCHS")


class Midway(Method):
    name, label, flags = "midway", "Midway", ("--midway",)
    help = "average the weights with those of an earlier epoch"
    color = "#123456"
    Settings = MidwaySettings

    def follow(self, epoch, module):
        before = self.run.trajectory[max(0, epoch - self.settings.midway_lag)]
        average = copy.deepcopy(module)
        write_vector((read_vector(module) + before) / 2, average)
        return average
'''
COMMANDS = """
import json
import sys
import train_cmd
from utils.results.pictures import accuracy

def tell(figure, *_):
    texts = [text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()]
    print("LEGEND", *texts)
    return []

accuracy.save = tell
for argv in json.loads(sys.argv[1]):
    try:
        code = train_cmd.main(argv)
    except SystemExit as stopped:
        code = stopped.code
    print("ENDED", code)
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A copy of the suite with the method in it."""
    copy = tmp_path_factory.mktemp("suite")
    for folder in ("utils", "models"):
        shutil.copytree(ROOT / folder, copy / folder)
    shutil.copy(ROOT / "train_cmd.py", copy)
    (copy / "utils/methods/midway.py").write_text(CLASS)
    registry = copy / "utils/methods/registry.py"
    text = registry.read_text().replace("    LAWA,\n)", "    LAWA,\n    Midway,\n)")
    text = text.replace(
        "from utils.methods.pbfgs",
        "from utils.methods.midway import Midway\nfrom utils.methods.pbfgs",
    )
    registry.write_text(text)
    return copy


def run(suite, *commands):
    """(what it printed, its exit code) of each command, and what they wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=suite, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return re.findall(r"(.*?)ENDED (\d+)\n", done.stdout, re.DOTALL), done.stderr


def test_it_is_known_and_compared(suite):
    argv = [*SMALL, "--epochs", "3", "--cmd_online", "", "--cmd_PostHoc", "", "--results_dir", "r"]
    compared = [*argv, "--midway", "1"]  # of the stored run, as any method
    said, error = run(suite, ["--help"], argv, compared, [*argv, "--midway_lag", "1"])
    (words, *_), _, (out, _), _ = said
    assert [code for _, code in said] == ["0", "0", "0", "2"], error
    assert "--midway BOOL" in words and "--midway_lag EPOCHS" in words
    assert "epochs that midway looks back" in " ".join(words.split())
    assert "ahead: 0 epochs of training, 3 tests" in out
    table = out.split("\n\n")[-2]
    assert any(line.startswith("Midway ") for line in table.splitlines())
    legend = next(line for line in out.splitlines() if line.startswith("LEGEND"))
    assert "Midway" in legend
    config = json.loads((suite / "r/lenet/config.json").read_text())
    assert config["settings"]["midway_lag"] == 2
    assert "--midway_lag is 1 here and 2 there" in error
