"""The algorithm without the suite: copied under another name, and installed from a wheel."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch

from tests.conftest import ROOT, exit_code
from utils.cmd.__main__ import main

NEEDED = {"torch", "numpy", "scipy", "safetensors", "tqdm"}
OPTIONAL = {"callbacks/lightning.py": {"lightning", "pytorch_lightning"},
            "callbacks/transformers.py": {"transformers"}}  # fmt: skip
EXAMPLE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
MORE = """
import numpy as np
from NAME import CMDModel, fit_cmd, sample_weights

trajectory = np.random.default_rng(0).normal(size=(12, 300)).cumsum(0).astype(np.float32)
fitted = fit_cmd(trajectory, sample_weights([300], 100, 0), modes=4)
fitted.save("cmd.safetensors")
again = CMDModel.load("cmd.safetensors")
assert torch.equal(again.reconstruct(trajectory[-1][again.reference]),
                   fitted.reconstruct(fitted.reference_history[-1]))
torch.save(fitted.state_dict(), "cmd.pt")
assert torch.equal(CMDModel.load("cmd.pt").a, fitted.a)
for epoch, theta in enumerate(trajectory[:3]):
    torch.save({"weight": torch.from_numpy(theta)}, f"epoch_{epoch}.pt")
"""


def check(name, folder, path):
    """The README's example and more, in an empty folder, with nothing of the suite in sight.

    Returns what runs the command once more, with other flags.
    """
    folder.mkdir(exist_ok=True)
    code = EXAMPLE.replace("utils.cmd_utils", name) + MORE.replace("NAME", name)
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = {"cwd": folder, "env": own | {"PYTHONPATH": str(path)}, "capture_output": True}
    done = subprocess.run([sys.executable, "-c", code], text=True, **run)
    assert done.returncode == 0 and "tensor" in done.stdout, done.stderr
    files = [f"epoch_{epoch}.pt" for epoch in range(3)]
    command = [sys.executable, "-m", name, *files, "--modes", "2", "--samples", "50"]
    done = subprocess.run(command, text=True, **run)
    assert done.returncode == 0 and "cmd.safetensors" in done.stdout, done.stderr
    return lambda *more: subprocess.run([*command, *more], text=True, **run)


def test_it_imports_nothing_else():
    for file in (ROOT / "utils/cmd").rglob("*.py"):
        needed = NEEDED | OPTIONAL.get(str(file.relative_to(ROOT / "utils/cmd")), set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for name in names:
                first = name.partition(".")[0]
                assert first in needed or first in sys.stdlib_module_names, (file, name)


def test_copied_under_another_name(tmp_path):
    shutil.copytree(ROOT / "utils/cmd", tmp_path / "here/anything")
    again = check("anything", tmp_path / "empty", tmp_path / "here")
    for wrong, words in (
        (["--modes", "0"], "--modes"),
        (["nothing.pt"], "nothing.pt"),
        ([], "--overwrite"),
    ):
        done = again(*wrong)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("utils", "models", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "-w", folder, folder / "source"],
        check=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


def test_a_wheel_installs_the_algorithm_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"correlation_modes"}
    required = re.findall(r"^Requires-Dist: (\w+)(?!.*extra)", metadata, re.MULTILINE)
    assert set(required) == NEEDED
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site",
         wheel],
        check=True,
    )  # fmt: skip
    check("correlation_modes", tmp_path / "empty", tmp_path / "site")


def test_it_is_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_code(lambda: main(["epoch_0.pt", "epoch_1.pt"])) == 2
    error = capsys.readouterr().err
    assert "without torchrun" in error and error.count("\n") == 1


def test_how_the_command_ends(tmp_path):
    """Its name, SIGTERM, a closed pipe, a terminal of ASCII alone, and an argument of dashes."""
    shutil.copytree(ROOT / "utils/cmd", tmp_path / "anything")
    for epoch, theta in enumerate(torch.arange(600.0).view(3, 200).sin()):
        torch.save({"gewicht_é": theta}, tmp_path / f"epoch_{epoch}.pt")
    slow = (
        "import os, signal, sys, time\n"
        "sys.argv[0] = 'correlation-modes'; import anything.__main__ as m\n"
        "m.fit_files.fit_cmd = lambda *_, **__: (os.kill(os.getpid(), signal.{}), time.sleep(5))\n"
        "sys.exit(m.main())"
    )
    module = ["-m", "anything"]
    for how, more, out, code, words in (
        (module, ["--output", "a"], None, 0, "gewicht_"),
        (module, ["--output", "b"], "closed", 141, ""),
        (module, ["--device=--"], None, 2, "python -m anything: error: argument --device: --"),
        (["-c", slow.format("SIGTERM")], [], None, 143, "correlation-modes: interrupted"),
        (["-c", slow.format("SIGINT")], [], None, 130, "correlation-modes: interrupted"),
    ):
        read, write = os.pipe()
        if out == "closed":
            os.close(read)
        done = subprocess.run(
            [sys.executable, *how, *map(str, sorted(tmp_path.glob("*.pt"))), *more, "--modes=2",
             "--samples=50"],
            cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, text=True,
            stdout=write if out == "closed" else subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(write)
        if out != "closed":
            os.close(read)
        said = done.stderr + (done.stdout or "")
        assert done.returncode == code and words in said, (more, said)
        assert "Traceback" not in said and done.stderr.count("\n") <= 1, said
