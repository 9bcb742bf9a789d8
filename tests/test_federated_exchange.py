"""What servers and clients tell each other, without an engine."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.cmd.vector import layer_sizes, read_vector, write_vector
from utils.federated.embedding import CMDClient, CMDServer, EmbeddingSettings
from utils.federated.exchange import OutOfStepError, Package, weighted_mean
from utils.federated.fedavg import FedAvgClient, FedAvgServer
from utils.federated.freezing import Freezing, FreezingClient, FreezingServer, FreezingSettings
from utils.federated.partition import partition
from utils.federated.topk import TopK
from utils.federated.transport import CODINGS, Sender
from utils.system.errors import UserError

N = 340
METHODS = ("fedavg", "cmd", "apf", "a-apf")


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))


def sides(method, clients, coding=None):
    """A server and its clients, of which each codes changes unless coding is None."""
    model = module()
    theta = read_vector(model).numpy()
    assert len(theta) == N

    def sender(*stream):
        return None if coding is None else Sender(coding, layer_sizes(model), stream)

    parts, down = range(clients), sender(1, 0)
    if method == "fedavg":
        return FedAvgServer(theta, down), [FedAvgClient(N, sender(2, part)) for part in parts]
    if method == "cmd":
        embedding = EmbeddingSettings(4, 100, warmup=4, window=2, percentage=15)
        server = CMDServer(theta, model, embedding, down)
        return server, [CMDClient(N, sender(2, part)) for part in parts]
    freezing = FreezingSettings(0.9, 0.6, every=2, random=method == "a-apf")
    server = FreezingServer(theta, freezing, down)
    return server, [FreezingClient(N, freezing, sender(2, part)) for part in parts]


class Training:
    """Stands in for a client's training: random walks of a few directions, with noise."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.directions = self.random.normal(size=(5, N)).astype(np.float32)

    def __call__(self, client):
        step = 0.1 * self.random.normal(size=5) @ self.directions
        noise = 0.01 * self.random.normal(size=N)
        theta = (client.theta + step + noise).astype(np.float32)
        model = module()
        write_vector(torch.from_numpy(theta), model)
        restraint = client.restraint(model)
        if restraint is not None:
            restraint(model)
        return read_vector(model).numpy()


def play(server, clients, rounds, present, seed=0, received=lambda client, package: None):
    """Rounds in which some clients are present; they agree with the server in each."""
    train, have = Training(seed), {}
    packages = []
    for number in range(rounds):
        answers = []
        for index in present(number):
            client = clients[index]
            package = server.down(have.get(index))
            client.receive(package)
            received(client, package)
            assert np.array_equal(client.theta, server.theta)  # bit for bit
            assert np.array_equal(client.live, server.live)
            answer = client.up(train(client))
            server.check(answer)
            answers.append(answer)
            packages += [package, answer]
            have[index] = server.version
        if answers:
            server.aggregate(answers, [10 + index for index in range(len(answers))])
    return packages, have


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_all_agree_bit_for_bit_with_dropouts(method, data):
    server, clients = sides(method, 4)
    turns = [data.draw(st.sets(st.integers(0, 3))) for _ in range(18)]
    _, have = play(server, clients, 18, lambda number: sorted(turns[number]))
    for index, client in enumerate(clients):  # and whoever comes back at the end
        client.receive(server.down(have.get(index)))
        assert np.array_equal(client.theta, server.theta)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_who_lost_everything_is_told_what_the_others_know(method, data):
    """So that a run goes on with clients that are new to it as it would have with its own."""
    server, clients = sides(method, 3)
    turns = [data.draw(st.sets(st.integers(0, 2), min_size=1)) for _ in range(18)]

    def received(client, package):
        _, (other,) = sides(method, 1)
        other.receive(server.down(None))
        ours, theirs = client.state_dict(), other.state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert np.asarray(value).dtype == np.asarray(theirs[name]).dtype, name
            assert np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes(), name

    play(server, clients, 18, lambda number: sorted(turns[number]), received=received)


