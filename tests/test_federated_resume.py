"""A federated run that was stopped and given again ends as the one left alone, bytes included."""

import contextlib
import io
import itertools
import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

pytest.importorskip("flwr")

import federated_cmd
from tests.test_federated_cmd import Faulty
from utils.base_utils import MODELS
from utils.federated.client import app
from utils.federated.exchange import Package
from utils.federated.flower import Message, become_server, set_identity, wire_bytes
from utils.federated.messages import content_of, package_of
from utils.federated.methods import METHODS
from utils.federated.partition import partition
from utils.federated.prepare import prepare, require_same
from utils.federated.rounds import Place, checkpoint_of, run_rounds
from utils.federated.runners import InProcessGrid
from utils.federated.settings import FederatedSettings
from utils.storage.files import write_text
from utils.storage.store import Store, read_config
from utils.system.command import Terminated
from utils.system.errors import UserError

pytestmark = pytest.mark.usefixtures("narrow")

RUN = ["--model", "lenet", "--dataset", "digits", "--limit", "60", "--clients", "3"]
RUN += ["--modes", "3", "--samples", "100", "--warmup_cmd", "1", "--embed_window", "1"]
MANY = 10 if settings.get_current_profile_name() == "thorough" else 1

FIELDS = [field.name for field in fields(FederatedSettings)]
EVERY = {"model", "dataset", "data", "limit", "seed", "clients", "rounds", "local_epochs"}
EVERY |= {"fraction", "partition", "optimizer", "lr", "momentum", "batch_size", "precision"}
EMBEDDING = {"modes", "samples", "warmup_cmd", "embed_window", "embed_perc", "embed_max"}
EMBEDDING |= {"memory"}  # of which clients are not told
FREEZING = {"apf_alpha", "apf_threshold", "apf_every"}
DEPENDS = {  # what a method's results depend on; alpha where the partition does
    "fedavg": EVERY, "cmd": EVERY | EMBEDDING, "apf": EVERY | FREEZING, "a-apf": EVERY | FREEZING,
    "topk": EVERY | {"topk"},
}  # fmt: skip


def tiny(num_classes):
    """A thousand weights, some of them no parameters: what is tested is what is sent."""
    return nn.Sequential(
        nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, num_classes),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "lenet", replace(MODELS["lenet"], constructor=tiny))
        patch.setattr(federated_cmd, "plot", lambda _, __, path: write_text("a picture", path))
        yield


@contextlib.contextmanager
def stopping(due):
    """A block in which a run is stopped once it has written a file for which `due` is true.

    due: told how many files were written and the last one's path.
    """
    real, written = Path.replace, []

    def replace_(draft, target):
        result = real(draft, target)
        written.append(target)
        if due(len(written), target):
            raise Terminated
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace_)
        yield


def give(argv, results, due=lambda count, path: False, client=app):
    """Give a command once: its exit code, what it printed, and its notes."""
    out, error = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        stopping(due),
    ):
        patch.setattr(federated_cmd, "client_app", client)
        code = federated_cmd.main([*argv, "--results_dir", str(results)])
    notes = [line for line in error.getvalue().splitlines() if line.startswith("note: ")]
    return SimpleNamespace(code=code, out=out.getvalue(), notes=notes)


def after(rounds):
    """Where to stop: when the first method has done so many more rounds."""
    return lambda count, path: count == 1 + rounds  # the configuration is written first


def rows_of(results):
    """All but the seconds, of which there is a column at the end."""
    lines = (results / "federated/lenet_iid/rounds.csv").read_text().splitlines()
    return [line.split(",")[:-1] for line in lines]


def outcome(results, last):
    """All that a run leaves and says, but the seconds."""
    folder = results / "federated/lenet_iid"
    summary = json.loads((folder / "summary.json").read_text())
    for figures in summary["methods"].values():
        del figures["seconds"]
    known = {}
    for method in summary["methods"]:
        state = Store.of(folder).load(checkpoint_of(method))
        known[method] = state["have"], state["server"]["theta"].tolist()
    return rows_of(results), summary, last.out.split("\n\n")[1], known


def left_alone(argv, results, client=app):
    last = give(argv, results, client=client)
    assert last.code == 0
    return outcome(results, last)


