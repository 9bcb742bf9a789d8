"""federated_cmd.py: the Flower apps, what they do about faults, and the command line."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.conftest import ROOT

pytest.importorskip("flwr")

import federated_cmd
from utils.cmd.vector import read_vector
from utils.federated.client import app, images_by_part, images_of
from utils.federated.contenders import Contender
from utils.federated.exchange import Package
from utils.federated.fedavg import FedAvgServer
from utils.federated.flower import Context, Message, RecordDict
from utils.federated.messages import content_of, package_of, recall, remember
from utils.federated.methods import METHODS
from utils.federated.prepare import prepare
from utils.federated.rounds import Place, checkpoint_of, run_rounds, stored_history
from utils.federated.runners import InProcessGrid
from utils.federated.strategy import ExchangeStrategy
from utils.storage.store import Store

SMALL = ["--model", "lenet", "--dataset", "digits", "--limit", "200", "--clients", "3"]
SMALL += ["--warmup_cmd", "1", "--embed_window", "1", "--apf_every", "1"]
ENVIRONMENT = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}


def settings_of(rounds, *flags):
    argv = [*SMALL, "--rounds", str(rounds), "--methods", "fedavg", *flags]
    args = federated_cmd.build_parser().parse_args(argv)
    return prepare(args)[0]


def place_at(folder, timeout=60.0):
    folder.mkdir(exist_ok=True)
    return Place(Store(folder, "of a test"), torch.device("cpu"), "data", timeout, 548_878)


def accuracies(history):
    return [row.test_acc for row in history]


class Faulty:
    """The client app, but client 1 answers some versions otherwise."""

    def __init__(self, faults):
        self.faults = faults

    def __call__(self, message, context):
        version = 0
        if message.metadata.message_type == "train":
            version = package_of(message.content).numbers["version"]
        fault = self.faults.get(version) if context.node_config["partition-id"] == 1 else None
        if message.metadata.message_type != "train" or fault is None:
            return app(message, context)
        if fault == "raise":
            raise RuntimeError("out of memory")
        if fault == "hang":
            time.sleep(5)
        reply = app(message, context)
        package = package_of(reply.content)
        if fault == "nan":
            package.arrays["values"] = np.full_like(package.arrays["values"], np.nan)
        if fault == "shape":
            package.arrays["values"] = package.arrays["values"][1:]
        if fault == "forget":
            context.state.clear()
        content = content_of(package, part=1)
        content["metrics"] = reply.content["metrics"]
        for record in (content["metrics"], content):
            if fault in record:
                del record[fault]
        return Message(content, reply_to=message)


@pytest.mark.parametrize("method", METHODS)
def test_faults_are_left_out_and_said(method, tmp_path, capsys):
    faults = {1: "raise", 2: "nan", 3: "shape", 5: "forget", 6: None}
    grid = InProcessGrid(Faulty(faults), 3)
    settings = settings_of(9)
    history = run_rounds(grid, settings, method, place_at(tmp_path / "faulty"), lambda words: None)
    notes = capsys.readouterr().err
    for number, words in ((2, "out of memory"), (3, "not finite"), (4, "were expected, not"),
                          (7, "out of step")):  # fmt: skip
        assert re.search(rf"round {number} goes on without client 1: .*{words}", notes), notes
    assert notes.count("note: ") == 4
    assert [row.up_messages for row in history] == [3, 2, 3, 3, 3, 3, 3, 3, 3]
    # who came back has what the others have, bit for bit
    memories = [recall(context.state, f"0.{method}") for context in grid.contexts.values()]
    for memory in memories:
        assert memory["version"] == 8 and np.array_equal(memory["theta"], memories[0]["theta"])
        assert np.array_equal(memory["live"], memories[0]["live"])
    assert accuracies(history)[-1] > 0.5


def test_who_lost_everything_and_missed_a_round_had_something_to_say(tmp_path):
    """It is sent everything, and is not out of step; who only missed a round has lost nothing."""
    grid = InProcessGrid(Faulty({1: "raise", 3: "forget", 4: "raise", 5: None}), 3)
    for contender, lost in (("fedavg-bf16", [False] * 5 + [True, False]), ("fedavg", [False] * 7)):
        place = place_at(tmp_path / contender)
        history = run_rounds(grid, settings_of(7), contender, place, lambda words: None)
        assert [row.lost for row in history] == lost


def test_answers_that_tell_too_little_are_left_out(tmp_path, capsys):
    gone = ["package", "numbers", "order", "metrics", "num-examples", "train_loss"]
    grid = InProcessGrid(Faulty(dict(enumerate(gone, start=1))), 3)
    place = place_at(tmp_path / "faulty")
    history = run_rounds(grid, settings_of(8), "fedavg", place, lambda words: None)
    notes = capsys.readouterr().err
    for number, name in enumerate(gone, start=2):
        assert re.search(rf"round {number} goes on without client 1: not an? .*{name}", notes), (
            notes
        )
    assert notes.count("note: ") == 6 and len(history) == 8


def test_nodes_with_the_same_part_or_none_are_left_out():
    said, left = [], set()

    def client(message, context):
        reply = app(message, context)
        if context.node_id == 4:
            del reply.content["order"]
        return reply

    class Departing(InProcessGrid):
        def get_node_ids(self):
            return [node for node in super().get_node_ids() if node not in left]

    grid = Departing(client, 4)
    for node, part in ((3, 0), (2, 1)):
        grid.contexts[node].node_config["partition-id"] = part
    strategy = ExchangeStrategy(FedAvgServer(np.zeros(3)), {}, 2, 1.0, 0, said.append)
    for _ in range(2):
        strategy.meet(grid, 1.0)
    assert strategy._nodes == {0: 1, 1: 2}
    assert [words.partition(":")[2].split(":")[0] for words in said] == [
        " node 3 is left out", " node 4 is left out"
    ]  # fmt: skip
    left.add(1)  # it is gone, and comes back as another node
    grid.contexts[5] = Context(1, 5, {"partition-id": 0}, RecordDict(), {})
    strategy.have = {0: 7, 1: 7}
    strategy.meet(grid, 1.0)
    assert strategy._nodes == {0: 3, 1: 2} and len(said) == 3  # the other one with part 0
    assert strategy.have == {1: 7} and strategy.forgot
    left.add(3)
    strategy.meet(grid, 1.0)
    assert strategy._nodes == {0: 5, 1: 2}


def test_clients_remember_one_run(tmp_path):
    grid = InProcessGrid(app, 3)
    place = place_at(tmp_path)
    for name in ("apf", "topk", "fedavg"):
        run_rounds(grid, settings_of(3), name, place, lambda words: None)
        for context in grid.contexts.values():
            assert {key.removeprefix("left.").split(".")[1] for key in context.state} == {name}


def test_who_hangs_is_left_out(tmp_path, capsys):
    settings = settings_of(3)
    grid = InProcessGrid(Faulty({1: "hang"}), 3)
    place = place_at(tmp_path / "slow", timeout=4.0)
    history = run_rounds(grid, settings, "fedavg", place, lambda words: None)
    assert "round 2 goes on without client 1: it failed (no answer in 4 s)" in (
        capsys.readouterr().err
    )
    assert len(history) == 3 and history[1].down_messages == 3


def test_what_a_late_client_does_to_its_memory_is_thrown_away():
    ended = threading.Event()

    def late(message, context):
        remember(context.state, "memory", {"count": 1 + recall(context.state, "memory")["count"]})
        if message.metadata.message_type == "query":
            time.sleep(0.5)
            context.state.clear()
            ended.set()
        return Message(content_of(Package()), reply_to=message)

    grid = InProcessGrid(late, 1)
    remember(grid.contexts[1].state, "memory", {"count": 0})
    for kind in ("train", "query"):
        (reply,) = grid.send_and_receive([Message(content_of(Package()), 1, kind)], timeout=0.1)
    assert reply.has_error() and ended.wait(10)
    assert recall(grid.contexts[1].state, "memory") == {"count": 1}


def test_who_hangs_does_not_keep_the_process_from_ending():
    code = """