@pytest.mark.parametrize("method", METHODS)
def test_fewer_weights_are_sent(method):
    server, clients = sides(method, 3)
    packages, _ = play(server, clients, 30, lambda number: range(3))
    sent = sum(package.payload for package in packages)
    everything = 4 * N * len(packages)
    assert all(p.arrays["values"].dtype == np.float32 for p in packages)
    if method == "fedavg":
        assert sent == everything
    else:
        assert sent < 0.95 * everything
        assert server.live_share < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_from_saved_states(method):
    def rounds(restart):
        server, clients = sides(method, 3)
        play(server, clients, 9, lambda number: range(3))
        if restart:
            other, others = sides(method, 3)
            other.load_state_dict(server.state_dict())
            for client, saved in zip(others, clients, strict=True):
                client.load_state_dict(saved.state_dict())
            server, clients = other, others
        have = dict.fromkeys(range(3), server.version - 1)
        train = Training(7)
        for _ in range(9):
            answers = []
            for index, client in enumerate(clients):
                client.receive(server.down(have[index]))
                answers.append(client.up(train(client)))
                have[index] = server.version
            server.aggregate(answers, [1, 2, 3])
        return server

    plain, restarted = rounds(False), rounds(True)
    assert np.array_equal(plain.theta, restarted.theta)
    assert np.array_equal(plain.live, restarted.live)


@pytest.mark.parametrize("method", METHODS)
def test_news_for_another_version_are_refused(method):
    server, clients = sides(method, 2)
    play(server, clients, 3, lambda number: [0])
    package = server.down(server.version - 1)
    before = clients[1].theta.copy()
    with pytest.raises(OutOfStepError):
        clients[1].receive(package)
    assert np.array_equal(clients[1].theta, before) and clients[1].version is None
    clients[1].receive(server.down(None))
    assert np.array_equal(clients[1].theta, server.theta)


@pytest.mark.parametrize("method", METHODS)
def test_nonsense_is_refused(method):
    server, clients = sides(method, 1)
    client = clients[0]
    client.receive(server.down(None))
    good = client.up(client.theta + 1)
    server.check(good)
    values = good.arrays["values"]
    broken = values.copy()
    broken[3] = np.nan
    for bad in (
        Package({"values": values[:-1]}, good.numbers),
        Package({"values": values.astype(np.float64)}, good.numbers),
        Package({"values": broken}, good.numbers),
        Package({}, good.numbers),
        Package({"values": values}, {"version": 5}),
    ):
        with pytest.raises(ValueError):
            server.check(bad)


@pytest.mark.parametrize("coding", [None, CODINGS["bf16"]])
def test_what_would_make_theta_infinite_is_refused(coding):
    """Of finite answers: sums overflow, and embedded weights that follow their references."""
    server, clients = sides("cmd", 1, coding)
    play(server, clients, 9, lambda number: [0])
    known, (client,) = server.coefficients, clients
    client.receive(server.down(server.version - 1))
    most = int(np.argmax(np.abs(known.a) * known.embedded))
    assert abs(known.a[most]) > 1.1
    bad = client.theta.copy()
    bad[known.reference[known.mode[most]]] = 3.3e38
    with pytest.raises(ValueError, match="not finite"):
        server.check(client.up(bad))
    assert np.isfinite(server.theta).all()


def test_a_mean_that_cannot_be_sent_changes_nothing():
    """With what earlier messages left out, a sum of finite answers overflows."""
    server, (client,) = sides("fedavg", 1, TopK(10, CODINGS["fp32"]))
    play(server, [client], 1, lambda number: [0])
    client.receive(server.down(server.version - 1))
    before, version = server.theta.copy(), server.version
    server.sender.residual[:] = 3.3e38
    answer = client.up(client.theta + np.float32(1e38))
    server.check(answer)
    with pytest.raises(ValueError, match="not finite"):
        server.aggregate([answer], [1])
    assert server.version == version and np.array_equal(server.theta, before)
    server.sender.residual[:] = 0
    client.receive(server.down(server.version))  # as the round was, for it, without an end
    assert np.array_equal(client.theta, server.theta)


