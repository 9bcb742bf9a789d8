"""What is said of federated runs: accuracy at equal bytes, over seeds, and of earlier commands."""

import contextlib
import io
import json
from dataclasses import replace

import pytest

pytest.importorskip("flwr")

import federated_cmd
from tests.test_federated_resume import (  # noqa: F401 (quick is a fixture)
    RUN,
    _quick,
    after,
    give,
    left_alone,
    outcome,
    rows_of,
    settings_of,
)
from utils.federated.contenders import CONTENDERS, Contender
from utils.federated.equal_bytes import OVER, bytes_to, means, opponent, within
from utils.federated.leftovers import of_clients, to_clients
from utils.federated.picture import plot
from utils.federated.report import over_seeds, summarise
from utils.federated.rounds import Round
from utils.federated.tables import tables
from utils.storage.store import Store

WEIGHTS = 100
CODED = [
    contender.name for contender in CONTENDERS
    if contender.transport != "fp32" or contender.method == "topk"
]  # fmt: skip


def history(accuracies, payload):
    """Rounds of two messages, which carry so many bytes each."""
    return [
        Round(number, 1.0, accuracy, 1.0, 1.0, 1, payload, payload, 1, payload, payload, False, 0.5)
        for number, accuracy in enumerate(accuracies, start=1)
    ]


FEDAVG = history([0.5, 0.6, 0.7, 0.8], 400)
HALF = history([0.5, 0.6, 0.69, 0.791], 200)


def test_names_and_labels():
    for contender in CONTENDERS:
        assert Contender.named(contender.name) == contender
    assert len({contender.name for contender in CONTENDERS}) == len(CONTENDERS) == 15
    assert Contender("a-apf").name == "a-apf" and Contender("a-apf").label == "A-APF"
    assert Contender("cmd", "bf16").name == "cmd-bf16"
    assert Contender("cmd", "bf16").label == "CMD bf16"


def test_accuracy_at_equal_bytes_by_hand():
    assert [within(FEDAVG, limit) for limit in (799, 800, 2399, 2400, 9999)] == [
        None, 0.5, 0.6, 0.7, 0.8
    ]  # fmt: skip
    few = [float("nan")] * 3
    assert means(HALF) == pytest.approx([*few, 0.64525], nan_ok=True)
    more = history([0.0, *[0.5] * OVER], 200)
    assert means(more) == pytest.approx([*few, float("nan"), 0.4, 0.5], nan_ok=True)
    assert [bytes_to(more, target) for target in (0, 0.4, 0.5, 0.51)] == [2000, 2000, 2400, None]


def test_a_lucky_round_reaches_nothing():
    lucky = history([0.5, 0.6, 0.9, 0.6], 200)
    assert bytes_to(lucky, 0.65) == 1600 and bytes_to(lucky, 0.7) is None


def test_who_is_compared_with_whom():
    names = ["fedavg", "fedavg-bf16", "cmd", "cmd-bf16", "topk-int8"]
    assert {name: opponent(name, names) for name in names} == {
        "fedavg": None, "fedavg-bf16": "fedavg", "cmd": "fedavg", "cmd-bf16": "fedavg-bf16",
        "topk-int8": "fedavg",
    }  # fmt: skip
    assert opponent("cmd-bf16", ["cmd", "cmd-bf16"]) is None


def test_the_tables_of_a_run():
    settings = replace(settings_of(), clients=1)
    summary = summarise(settings, {"fedavg": FEDAVG, "cmd-bf16": HALF}, WEIGHTS)
    ours, theirs = (summary["methods"][name] for name in ("cmd-bf16", "fedavg"))
    assert summary["fedavg_bytes"] == 3200
    assert ours["within"] == {"10": None, "20": 0.5, "30": 0.6, "50": 0.791, "100": 0.791}
    assert theirs["within"] == {"10": None, "20": None, "30": 0.5, "50": 0.6, "100": 0.8}
    assert summary["fedavg_end"] == pytest.approx(0.65)
    assert ours["bytes_to"] == {"0": None, "0.5": 1600, "1": 1600}
    assert theirs["bytes_to"] == {"0": 3200, "0.5": 3200, "1": 3200}
    overview, equal, reached = tables([summary]).split("\n\n")
    assert "50.0 %" in overview
    assert equal.splitlines()[3].split() == (
        ["CMD", "bf16", "–", "50.00", "%", "60.00", "%", "79.10", "%", "(79.10", "%)"]
    )
    assert reached.splitlines()[3].split() == [
        "CMD",
        "bf16",
        "–",
        "0.0",
        "(50.0",
        "%)",
        "0.0",
        "(50.0",
        "%)",
    ]