@pytest.mark.parametrize("fraction", ["1", "0.7"])
@pytest.mark.parametrize("method", METHODS)
def test_stopped_after_every_round(method, fraction, tmp_path):
    """The worst case: no client ever remembers anything."""
    argv = [*RUN, "--rounds", "7", "--apf_every", "2", "--fraction", fraction, "--methods", method]
    for _ in range(7):
        assert give(argv, tmp_path / "stopped", after(1)).code == 143
    last = give(argv, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped", last) == left_alone(argv, tmp_path / "alone")


@settings(
    max_examples=7 * MANY, deadline=None, derandomize=MANY == 1,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    methods=st.permutations(list(METHODS)).map(lambda methods: methods[:2]),
    stops=st.lists(st.integers(1, 18), min_size=1, max_size=3),
    fraction=st.sampled_from(["1", "0.7", "0.4"]),
    epochs=st.sampled_from(["1", "2"]),
    every=st.sampled_from(["1", "2"]),
    faults=st.dictionaries(
        st.integers(0, 5), st.sampled_from(["raise", "nan", "shape"]), max_size=2
    ),
)
@example(
    methods=list(METHODS), stops=[5, 16, 24], fraction="1", epochs="1", every="1",
    faults={3: "raise", 4: "nan"},
)  # fmt: skip
def test_stopped_after_any_write(
    tmp_path_factory, methods, stops, fraction, epochs, every, faults
):  # fmt: skip
    """In any method, and also where some clients take no part, or fail."""
    place = tmp_path_factory.mktemp("resume")
    argv = [*RUN, "--rounds", "6", "--fraction", fraction, "--local_epochs", epochs]
    argv += ["--apf_every", every, "--methods", *methods]
    client = Faulty(faults)
    for stop in stops:
        give(argv, place / "stopped", lambda count, _, stop=stop: count == stop, client)
    last = give(argv, place / "stopped", client=client)
    assert last.code == 0
    assert outcome(place / "stopped", last) == left_alone(argv, place / "alone", client)


@pytest.mark.parametrize("method", METHODS)
def test_more_is_sent_than_counted_once_and_said(method, tmp_path):
    since = []

    def client(message, context):
        if message.metadata.message_type == "train":
            since.append(package_of(message.content).numbers["since"])
        return app(message, context)

    argv = [*RUN, "--rounds", "6", "--methods", method]
    assert give(argv, tmp_path, after(4), client).notes == []
    notes = give(argv, tmp_path, client=client).notes
    assert since == 3 * [-1] + 3 * [0] + 3 * [1] + 3 * [2] + 3 * [-1] + 3 * [4]
    assert len(notes) == (method != "fedavg")  # whose news are everything
    assert all("goes on after round 4: clients have lost what they knew" in n for n in notes)
    assert give(argv, tmp_path).notes == []  # finished


def test_a_seed_that_another_command_finished_meanwhile_is_taken_as_it_is(tmp_path):
    argv = [*RUN, "--rounds", "3", "--methods", "fedavg"]
    prepared, beside = federated_cmd.prepare_all, []

    def meanwhile(args):
        found = prepared(args)
        if not beside:
            beside.append(True)
            assert federated_cmd.main([*argv, "--results_dir", str(tmp_path)]) == 0
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated_cmd, "prepare_all", meanwhile)
        assert give(argv, tmp_path).code == 0
    assert give(argv, tmp_path).code == 0 and len(rows_of(tmp_path)) == 4


def test_drafts_of_killed_processes_are_removed(tmp_path):
    argv = [*RUN, "--rounds", "3", "--methods", "fedavg"]
    assert give(argv, tmp_path).code == 0
    draft = tmp_path / "federated/lenet_iid/fedavg/.checkpoint.pt.4711"
    draft.write_bytes(b"half")
    assert give(argv, tmp_path).code == 0 and not draft.exists()