import torch
from utils.federated.exchange import Package
from utils.federated.flower import Message, MessageType
from utils.federated.messages import content_of
from utils.federated.runners import InProcessGrid, leave

def hung(message, context):
    weights = torch.ones(300, 300, requires_grad=True)
    while True:
        (weights @ weights).sum().backward()

grid = InProcessGrid(hung, 1)
asked = Message(content_of(Package()), 1, MessageType.TRAIN)
reply, = grid.send_and_receive([asked], timeout=0.5)
print(reply.error.reason)
leave(3)
"""
    argv = [sys.executable, "-c", code]
    done = subprocess.run(
        argv, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "no answer in 0.5 s\n", "")


def test_nobody_answers(tmp_path, capsys):
    def broken(message, context):
        if message.metadata.message_type == "train":
            raise OSError("no images here")
        return app(message, context)

    grid = InProcessGrid(broken, 3)
    history = run_rounds(grid, settings_of(3), "apf", place_at(tmp_path / "none"), lambda _: None)
    assert [row.train_loss for row in history] == [None] * 3
    assert len(set(accuracies(history))) == 1
    assert capsys.readouterr().err.count("no images here") == 9


def test_a_fraction_takes_part(tmp_path):
    settings = replace(settings_of(4), fraction=0.6)
    grid = InProcessGrid(app, 3)
    history = run_rounds(grid, settings, "cmd", place_at(tmp_path / "some"), lambda words: None)
    assert [row.down_messages for row in history] == [2] * 4


def test_fedavg_by_hand(tmp_path):
    """Two rounds of FedAvg are means of what the clients' own training gives."""
    from utils.cmd.vector import write_vector
    from utils.training.epochs import TrainingBatches, train_epoch
    from utils.training.optimizers import make_optimizer
    from utils.training.seeding import INITIAL_WEIGHTS, epoch_generator, stream_seed

    settings = settings_of(3)
    path = tmp_path / "ours"
    run_rounds(InProcessGrid(app, 3), settings, "fedavg", place_at(path), lambda words: None)
    ours = torch.load(path / "fedavg/checkpoint.pt", weights_only=True)["server"]["theta"]

    dataset, _ = images_of("lenet", "digits", "data", 200, "cpu")
    parts = images_by_part(settings, dataset)
    torch.manual_seed(stream_seed(settings.seed, INITIAL_WEIGHTS))
    theta = read_vector(settings.build(10)).double()
    for version in range(3):
        total = torch.zeros_like(theta)
        for part, images in enumerate(parts):
            model = settings.build(10).to(memory_format=torch.channels_last)
            write_vector(theta.float(), model)
            optimizer = make_optimizer(settings.optimizer, model, settings.lr, None)
            own = replace(dataset, train=dataset.train.take(torch.from_numpy(images)))
            generator = epoch_generator(0, version * 3 + part, torch.device("cpu"))
            batches = TrainingBatches(own, settings.entry.transform, 128, generator)
            train_epoch(model, batches, optimizer)
            total += len(images) * read_vector(model).double()
        theta = (total / sum(map(len, parts))).float().double()
    assert torch.equal(ours, theta.float())