def test_without_fedavg_its_bytes_are_what_they_would_be():
    settings = replace(settings_of(), clients=5, fraction=0.4)
    summary = summarise(settings, {"cmd": HALF}, WEIGHTS)
    assert summary["fedavg_bytes"] == 2 * 4 * WEIGHTS * 2 * 4
    assert summary["methods"]["cmd"]["bytes_to"] == {}
    assert len(tables([summary]).split("\n\n")) == 2


def test_a_seed_without_fedavg_has_no_bytes_to_its_accuracy():
    runs = [{"fedavg": FEDAVG, "cmd": HALF}, {"cmd": HALF}]
    for order in (runs, runs[::-1]):
        summaries = [summarise(settings_of(), run, WEIGHTS) for run in order]
        assert list(over_seeds([0, 1], summaries)["methods"]) == ["cmd"]
        overview = tables(summaries).split("\n\n")[0].splitlines()[2]
        assert overview.count("%") == 4  # of three accuracies, and of FedAvg's payload alone


def test_an_accuracy_half_a_point_below_is_half_a_point_below():
    last = history([0.2905] * 4, 400)  # 0.2905 - 0.5 / 100 is above 0.2855
    ours = {"fedavg": last, "cmd": history([0.2855] * 4, 400)}
    found = summarise(settings_of(), ours, WEIGHTS)["methods"]["cmd"]["bytes_to"]
    assert found == {"0": None, "0.5": 3200, "1": 3200}


def test_fedavg_sends_all_of_its_own_bytes():
    """Also where the mean over seeds is no whole number."""
    runs = [{"fedavg": history([0.5, 0.6, 0.7, 0.8], payload)} for payload in (400, 400, 402)]
    _, equal, _ = tables([summarise(settings_of(), run, WEIGHTS) for run in runs]).split("\n\n")
    assert "(" not in equal


def test_a_mean_is_of_as_many_rounds_as_there_are():
    short = replace(settings_of(), rounds=3)
    words = tables([summarise(short, {"fedavg": FEDAVG[:3]}, WEIGHTS)])
    assert "MB to a mean of 3 rounds" in words and "mean of last 3" in words


def test_over_seeds_differences_are_paired(tmp_path):
    settings = settings_of()
    runs = [
        {"fedavg": history([0.5, 0.6, 0.7, last], 400), "apf": history([0.5, 0.6, 0.7, mine], 200)}
        for last, mine in ((0.8, 0.81), (0.7, 0.73))
    ]
    runs[0]["cmd"] = HALF  # which the other run has not
    summaries = [summarise(settings, run, WEIGHTS) for run in runs]
    summary = over_seeds([3, 4], summaries)
    assert summary["settings"]["seeds"] == [3, 4] and "seed" not in summary["settings"]
    assert list(summary["methods"]) == ["fedavg", "apf"]
    apf = summary["methods"]["apf"]
    assert apf["last"]["values"] == [0.81, 0.73] and apf["last"]["mean"] == pytest.approx(0.77)
    assert apf["last"]["minus_fedavg"]["mean"] == pytest.approx(0.02)
    low, high = apf["last"]["minus_fedavg"]["interval"]
    assert low == pytest.approx(0.02 - 12.706 * 0.01, abs=1e-4) and high > 0.1
    assert apf["within"]["10"] == {"mean": None, "std": None, "values": [None, None]}
    assert "minus_fedavg" not in apf["within"]["20"] and apf["compared_with"] == "fedavg"
    assert summary["methods"]["fedavg"]["compared_with"] is None and apf["lost"] == [False] * 2
    assert apf["bytes_to"]["0"]["values"] == [1600, 1600]
    assert summary["fedavg_bytes"]["values"] == [3200, 3200]
    assert summary["fedavg_end"]["values"] == pytest.approx([0.65, 0.625])
    words = tables(summaries)
    assert "77.00 ± 5.66 %" in words and "95 % interval, 2 seeds" in words
    assert "APF − FedAvg" in words and "+2.00 (−10.71 … +14.71)" in words
    plot(settings, runs, tmp_path / "seeds.png")
    assert (tmp_path / "seeds.png").stat().st_size > 0


