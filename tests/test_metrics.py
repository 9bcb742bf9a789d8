import json
from dataclasses import replace

import pytest

from utils.methods.registry import METHODS, Settings
from utils.results.pictures.accuracy import plot_test_accuracy
from utils.results.stored_run import StoredRun
from utils.results.summary import summarise, table
from utils.storage.files import atomic_write
from utils.storage.metrics import COLUMNS, Metrics, Row
from utils.system.errors import UserError

HEADER = "method,epoch,train_loss,train_acc,test_loss,test_acc,seconds\n"
ROWS = [
    Row("sgd", 0, 1 / 3, 0.1, 2.5, 0.25, 1.5),
    Row("cmd_online", 0, None, None, 2.5, 0.25, 0.1),
    Row("sgd", 1, 1 / 7, 0.2, 1e-30, 0.5, 1.25),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def test_rows_are_on_disk_at_once_and_come_back_exactly(path):
    metrics = Metrics(path)
    assert path.read_text() == HEADER == ",".join(COLUMNS) + "\n"
    for count, row in enumerate(ROWS, start=1):
        metrics.add(row)
        assert len(path.read_text().splitlines()) == 1 + count
    assert path.read_text().splitlines()[2] == "cmd_online,0,,,2.5,0.25,0.1"
    again = Metrics(path)
    assert again.of("sgd") == [ROWS[0], ROWS[2]]
    assert again.has("cmd_online", 0) and not again.has("cmd_online", 1)


def test_a_line_cut_short_is_dropped(path):
    metrics = Metrics(path)
    for row in ROWS:
        metrics.add(row)
    whole = path.read_text()
    for cut in range(1, len(ROWS[2].text())):
        path.write_text(whole[:-cut])
        assert [row.epoch for row in Metrics(path).of("sgd")] == [0]
        assert path.read_text() == whole[: -len(ROWS[2].text())]
    path.write_text(HEADER[:10])
    assert Metrics(path).of("sgd") == [] and path.read_text() == HEADER


@pytest.mark.parametrize("text", ["a,b\n", HEADER + "sgd,x,,,1,1,1\n", HEADER + "sgd,1\n"])
def test_other_files_are_refused(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        Metrics(path)
    assert path.read_text() == text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_summary_and_table_of_a_real_run(real_run):
    metrics = Metrics(real_run / "metrics.csv")
    summary = json.loads((real_run / "summary.json").read_text())
    assert list(summary["methods"]) == ["sgd", "cmd_posthoc", "cmd_online"]
    n_weights, n_epochs = 548_878, 12
    for name, figures in summary["methods"].items():
        accuracies = [row.test_acc for row in metrics.of(name)]
        assert figures["last"] == accuracies[-1]
        assert figures["mean_last_10"] == pytest.approx(sum(accuracies[-10:]) / 10)
        assert figures["best"] == accuracies[figures["best_epoch"]] == max(accuracies)
    assert summary["methods"]["sgd"]["parameters"] == n_weights * n_epochs
    assert summary["methods"]["cmd_posthoc"]["parameters"] == 3 * n_weights + 10 * (n_epochs + 1)
    text = table(summary)
    assert f"{100 * summary['methods']['cmd_online']['last']:.2f} %" in text
    for part in text.split("\n\n"):
        assert len({len(line) for line in part.splitlines()}) == 1  # columns line up


def test_online_reports_sgds_own_accuracy_before_the_warmup_ends(real_run):
    metrics = Metrics(real_run / "metrics.csv")
    pairs = list(zip(metrics.of("sgd"), metrics.of("cmd_online"), strict=True))
    for sgd, online in pairs[:4]:
        assert (sgd.test_loss, sgd.test_acc) == (online.test_loss, online.test_acc)
    assert all(sgd.test_loss != online.test_loss for sgd, online in pairs[4:])
    assert all(row.train_loss is None for row in metrics.of("cmd_posthoc"))


def test_plot_is_written_for_any_number_of_epochs(real_run, tmp_path):
    methods = METHODS[:3]
    settings = StoredRun(real_run).settings
    plot_test_accuracy(methods, settings, [real_run], tmp_path / "all.png")
    plot_test_accuracy(
        methods, settings, [real_run, real_run], tmp_path / "two.png", ("png", "pdf")
    )
    one = Metrics(tmp_path / "metrics.csv")
    one.add(ROWS[0])
    plot_test_accuracy(methods[:1], replace(settings, epochs=1), [tmp_path], tmp_path / "one.png")
    assert (tmp_path / "two.pdf").exists()
    for name in ("all.png", "two.png", "one.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_summarise_takes_the_methods_asked_for(real_run):
    summary = json.loads((real_run / "summary.json").read_text())
    settings = Settings(**summary["settings"])
    metrics = Metrics(real_run / "metrics.csv")
    again = summarise(METHODS[:1], metrics, settings, summary["n_weights"], real_run)
    assert again["methods"] == {"sgd": summary["methods"]["sgd"]}
