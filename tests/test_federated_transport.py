"""Changes in 32, 16 and 8 bits, and the largest alone: what is sent, and what is left for later."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from tests.test_federated_exchange import N, play, sides
from utils.federated.exchange import Package
from utils.federated.gaps import read_gaps, write_gaps
from utils.federated.topk import TopK, largest
from utils.federated.transport import CODINGS, LARGEST_BF16, STEPS, Layers, Sender

SIZES = (7, 1, 0, 12)  # of layers
LENGTH = sum(SIZES)
LAYERS = Layers(np.repeat(np.arange(len(SIZES)), SIZES), len(SIZES))
ALL = np.ones(LENGTH, dtype=bool)
WAYS = dict(CODINGS) | {
    f"top-k {name}": TopK(percentage, coding)
    for percentage, (name, coding) in zip((5, 20, 60), CODINGS.items(), strict=True)
}
AGREEING = [
    (method, CODINGS[name]) for method in ("fedavg", "cmd", "apf", "a-apf")
    for name in ("bf16", "int8")
] + [("fedavg", TopK(10, coding)) for coding in CODINGS.values()]  # fmt: skip


def changes(most=2.0**100):
    return nps.arrays(np.float32, LENGTH, elements=st.floats(-most, most, width=32))


def there_and_back(coding, change, seed=0):
    return coding.decode(coding.encode(change, LAYERS, np.random.default_rng(seed)), LAYERS)


def sender(coding, *stream):
    return Sender(coding, SIZES, stream)


@settings(max_examples=50, deadline=None)
@given(change=changes(most=float(np.finfo(np.float32).max)))
def test_bf16_is_the_nearest(change):
    """As torch rounds; what would become infinite is the largest number."""
    rounded = torch.from_numpy(change).to(torch.bfloat16).float().numpy()
    expected = np.clip(rounded, -LARGEST_BF16, LARGEST_BF16)
    assert there_and_back(CODINGS["bf16"], change).tobytes() == expected.tobytes()


@settings(max_examples=50, deadline=None)
@given(change=changes(most=float(np.finfo(np.float32).max)), seed=st.integers(0, 9))
def test_int8_is_a_neighbouring_multiple_of_the_layers_scale(change, seed):
    arrays = CODINGS["int8"].encode(change, LAYERS, np.random.default_rng(seed))
    assert arrays["values"].nbytes == LENGTH and arrays["scales"].nbytes == 4 * len(SIZES)
    read = CODINGS["int8"].decode(arrays, LAYERS).astype(np.float64)
    assert np.isfinite(read).all()
    for layer, scale in enumerate(arrays["scales"].astype(np.float64)):
        own = LAYERS.of == layer
        most = np.abs(change[own]).max(initial=0)
        assert scale == pytest.approx(most / STEPS, rel=1e-3, abs=1e-44)
        assert (np.abs(read[own] - change[own]) <= max(1.001 * scale, STEPS * 1.5e-45)).all()


def test_int8_is_right_on_average():
    change = np.linspace(-1, 1, LENGTH, dtype=np.float32) ** 3
    reads = np.array([there_and_back(CODINGS["int8"], change, seed) for seed in range(4000)])
    scales = CODINGS["int8"].encode(change, LAYERS, np.random.default_rng(0))["scales"]
    error = np.abs(reads.mean(0, dtype=np.float64) - change)
    assert (error <= 5 * 0.5 * scales[LAYERS.of] / 4000**0.5 + 1e-7).all()
    assert (reads.std(0) > 0).sum() > LENGTH / 2  # of those that are no multiples


@pytest.mark.parametrize("coding", WAYS.values(), ids=WAYS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_over_the_messages(coding, data):
    """What was read in all, and what is left, is what was meant, but for float32's own rounding."""
    end, meant, read = sender(coding, 0), np.zeros(LENGTH), np.zeros(LENGTH)
    moved = np.zeros(LENGTH)
    for number in range(data.draw(st.integers(1, 6))):
        change, which = data.draw(changes()), data.draw(nps.arrays(bool, LENGTH))
        arrays, sent = end.send(change[which], which, number)
        assert sent.tobytes() == end.read(arrays, which).tobytes()
        meant[which] += change[which]
        read[which] += sent
        moved += np.abs(change) + np.abs(end.residual)
    largest_of = np.zeros(len(SIZES))
    np.maximum.at(largest_of, LAYERS.of, moved)
    np.testing.assert_array_less(
        np.abs(read + end.residual - meant), 1e-5 * largest_of[LAYERS.of] + 1e-37
    )