def test_weighted_mean():
    vectors = [np.array([1.0, 2.0], np.float32), np.array([4.0, 8.0], np.float32)]
    assert weighted_mean(vectors, [2, 1]).tolist() == [2, 4]
    assert weighted_mean(vectors, [2, 1]).dtype == np.float32
    for counts in ([0, 0], [1]):
        with pytest.raises(ValueError):
            weighted_mean(vectors, counts)


def test_an_embedded_weight_is_its_references_affine_function():
    server, clients = sides("cmd", 2)
    play(server, clients, 25, lambda number: range(2))
    known = server.coefficients
    which = known.embedded
    assert which.any() and not which[known.reference].any()
    expected = known.a * server.theta[known.reference[known.mode]] + known.b
    assert np.array_equal(server.theta[which], expected[which])
    told = clients[0].coefficients.embedded
    assert np.array_equal(told | server._embedded_after(server.version - 1), which)


def test_no_more_than_the_most_are_embedded():
    server, clients = sides("cmd", 2)
    play(server, clients, 40, lambda number: range(2))
    assert server.coefficients.embedded.sum() == int(N * server.settings.most / 100)


def test_a_memory_is_of_the_last_rounds():
    """Everyone agrees as without one, but other a, b are embedded."""
    found = []
    for memory in (None, 3.0):
        _, clients = sides("cmd", 2)
        model = module()
        embedding = EmbeddingSettings(4, 100, warmup=4, window=2, percentage=15, memory=memory)
        server = CMDServer(read_vector(model).numpy(), model, embedding)
        play(server, clients, 20, lambda number: range(2))
        found.append(server.coefficients.a[server.coefficients.embedded])
        assert server._online.memory == memory
    assert not np.array_equal(*found)