@pytest.mark.parametrize("method", ["apf", "cmd"])
def test_frozen_and_embedded_weights_are_restrained_in_every_step(method):
    settings = settings_of(3)
    torch.manual_seed(0)
    model = settings.build(10).to(memory_format=torch.channels_last)
    theta = read_vector(model).numpy()
    client = METHODS[method].client(settings, len(theta), None)
    client.theta, client.live = theta.copy(), np.random.default_rng(0).random(len(theta)) < 0.5
    expected, untouched = client.theta[~client.live], client.live.copy()
    if method == "cmd":
        reference = np.flatnonzero(client.live)[:1]
        client.coefficients = replace(
            client.coefficients, a=np.full_like(theta, 2), b=np.full_like(theta, -1),
            reference=reference, embedded=~client.live,
        )  # fmt: skip
        untouched[reference] = False
    for parameter in model.parameters():
        parameter.data.add_(1)
    client.restraint(model)(model)
    after = read_vector(model).numpy()
    np.testing.assert_array_equal(after[untouched], (theta + 1)[untouched])
    if method == "cmd":
        assert after[reference[0]] != theta[reference[0]]
        expected = np.full((~client.live).sum(), 2 * after[reference[0]] - 1)
    np.testing.assert_allclose(after[~client.live], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run left alone."""
    results = tmp_path_factory.mktemp("federated")
    assert federated_cmd.main([*SMALL, "--rounds", "5", "--results_dir", str(results)]) == 0
    return results


def rows_of(results):
    """All but the seconds."""
    path = results / "federated/lenet_iid/rounds.csv"
    return [line.split(",")[:-1] for line in path.read_text().splitlines()]


def test_a_run_leaves_everything(finished):
    folder = finished / "federated/lenet_iid"
    for name in ("config.json", "summary.json", "rounds.csv", "federated.png"):
        assert (folder / name).stat().st_size > 0
    assert len(rows_of(finished)) == 1 + 5 * 5
    for name in METHODS:
        size = (folder / name / "checkpoint.pt").stat().st_size
        assert size <= Contender.named(name).checkpoint_bytes(settings_of(5)) * 548_878


def test_a_checkpoint_in_the_warm_up_is_as_large_as_is_said(tmp_path):
    settings = settings_of(12, "--methods", "cmd", "--warmup_cmd", "9")
    sizes = []

    def tell(history):
        sizes.append((tmp_path / "cmd/checkpoint.pt").stat().st_size)

    place = place_at(tmp_path)
    run_rounds(InProcessGrid(app, 3), settings, "cmd", place, tell)
    said = Contender.named("cmd").checkpoint_bytes(settings) * place.n_weights
    assert 0.9 * said < max(sizes) <= said


def test_again_when_finished_trains_nothing(finished, monkeypatch, capsys):
    before = rows_of(finished)
    monkeypatch.setattr("utils.federated.client.train_epoch", None)
    argv = [*SMALL, "--rounds", "5", "--results_dir", str(finished)]
    assert federated_cmd.main(argv) == 0
    assert rows_of(finished) == before
    out = capsys.readouterr().out
    assert "of FedAvg's" in out and "A-APF" in out and "round" not in out.split("method")[0][99:]


def test_killed_and_started_again_gives_the_same_numbers(finished, tmp_path, capsys):
    argv = [*SMALL, "--rounds", "5", "--methods", "fedavg", "cmd", "--results_dir", str(tmp_path)]
    for words, sent, code in (("FedAvg, round 3", signal.SIGKILL, -9),
                              ("CMD, round 4", signal.SIGTERM, 143)):  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, ROOT / "federated_cmd.py", *argv], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT,
        )  # fmt: skip
        for line in process.stdout:
            if words in line:
                process.send_signal(sent)
                break
        _, error = process.communicate(timeout=60)
        assert process.returncode == code
        if code == 143:
            assert error.strip().startswith("federated_cmd.py: interrupted")
    assert federated_cmd.main(argv) == 0
    note = "note: CMD goes on after round 4: clients have lost what they knew"
    assert note in capsys.readouterr().err
    header, *rows = rows_of(finished)
    assert rows_of(tmp_path) == [header, *(row for row in rows if row[0] in ("fedavg", "cmd"))]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fraction", "1.5"], "--fraction: 1.5 is too large: choose 1"),
        (["--embed_perc", "101"], "--embed_perc: 101 is too large"),
        (["--warmup_cmd", "7", "--rounds", "9"], "--warmup_cmd 7 and --embed_window 1"),
        (["--embed_max", "1e-9"], "--embed_max 1e-09: of 548,878 weights that is none; choose 0"),
        (["--limit", "5"], "5 images are too few for a client; choose --limit 10"),
        (["--alpha", "1e308", "--partition", "dirichlet"], "--alpha: 1e308 is too large"),
        (["--methods", "cmd", "cmd"], "--methods cmd cmd: give each method once"),
        (["--clients", "50"], "--clients 50: 200 images are too few"),
        (["--alpha", "0.0001", "--partition", "dirichlet", "--clients", "11"], "--alpha 0.0001"),
        (["--momentum", "0.5"], "--momentum 0.5 is SGD's"),
        (["--modes", "2000"], "--modes 2000 and --samples 1000: choose"),
        (["--methods", "fedprox"], "fedprox"),
        (["--transport", "fp16"], "fp16"),
        (["--transport", "bf16", "bf16"], "--transport bf16 bf16: give each transport once"),
        (["--topk", "0"], "--topk: 0 is not allowed: choose a number above 0, up to 100"),
        (["--topk", "101"], "--topk: 101 is too large"),
        (["--memory", "0.5"], "--memory: 0.5 is too short: choose 1 or more"),
        (["--memory", "inf"], "--memory: inf is not allowed: choose a finite number, 1 or more"),
        (["--seeds", "1", "1"], "--seeds 1 1: give each seed once"),
        (["--seeds", "1", "--seed", "1"], "--seed"),
        (["--rounds", "0"], "--rounds"),
        (["--apf_alpha", "1"], "--apf_alpha"),
        (["--dataset", "folder", "--data_dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input(flags, words, tmp_path, capsys):
    argv = [*SMALL, "--rounds", "9", "--results_dir", str(tmp_path), *flags]
    try:
        code = federated_cmd.main(argv)
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert code == 2 and words in error and "Traceback" not in error
    assert not any(tmp_path.iterdir())


def test_what_only_cmd_needs_is_nothing_to_others():
    assert settings_of(1, "--samples", "9999999").samples == 9_999_999


def test_rounds_of_before_there_was_lost_are_read(tmp_path):
    place, settings = place_at(tmp_path / "old"), settings_of(2)
    history = run_rounds(InProcessGrid(app, 3), settings, "fedavg", place, lambda rows: None)
    state = place.store.load(checkpoint_of("fedavg"))
    for row in state["history"]:
        assert row.pop("lost") is False
    place.store.save(state, checkpoint_of("fedavg"))
    assert stored_history(place.store, "fedavg") == history


def test_no_room_is_said_before_the_first_round(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "utils.storage.files.shutil.disk_usage", lambda path: SimpleNamespace(free=20_000_000)
    )
    argv = [*SMALL, "--results_dir", str(tmp_path), "--methods", "fedavg", "cmd"]
    assert federated_cmd.main(argv) == 2
    error = capsys.readouterr().err
    assert "(2 checkpoints), 20,000,000 are free" in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_other_settings_are_refused(finished, capsys):
    argv = [*SMALL, "--rounds", "5", "--results_dir", str(finished), "--apf_threshold", "0.1"]
    assert federated_cmd.main(argv) == 2
    assert "--apf_threshold is 0.1 here and 0.05 there" in capsys.readouterr().err


def test_damage_is_named(finished, tmp_path, capsys):
    import shutil

    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy/federated/lenet_iid/cmd/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    argv = [*SMALL, "--rounds", "5", "--results_dir", str(tmp_path / "copy")]
    assert federated_cmd.main(argv) == 2
    assert f"{path} is cut short" in capsys.readouterr().err