@pytest.mark.parametrize(
    ("way", "messages"), [("fp32", 1), ("bf16", 3), ("top-k fp32", 20), ("top-k bf16", 15)]
)
def test_what_is_left_is_sent_when_nothing_changes(way, messages):
    """To the last bit: 24 bits take three messages of 8, 20 weights ten messages of two."""
    change = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)
    end, zero, read = sender(WAYS[way], 0), np.zeros_like(change), np.zeros(LENGTH)
    for number in range(messages):
        read += end.send(zero if number else change, ALL, number)[1]
    assert np.array_equal(read, change) and not end.residual.any()


@pytest.mark.parametrize("coding", WAYS.values(), ids=WAYS)
def test_no_change_stays_none(coding):
    end = sender(coding, 0)
    _, sent = end.send(np.zeros(LENGTH, np.float32), ALL, 0)
    assert not sent.any() and not end.residual.any()


@pytest.mark.parametrize("coding", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused_and_changes_nothing(coding, bad):
    change = np.linspace(-1, 1, LENGTH).astype(np.float32)
    end, same = sender(coding, 0), sender(coding, 0)
    for each in (end, same):
        each.send(change, ALL, 0)
    broken = change.copy()
    broken[4] = bad
    with pytest.raises(ValueError, match="not finite"):
        end.send(broken, ALL, 1)
    assert end.residual.tobytes() == same.residual.tobytes()


def test_draws_are_of_the_sender_and_the_message():
    change = np.linspace(-1, 1, LENGTH).astype(np.float32)

    def values(*stream, number):
        return sender(CODINGS["int8"], *stream).send(change, ALL, number)[0]["values"].tolist()

    drawn = [
        values(*stream, number=number)
        for stream in ((0, 1, 0), (0, 2, 0), (0, 2, 1), (1, 1, 0)) for number in (0, 1)
    ]  # fmt: skip
    assert values(0, 2, 1, number=1) == drawn[5]
    assert len(set(map(tuple, drawn))) == len(drawn)


@pytest.mark.parametrize("coding", WAYS.values(), ids=WAYS)
def test_other_messages_are_refused(coding):
    end = sender(coding, 0)
    good, _ = end.send(np.linspace(-1, 1, LENGTH).astype(np.float32), ALL, 0)
    bad = [good | {name: value[1:]} for name, value in good.items()]
    bad += [good | {name: value.astype(np.float64)} for name, value in good.items()]
    bad += [{name: value for name, value in good.items() if name != gone} for gone in good]
    if "gaps" in good:
        bad += [good | {"gaps": ~good["gaps"]}, good | {"gaps": np.append(good["gaps"], 0)}]
    if "scales" in good:
        bad += [good | {"scales": np.full_like(good["scales"], np.nan)}]
    if good["values"].dtype == np.uint16:
        bad += [good | {"values": np.full_like(good["values"], 0x7F80)}]  # infinity
    for arrays in bad:
        with pytest.raises(ValueError):
            end.read(arrays, ALL)


@pytest.mark.parametrize("coding", WAYS.values(), ids=WAYS)
def test_statistics_are_sent_as_they_are_and_never_wait(coding):
    """What trains to one value from anywhere overshoots, where its change waits and adds up."""
    statistics = [False, True, False, False]
    ends = [Sender(coding, SIZES, (0, part), statistics) for part in range(2)]
    own, which = LAYERS.of == 1, np.random.default_rng(1).random(LENGTH) < 0.8
    which[own] = True
    change = np.full(LENGTH, 3e-9, dtype=np.float32)
    change[own] = 1 / 3
    for number in range(3):
        arrays, sent = ends[0].send(change[which], which, number)
        assert np.array_equal(sent, ends[1].read(arrays, which))
        assert np.array_equal(sent[own[which]], change[own])
        assert not ends[0].residual[own].any()
    with pytest.raises(ValueError, match="statistics"):
        ends[1].read(arrays | {"statistics": arrays["statistics"][1:]}, which)


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_some_of_a_message(name):
    """What is embedded leaves the message that goes down: the others are read as they were."""
    end = Sender(CODINGS[name], SIZES, (0, 0), [False, True, False, False])
    change = np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)
    arrays, sent = end.send(change, ALL, 0)
    kept = np.random.default_rng(1).random(LENGTH) < 0.5
    for one in (True, False):
        kept[LAYERS.of == 1] = one
        assert np.array_equal(end.read(end.of_some(arrays, ALL, kept), kept), sent[kept])


@settings(deadline=None)
@given(
    change=nps.arrays(np.float32, st.integers(1, 30), elements=st.integers(-5, 5)),
    share=st.floats(0, 1),
)
def test_the_largest_are_found(change, share):
    count = int(share * len(change))
    order = sorted(range(len(change)), key=lambda place: (-abs(change[place]), place))
    assert largest(change, count).tolist() == sorted(order[:count])