def test_coefficients_are_sent_once():
    server, clients = sides("cmd", 2)
    packages, _ = play(server, clients, 25, lambda number: range(2))
    downs = packages[0::4]  # to the first client
    told = [p for p in downs if "a" in p.arrays]
    known = server.coefficients
    latest = server._embedded_after(server.version - 1)
    assert sum(len(p.arrays["a"]) for p in told) == int((known.embedded & ~latest).sum())
    for package in told:
        count = len(package.arrays["a"])
        assert package.payload == (
            4 * len(package.arrays["values"]) + 9 * count + -(-N // 8)
            + 4 * len(known.reference)
        )  # fmt: skip


def test_who_missed_rounds_is_told_of_what_was_embedded_since():
    server, clients = sides("cmd", 2)
    play(server, clients, 9, lambda number: range(2))
    known = clients[1].coefficients.embedded.copy()
    have = server.version - 1  # of both
    for _ in range(4):  # the second one is away
        clients[0].receive(server.down(server.version - 1))
        server.aggregate([clients[0].up(clients[0].theta + np.float32(0.01))], [1])
    package, all_of_it = server.down(have), server.down(None)
    new = server.coefficients.embedded & ~known
    assert known.any() and len(package.arrays["a"]) == new.sum() > 0
    assert package.payload == all_of_it.payload - 9 * known.sum()
    clients[1].receive(package)
    assert np.array_equal(clients[1].theta, server.theta)
    assert np.array_equal(clients[1].live, server.live)
    _, (forgetful,) = sides("cmd", 1)
    with pytest.raises(OutOfStepError):
        forgetful.receive(package)
    forgetful.receive(all_of_it)
    assert np.array_equal(forgetful.theta, server.theta)


class SlowFreezing:
    """Adaptive Parameter Freezing, one weight at a time in float64, as its paper describes it."""

    def __init__(self, theta, alpha, threshold):
        self.alpha, self.threshold, self.last = alpha, threshold, list(theta)
        self.e, self.a, self.length, self.left, self.moved = ([0.0] * len(theta) for _ in range(5))

    def check(self, theta):
        for i, value in enumerate(theta):
            if self.left[i] > 0:
                self.left[i] -= 1
                continue
            change = value - self.last[i]
            self.moved[i] = self.moved[i] or change != 0
            self.e[i] = self.alpha * self.e[i] + (1 - self.alpha) * change
            self.a[i] = self.alpha * self.a[i] + (1 - self.alpha) * abs(change)
            if self.a[i] > 0:
                stable = abs(self.e[i]) / self.a[i] < self.threshold
            else:
                stable = not self.moved[i]
            self.length[i] = self.length[i] + 1 if stable else self.length[i] // 2
            self.left[i] = self.length[i]
        self.last = list(theta)
        if sum(left > 0 for left in self.left) / len(theta) > 0.8:
            self.threshold /= 2


def test_freezing_is_that_of_its_paper():
    random = np.random.default_rng(1)
    theta = random.normal(size=60).astype(np.float32)
    ours = Freezing(theta, FreezingSettings(0.8, 0.3, every=1))
    slow = SlowFreezing(theta.astype(float), 0.8, 0.3)
    drift = random.normal(size=60) * (np.arange(60) % 3 > 0)  # a third never drifts
    for number in range(1, 40):
        moves = drift * 0.3 + random.normal(size=60)
        moves[:5] = 0  # never seen to move
        theta = np.where(ours.frozen, theta, theta + moves).astype(np.float32)
        ours.check(theta, number)
        slow.check(theta.astype(float))
        assert ours.left.tolist() == slow.left and ours.length.tolist() == slow.length
        assert ours.threshold == pytest.approx(slow.threshold)
    assert (ours.length[:5] > 5).all()


def test_random_freezing_is_of_the_seed_and_the_round():
    theta = np.zeros(4000, np.float32)

    def after(number, seed):
        freezing = Freezing(theta, FreezingSettings(0.9, 1e-6, 1, random=True, seed=seed))
        freezing.check(theta + 1, number)
        return freezing

    one, same, other = after(400, 0), after(400, 0), after(400, 1)
    assert np.array_equal(one.left, same.left) and not np.array_equal(one.left, other.left)
    assert one.frozen.mean() == pytest.approx(400 / 2000, abs=0.03)
    assert set(one.left[one.frozen]) == set(range(1, 1 + 400 // 20 + 1))
    assert after(5000, 0).frozen.mean() == pytest.approx(0.5, abs=0.03)
    assert (one.length == 0).all()  # APF's own period is another matter


@settings(max_examples=30, deadline=None)
@given(
    clients=st.integers(1, 8),
    kind=st.sampled_from(["iid", "dirichlet"]),
    alpha=st.floats(0.5, 100),
    seed=st.integers(0, 50),
)
def test_every_image_has_one_client(clients, kind, alpha, seed):
    labels = np.arange(1000) % 10
    parts = partition(labels, clients, kind, alpha, seed)
    assert len(parts) == clients and min(map(len, parts)) >= 10
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    again = partition(labels, clients, kind, alpha, seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))


def test_dirichlet_shares_differ_more_with_a_smaller_alpha():
    labels = np.arange(10_000) % 10

    def spread(alpha):
        parts = partition(labels, 5, "dirichlet", alpha, 0)
        return np.std([np.bincount(labels[part], minlength=10) for part in parts])

    assert spread(0.3) > 3 * spread(100)
    sizes = {len(part) for part in partition(labels, 5, "iid", 0.5, 0)}
    assert sizes == {2000}


def test_too_few_images_are_said():
    with pytest.raises(UserError, match="--clients 4"):
        partition(np.zeros(30, dtype=int), 4, "iid", 1, 0)
    with pytest.raises(UserError, match=r"--alpha 0\.001"):
        partition(np.arange(200) % 2, 10, "dirichlet", 0.001, 0)
