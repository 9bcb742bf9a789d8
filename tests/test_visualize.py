"""The pictures: what they are drawn from, and the command."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train_cmd
import visualize
from tests import trajectories
from tests.conftest import SMALL, exit_code
from utils.base_utils import get_model
from utils.cmd.fitting import fit_cmd
from utils.cmd.model import CMDModel
from utils.cmd.snapshots import Snapshots
from utils.cmd.vector import write_vector
from utils.data.datasets import load_dataset
from utils.methods.cmd import PostHocCMD
from utils.results.pictures import dynamics, landscape
from utils.results.pictures.correlation import apart, by_mode
from utils.results.pictures.modes import mapped_members, movement_of
from utils.results.stored_run import StoredRun
from utils.storage.sealed import save_tensors
from utils.storage.store import Store, read_config
from utils.system.errors import UserError
from utils.training.epochs import evaluate

TRAJECTORY = trajectories.drifting(30, 600)
CMD = fit_cmd(TRAJECTORY, torch.arange(0, 600, 3), 5)


@pytest.fixture(scope="module")
def run(real_run):
    return StoredRun(real_run)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits", "", 32, False).limited(256)


@pytest.fixture
def draw(real_run, tmp_path):
    def call(*argv):
        where = ["--model", "lenet", "--results_dir", str(real_run.parent)]
        return visualize.main([*argv, *where, "--output", str(tmp_path)])

    return call


@pytest.mark.parametrize("picture", ["correlation", "modes", "dynamics", "accuracy"])
def test_each_picture_is_png_and_pdf(draw, tmp_path, picture):
    assert draw(picture) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{picture}.png", f"{picture}.pdf"}
    assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / f"{picture}.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert draw(picture) == 0
    assert (tmp_path / f"{picture}.pdf").read_bytes() == first


def test_all_that_the_run_allows(draw, tmp_path, real_run, capsys):
    before = {path.name for path in real_run.iterdir()}
    assert draw("all", "--points", "3", "--images", "20") == 0
    out = capsys.readouterr().out
    assert "embedding is left out: " in out and "--cmd_embed True" in out
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.pdf"))) == 6
    assert {path.name for path in real_run.iterdir()} == before


def test_embedding_and_seeds(tmp_path, capsys, monkeypatch):
    where = ["--results_dir", str(tmp_path)]
    argv = [*SMALL, "--limit", "64", "--epochs", "4", "--warmup_cmd", "1", "--embed_window", "1"]
    argv += ["--seeds", "0", "3"]
    assert train_cmd.main([*argv, "--cmd_embed", "1", "--cmd_PostHoc", "", *where]) == 0
    for picture in ("embedding", "accuracy"):
        assert visualize.main([picture, "--model", "lenet", "--seeds", "0", "3", *where]) == 0
    pictures = tmp_path / "lenet_seeds/seed_0/pictures"
    assert {path.name for path in pictures.glob("*.png")} == {"embedding.png", "accuracy.png"}

    drawn = []
    monkeypatch.setattr(
        visualize, "plot_test_accuracy", lambda methods, *_, **__: drawn.extend(methods) or []
    )
    argv = ["accuracy", "--model", "lenet", "--seeds", "0", "3", *where, "--methods"]
    assert visualize.main([*argv, "cmd_embed", "sgd"]) == 0
    assert [method.name for method in drawn] == ["sgd", "cmd_embed"]
    capsys.readouterr()
    assert visualize.main([*argv, "cmd_posthoc"]) == 2
    assert "no method to be drawn is finished" in capsys.readouterr().err


def test_one_run_is_not_several(tmp_path, real_run, capsys):
    for seed in (0, 1):
        shutil.copytree(real_run, tmp_path / f"results/lenet_seeds/seed_{seed}")
    argv = ["accuracy", "--model", "lenet", "--results_dir", str(tmp_path / "results"), "--seeds"]
    for seeds, words in ((("0", "0"), "give each seed once"), (("0", "1"), "the run of --seed 0")):
        assert visualize.main([*argv, *seeds]) == 2
        assert words in capsys.readouterr().err


def test_order_by_mode():
    signed = torch.tensor(
        [[1, -0.5, 0.2, 0.9], [-0.5, 1, 0, 0.3], [0.2, 0, 1, 0], [0.9, 0.3, 0, 1]]
    )
    order = by_mode(signed, torch.tensor([0, 0, 1, 0]), torch.tensor([0, 2]))
    assert order.tolist() == [0, 3, 1, 2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_labels_are_kept_apart(places):
    places = np.sort(places)
    found = apart(places, 0.04)
    assert (np.diff(found) >= 0.04 - 1e-9).all()
    assert found[0] >= -1e-9 and found[-1] <= 1 + 1e-9


def test_movement_against_numpy():
    movement = movement_of(Snapshots(TRAJECTORY), CMD)
    wide = TRAJECTORY.astype(np.float64)
    modelled = CMD.a.numpy() * wide[:, CMD.reference][:, CMD.mode.long()] + CMD.b.numpy()
    for mode in range(CMD.modes):
        here = (CMD.mode == mode).numpy()
        total = ((wide - wide.mean(0))[:, here] ** 2).sum()
        left = ((wide - modelled)[:, here] ** 2).sum()
        assert movement.total[mode] == pytest.approx(total)
        assert movement.explained[mode] == pytest.approx(total - left, rel=1e-3)


def test_members_on_the_scale_of_their_reference():
    mapped = mapped_members(Snapshots(TRAJECTORY), CMD, 0)
    here = ((CMD.mode == 0) & (CMD.a.abs() > 1e-3)).numpy()
    expected = (TRAJECTORY[:, here] - CMD.b.numpy()[here]) / CMD.a.numpy()[here]
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-4)
    reference = TRAJECTORY[:, CMD.reference[0]]  # they lie about it
    assert np.corrcoef(mapped.median(1).values, reference)[0, 1] > 0.9


def test_cmd_of_the_warmup_against_numpy():
    cmd = fit_cmd(TRAJECTORY, torch.arange(200), 4, end=10)
    some = torch.tensor([3, 77, 500])
    found = dynamics.of_warmup(Snapshots(TRAJECTORY), cmd, some)
    modelled = cmd.a.numpy() * TRAJECTORY[:, cmd.reference][:, cmd.mode.long()] + cmd.b.numpy()
    error = np.linalg.norm(modelled - TRAJECTORY, axis=1) / np.linalg.norm(TRAJECTORY, axis=1)
    np.testing.assert_allclose(found.error, error, rtol=1e-4)
    np.testing.assert_allclose(found.shown, modelled[:, some], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_fitted", [12, 30])
def test_dmd_in_coordinates_is_that_of_the_weights(n_fitted):
    pydmd = pytest.importorskip("pydmd")
    some = torch.tensor([0, 41, 599])
    coordinates, basis = dynamics.in_their_span(Snapshots(TRAJECTORY), some)
    found = dynamics.by_dmd(coordinates, basis, 4, n_fitted)
    wide = TRAJECTORY.T.astype(np.float64)
    dmd = pydmd.DMD(svd_rank=4).fit(wide[:, :n_fitted])
    dmd.dmd_time["tend"] = wide.shape[1] - 1
    direct = dmd.reconstructed_data.real
    np.testing.assert_allclose(found.shown, direct[some].T, rtol=1e-4, atol=1e-5)
    error = np.linalg.norm(direct - wide, axis=0) / np.linalg.norm(wide, axis=0)
    np.testing.assert_allclose(found.error, error, rtol=1e-3, atol=1e-5)


def test_updated_online_ends_where_the_run_did(run, real_run):
    cmd = CMDModel.load(real_run / "cmd_online.pt")
    found = dynamics.updated_online(run, torch.arange(50), iter)
    expected = cmd.reconstruct(cmd.reference_history[-1])
    np.testing.assert_array_equal(found.shown[-1], expected[:50].numpy())
    assert np.isnan(found.error[:4]).all() and np.isfinite(found.error[4:]).all()


def grid_of(run, dataset, path, progress=iter, points=3):
    device = torch.device("cpu")
    return landscape.evaluate_grid(run, dataset, device, (0, 1), points, 0.5, path, "key", progress)


def test_grid_points_are_tests_of_the_reconstruction(run, dataset, tmp_path):
    grid = grid_of(run, dataset, tmp_path / "grid.npz")
    cmd, model = run.posthoc, get_model("lenet").build(num_classes=10)
    weights = cmd.reference_history[-1].clone()
    for x, y, loss, correct in [
        (*grid.own, grid.own_loss, grid.own_correct),
        (grid.x[0], grid.y[2], grid.loss[:, 2, 0], grid.correct[:, 2, 0]),
    ]:
        weights[0], weights[1] = float(x), float(y)
        write_vector(cmd.reconstruct(weights), model)
        for number, split in enumerate((dataset.train, dataset.test)):
            expected = evaluate(model, split, get_model("lenet").transform, 128)
            assert loss[number].sum() / len(split) == pytest.approx(expected[0], rel=1e-5)
            assert correct[number].sum() / len(split) == pytest.approx(expected[1])
    assert grid.counts.sum(1).tolist() == [256, 256]
    own = grid.own[0]
    assert grid.x == pytest.approx([own - abs(own) / 2, own, own + abs(own) / 2])


def test_a_value_of_zero_is_varied_absolutely():
    assert landscape._values(0.0, 3, 0.5).tolist() == [-0.5, 0, 0.5]
    assert landscape._values(-2.0, 3, 0.5).tolist() == [-3, -2, -1]


def test_a_stopped_grid_goes_on(run, dataset, tmp_path, monkeypatch):
    dataset = dataset.limited(32)
    whole = grid_of(run, dataset, tmp_path / "whole.npz")

    def stops(rows):
        for row in rows:
            if row == 2:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        grid_of(run, dataset, tmp_path / "grid.npz", stops)
    seen = []
    grid = grid_of(run, dataset, tmp_path / "grid.npz", lambda rows: seen.extend(rows) or rows)
    assert seen == [2]
    np.testing.assert_array_equal(grid.loss, whole.loss)
    (tmp_path / "grid.npz").write_bytes(b"PK damaged")
    again = grid_of(run, dataset, tmp_path / "grid.npz")
    np.testing.assert_array_equal(again.loss, whole.loss)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["landscape", "--axes", "0", "0"], "--axes 0 0"),
        (["landscape", "--axes", "0", "10"], "--axes 0 10"),
        (["landscape", "--classes", "dog"], "--classes dog"),
        (["landscape", "--points", "1"], "--points"),
        (["landscape", "--span", "0"], "--span"),
        (["portrait"], "portrait"),
        (["embedding"], "--cmd_embed True"),
        (["modes", "--seeds", "5"], "train_cmd.py --model lenet --seeds 5"),
    ],
)
def test_bad_input(draw, capsys, argv, words):
    code = exit_code(lambda: draw(*argv))
    error = capsys.readouterr().err
    assert code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "picture", "words"),
    [
        ("cmd_posthoc.pt", "modes", "this makes it: python train_cmd.py"),
        ("trajectory.npy", "correlation", "this makes it: python train_cmd.py"),
        ("config.json", "modes", "holds no run"),
    ],
)
def test_missing_files_name_the_command(real_run, tmp_path, capsys, name, picture, words):
    shutil.copytree(real_run, tmp_path / "lenet")
    (tmp_path / "lenet" / name).unlink()
    code = exit_code(
        lambda: visualize.main([picture, "--model", "lenet", "--results_dir", str(tmp_path)])
    )
    assert code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_command_named_is_for_where_the_run_is_now(real_run, tmp_path):
    moved = tmp_path / "elsewhere" / "lenet_seeds" / "seed_0"
    shutil.copytree(real_run, moved)
    values = read_config(moved)
    values["commands"] = ["python train_cmd.py --seeds 0 --results_dir before --cmd_PostHoc True"]
    Store.of(moved).write_config(values)
    with pytest.raises(UserError) as error:
        StoredRun(moved).require("nothing.pt", PostHocCMD)
    made = f"train_cmd.py --seeds 0 --cmd_PostHoc True --results_dir {tmp_path / 'elsewhere'}"
    assert str(error.value).endswith(made)


def test_files_of_other_runs_are_refused(real_run, tmp_path, capsys):
    shutil.copytree(real_run, tmp_path / "lenet")
    other = fit_cmd(TRAJECTORY, torch.arange(100), 3).state_dict()
    save_tensors(other, tmp_path / "lenet/cmd_posthoc.pt", "another")
    with pytest.raises(UserError, match="another run"):
        _ = StoredRun(tmp_path / "lenet").posthoc
    values = read_config(tmp_path / "lenet")
    values["settings"]["data"] = "0000"
    Store.of(tmp_path / "lenet").write_config(values)
    shutil.copy(real_run / "cmd_posthoc.pt", tmp_path / "lenet/cmd_posthoc.pt")
    code = exit_code(
        lambda: visualize.main(["landscape", "--model", "lenet", "--results_dir", str(tmp_path)])
    )
    assert code == 2
    assert "--data_dir data: its images are not those of the run" in capsys.readouterr().err