def test_bytes_on_the_wire_are_of_what_is_said():
    """Not of who says it to whom, or how many messages there were before."""
    package = Package({"values": np.ones(9, dtype=np.float32)}, {"version": 3})

    def sizes(node, task, name):
        become_server(node, node)
        asked = Message(content_of(package), node, "train", dst_task_id=task)
        answer = Message(content_of(package), reply_to=set_identity(asked, name))
        return wire_bytes(asked), wire_bytes(answer)

    assert sizes(1, 1, "7") == sizes((1 << 64) - 1, 1 << 40, "a" * 64)


class Traced(FederatedSettings):
    """Settings that note which of them are looked at."""

    looked_at: set = set()  # noqa: RUF012

    def __getattribute__(self, name):
        if name in FIELDS:
            Traced.looked_at.add(name)
        return object.__getattribute__(self, name)

    def text(self, left_out):
        before = set(Traced.looked_at)
        text = FederatedSettings(**asdict(self)).text(left_out)
        Traced.looked_at = before
        return text


def settings_of(*flags):
    argv = [*RUN, "--rounds", "4", "--results_dir", "/nowhere", *flags]
    return prepare(federated_cmd.build_parser().parse_args(argv))[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_results_depend_on_what_it_looks_at(method, tmp_path, monkeypatch):
    """So that the rule below is no mere opinion; that alpha is looked at is another matter."""
    plain = settings_of()
    place = Place(Store(tmp_path, "of a test"), torch.device("cpu"), "data", 60.0, 1004)
    told = []

    def parse(text):
        told.append(json.loads(text))
        return Traced(**dict.fromkeys(FIELDS) | told[-1])

    monkeypatch.setattr(FederatedSettings, "parse", parse)
    traced = Traced(**asdict(plain))
    Traced.looked_at = set()
    run_rounds(InProcessGrid(app, 3), traced, method, place, lambda words: None)
    assert Traced.looked_at == DEPENDS[method] | {"alpha"}
    assert all(set(names) == DEPENDS[method] - {"memory"} for names in told) and len(told) == 3 * 4


def test_alpha_is_nothing_to_a_partition_alike():
    labels = np.arange(200) % 10
    for kind, matters in (("iid", False), ("dirichlet", True)):
        one, other = (
            [part.tolist() for part in partition(labels, 3, kind, alpha, 0)] for alpha in (0.5, 2)
        )
        assert (one != other) == matters


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_settings_are_refused_exactly_where_something_stored_depends_on_them(kind, tmp_path):
    stored = settings_of("--partition", kind)
    Store.new(tmp_path).write_config({"settings": asdict(stored)})
    for count in range(len(METHODS) + 1):
        for done in itertools.combinations(METHODS, count):
            for method in METHODS:
                path = tmp_path / checkpoint_of(method)
                path.parent.mkdir(exist_ok=True)
                path.touch() if method in done else path.unlink(missing_ok=True)
            decided = set().union(*(DEPENDS[method] for method in done))
            decided |= {"alpha"} if done and kind == "dirichlet" else set()
            for name in FIELDS:
                value = getattr(stored, name)
                other = f"other {value}" if isinstance(value, str) else (value or 0) + 1
                refused = False
                try:
                    require_same(replace(stored, **{name: other}), tmp_path)
                except UserError as error:
                    refused = True
                    assert (
                        "--data_dir" in str(error) if name == "data" else f"--{name}" in str(error)
                    )
                assert refused == (name in decided), (name, done)


def test_what_is_nothing_to_a_stopped_method_may_change(tmp_path):
    argv = [*RUN, "--rounds", "5", "--methods", "fedavg"]
    give(argv, tmp_path / "stopped", after(2))
    other = ["--alpha", "0.25", "--samples", "99", "--apf_every", "12"]
    assert give([*argv, *other], tmp_path / "stopped").code == 0
    left_alone(argv, tmp_path / "alone")
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "alone")


def test_where_nothing_was_done_all_may_change(tmp_path):
    argv = [*RUN, "--rounds", "4", "--methods", "fedavg"]
    assert give(argv, tmp_path / "stopped", after(0)).code == 143
    argv += ["--seed", "1", "--batch_size", "16"]
    last = give(argv, tmp_path / "stopped")
    assert last.code == 0
    assert read_config(tmp_path / "stopped/federated/lenet_iid")["settings"]["seed"] == 1
    assert outcome(tmp_path / "stopped", last) == left_alone(argv, tmp_path / "alone")