@pytest.mark.parametrize("name", CODED)
def test_stopped_in_the_middle(name, tmp_path):
    """What clients had still to say is not lost, and the draws are those of the round."""
    contender = Contender.named(name)
    argv = [*RUN, "--rounds", "6", "--apf_every", "1", "--fraction", "0.7", "--topk", "3"]
    argv += ["--methods", contender.method, "--transport", contender.transport]
    for rounds in (2, 2):
        assert give(argv, tmp_path / "stopped", after(rounds)).code == 143
    last = give(argv, tmp_path / "stopped")
    assert outcome(tmp_path / "stopped", last) == left_alone(argv, tmp_path / "alone")
    kept = Store.of(tmp_path / "stopped/federated/lenet_iid").load(f"{name}/checkpoint.pt")["left"]
    assert sorted(kept) == [1, 2, 3] and all(left.any() for left in kept.values())


def test_what_they_had_to_say_elsewhere_is_lost_and_said(tmp_path):
    argv = [*RUN, "--rounds", "4", "--methods", "topk"]
    assert give(argv, tmp_path, after(2)).code == 143
    store = Store.of(tmp_path / "federated/lenet_iid")
    state = store.load("topk/checkpoint.pt")
    store.save(state | {"left": None}, "topk/checkpoint.pt")  # as after rounds on Ray
    last = give(argv, tmp_path)
    assert any("what clients had still to say is lost" in note for note in last.notes)
    assert "top-k*" in last.out and "* what clients had still to say was lost" in last.out
    summary = json.loads((store.folder / "summary.json").read_text())
    assert summary["methods"]["topk"]["lost"]
    column = rows_of(tmp_path)[0].index("lost")
    assert [row[column] for row in rows_of(tmp_path)[1:]] == ["False", "False", "True", "False"]


def test_what_clients_elsewhere_had_to_say_is_not_here():
    assert of_clients(object(), "0.cmd-bf16") is None and not to_clients(object(), "0.cmd-bf16", {})


def test_seeds_are_runs_of_their_own(tmp_path):
    argv = [*RUN, "--rounds", "3", "--methods", "fedavg", "topk", "--transport", "int8"]
    assert give([*argv, "--seeds", "5", "6"], tmp_path / "both", after(2)).code == 143
    last = give([*argv, "--seeds", "5", "6"], tmp_path / "both")
    assert last.code == 0 and "seed 6 (2 of 2)" in last.out and " ± " in last.out
    both = tmp_path / "both/federated/lenet_iid_seeds"
    for seed in ("5", "6"):
        left_alone([*argv, "--seed", seed], tmp_path / seed)
        ours, alone = (
            [line.rpartition(",")[0] for line in (folder / "rounds.csv").read_text().splitlines()]
            for folder in (both / f"seed_{seed}", tmp_path / seed / "federated/lenet_iid")
        )
        assert ours == alone
    summary = json.loads((both / "summary.json").read_text())
    assert list(summary["methods"]) == ["fedavg-int8", "topk-int8"]
    assert (both / "federated.png").exists()


def test_who_finished_before_is_in_the_tables(tmp_path):
    argv = [*RUN, "--rounds", "4"]
    assert give([*argv, "--methods", "topk", "--transport", "bf16"], tmp_path, after(2)).code == 143
    assert give([*argv, "--methods", "fedavg"], tmp_path).code == 0
    last = give([*argv, "--methods", "cmd", "--transport", "int8", "fp32"], tmp_path)
    assert [row[0] for row in rows_of(tmp_path)[1::4]] == ["fedavg", "cmd", "cmd-int8"]
    overview, _, reached = last.out.split("\n\n")[1:4]
    for words in (overview, reached):
        assert [line.split("  ")[0] for line in words.splitlines()[2:]] == [
            "FedAvg", "CMD", "CMD int8"
        ]  # fmt: skip


def test_help_names_what_there_is():
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        federated_cmd.main(["--help"])
    for words in ("fp32, bf16, int8", "--topk P", "--memory H", "--seeds SEED"):
        assert words in out.getvalue()