@pytest.mark.parametrize("percentage", [0.1, 1, 10, 30, 100])
def test_places_take_few_bytes(percentage):
    """Within 5 % of the entropy where they are anywhere, and not much more where they are not."""
    length = 100_000
    layers = Layers(np.zeros(length, int), 1)
    change = np.random.default_rng(0).normal(size=length).astype(np.float32)
    share = percentage / 100
    least = -share * math.log2(share) - (1 - share) * math.log2(1 - share or 1)
    draw = np.random.default_rng(0)
    for each, times in ((change, 1.05), (np.sort(np.abs(change)), 1.4)):
        arrays = TopK(percentage, CODINGS["bf16"]).encode(each, layers, draw)
        assert arrays["values"].nbytes == 2 * length * share
        assert 8 * arrays["gaps"].nbytes / length <= max(times * least, share) + 1e-3


def test_what_is_too_long_for_places_is_refused():
    with pytest.raises(ValueError, match="not 10 places"):
        read_gaps(np.full(10**6, 0xFF, dtype=np.uint8), 10, 1000)
    with pytest.raises(ValueError, match="not 10 places"):
        read_gaps(np.append(write_gaps(np.arange(10), 1000), np.zeros(1, np.uint8)), 10, 1000)


@settings(deadline=None)
@given(data=st.data(), length=st.integers(1, 300))
def test_places_are_read_as_they_were_written(data, length):
    chosen = data.draw(st.sets(st.integers(0, length - 1)))
    places = np.array(sorted(chosen), dtype=np.int64)
    coded = write_gaps(places, length)
    assert coded.dtype == np.uint8
    assert read_gaps(coded, len(places), length).tolist() == places.tolist()
    for count in (len(places) - 1, len(places) + 1):
        if 0 <= count <= length:
            with contextlib.suppress(ValueError):  # or others, which are places, too
                other = read_gaps(coded, count, length)
                assert len(other) == count and (np.diff(other) > 0).all()
                assert not count or 0 <= other[0] <= other[-1] < length


@pytest.mark.parametrize(("method", "coding"), AGREEING)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_all_agree_bit_for_bit_with_dropouts(method, coding, data):
    """After every round, and whoever comes back; who is new is told what the others know."""
    server, clients = sides(method, 4, coding)
    turns = [data.draw(st.sets(st.integers(0, 3))) for _ in range(16)]

    def received(client, package):
        _, (other,) = sides(method, 1, coding)
        other.receive(server.down(None))
        for name, value in client.state_dict().items():
            assert np.asarray(value).tobytes() == np.asarray(other.state_dict()[name]).tobytes()

    _, have = play(server, clients, 16, lambda number: sorted(turns[number]), received=received)
    for index, client in enumerate(clients):
        client.receive(server.down(have.get(index)))
        assert np.array_equal(client.theta, server.theta)


@pytest.mark.parametrize(("method", "coding"), AGREEING)
def test_the_server_goes_on_from_its_state(method, coding):
    server, clients = sides(method, 2, coding)
    other, _ = sides(method, 2, coding)
    play(server, clients, 9, lambda number: range(2))
    other.load_state_dict(copy.deepcopy(server.state_dict()))
    for client in clients:
        client.receive(server.down(server.version - 1))
    answers = [client.up(client.theta + np.float32(0.01)) for client in clients]
    for each in (server, other):
        each.aggregate(answers, [1, 2])
    ours, theirs = server.down(server.version - 1), other.down(server.version - 1)
    assert ours.numbers == theirs.numbers and ours.arrays.keys() == theirs.arrays.keys()
    for name, value in ours.arrays.items():
        assert value.tobytes() == theirs.arrays[name].tobytes(), name


def test_a_layer_of_which_nothing_is_live_any_more_is_no_matter():
    """Where CMD embeds a whole layer, the message about it that was coded before goes down."""
    server, (client,) = sides("cmd", 1, CODINGS["int8"])
    client.receive(server.down(None))
    server.aggregate([client.up(client.theta + 1)], [1])
    last = np.arange(N) >= N - 4
    server._embedded_at, server.live = np.where(last, 1, 0), ~last
    client.live = ~last
    client._learn = lambda arrays: None
    server.coefficients = client.coefficients
    client.receive(Package(server._news().arrays, {"version": 1, "since": 0}))
    assert np.array_equal(client.theta[~last], server.theta[~last])


@pytest.mark.parametrize(
    ("coding", "of_fedavg"), [("bf16", 0.5), ("int8", 0.25), (TopK(10, CODINGS["fp32"]), 0.115)]
)
def test_bytes_are_those_of_the_arrays(coding, of_fedavg):
    server, clients = sides("fedavg", 2, CODINGS[coding] if isinstance(coding, str) else coding)
    packages, _ = play(server, clients, 5, lambda number: range(2))
    first, later = packages[0], packages[4:]
    assert first.payload == 4 * N  # nobody knew anything
    for package in later:
        assert package.payload == sum(array.nbytes for array in package.arrays.values())
        assert package.payload / (4 * N) == pytest.approx(of_fedavg, abs=0.02)
