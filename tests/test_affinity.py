"""Which tasks help which: closed forms, planted truth, invariances, errors."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from bmm_multitask_learning import (
    SVI,
    Bernoulli,
    Categorical,
    Family,
    Gaussian,
    MultitaskModel,
    PooledTasks,
    SharedGaussian,
    TaskData,
    datasets,
    fit,
    plots,
    task_affinity,
)
from bmm_multitask_learning.affinity.evidence import (
    CORRELATIONS,
    CentreFactors,
    log_partitions,
    pair_gains,
)
from bmm_multitask_learning.affinity.result import TaskAffinity, average_linkage
from bmm_multitask_learning.affinity.task_affinity import task_statistics
from bmm_multitask_learning.backbones import MLP, Pooled, Words
from bmm_multitask_learning.benchmarks import Forecast, Problem, Rows
from bmm_multitask_learning.benchmarks.affinity import Gains, in_row_space, score

from .cases import built_model, make_data
from .reference import dense_posterior

ROWS = (7, 2, 11, 1)  # K = 4 tasks, D = 5 features
COVARIANCES = ("full", "diagonal", "isotropic")


def made(covariance: str = "full", *, outputs: int | None = None, noise: str = "shared"):
    """A built model with drawn hyperparameters, and its data."""
    data = make_data(rows=ROWS, outputs=outputs, seed=3)
    return built_model(SharedGaussian(covariance), Gaussian(noise), data, seed=5), data


def law_of_weights(prior: SharedGaussian) -> np.ndarray:
    """T = S + Σ, (O, D, D), from the hyperparameters alone."""
    eta = {name: value.numpy() for name, value in prior.eta.items()}
    O = len(prior.scatter)
    centre = [np.diag(prior.scatter[o].numpy() / eta["centre_precision"][o]) for o in range(O)]
    return np.array(centre) + prior.covariance_matrix.numpy()


def dense_log_evidence(model, tables: list[tuple[np.ndarray, np.ndarray]], rho: float) -> float:
    """Of the rows (x, y) of tasks whose weights correlate by ρ, by one Gaussian over all rows."""
    total = 0.0
    for o, law in enumerate(law_of_weights(model.prior)):
        x = [table[0] for table in tables]
        task = np.repeat(np.arange(len(x)), [len(part) for part in x])
        same = np.where(task[:, None] == task, 1.0, rho)
        design = np.concatenate(x)
        noise = 1 / float(model.likelihood.noise_level[o])
        covariance = same * (design @ law @ design.T) + noise * np.eye(len(design))
        y = np.concatenate([table[1].reshape(len(table[1]), -1)[:, o] for table in tables])
        total += multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    return total


def rows_of(data: TaskData, k: int) -> tuple[np.ndarray, np.ndarray]:
    own = (data.task == k).numpy()
    return data.x.numpy()[own], data.y.numpy()[own]


def averaged(model, tables) -> float:
    """The evidence with the correlation integrated over its nodes."""
    return np.logaddexp.reduce([dense_log_evidence(model, tables, r) for r in CORRELATIONS]) - (
        np.log(len(CORRELATIONS))
    )


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_evidence_is_that_of_the_dense_gaussian(covariance, outputs):
    model, data = made(covariance, outputs=outputs)
    matrix = task_affinity(model, data).matrix
    for i, j in itertools.combinations(range(4), 2):
        first, second = rows_of(data, i), rows_of(data, j)
        gain = averaged(model, [first, second]) - averaged(model, [first])
        gain -= averaged(model, [second])
        assert matrix[i, j] == pytest.approx(gain, abs=1e-8)
        assert matrix[j, i] == matrix[i, j]
    assert np.isnan(matrix.diagonal()).all()


def gain_at(model: MultitaskModel, data: TaskData, rho: float) -> np.ndarray:
    """Of every pair, at one correlation."""
    statistics = model.likelihood.statistics(
        model.likelihood.summarise(model.rows("tasks", data)), model.likelihood.eta
    )
    root = torch.linalg.cholesky(torch.from_numpy(law_of_weights(model.prior)))
    factors = CentreFactors.of_tasks(statistics, root, (rho,))
    pairs = torch.triu_indices(data.num_tasks, data.num_tasks, 1)
    return pair_gains(factors, factors, tuple(pairs), progress=False).numpy()


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_evidence_is_that_of_a_shared_gaussian_on_the_pair(rho):
    """At one correlation: a prior with S = ρT and Σ = (1 − ρ)T, by tests/reference.py."""
    model, data = made("isotropic")
    scatter = torch.full_like(model.prior.scatter, 0.7)
    model.prior.register_buffer("scatter", scatter)
    size = law_of_weights(model.prior)[0, 0, 0]

    def evidence(*tasks: int) -> float:
        part = data.rows(torch.isin(data.task, torch.tensor(tasks)))
        labels = part.task.numpy() if len(tasks) > 1 else np.full(part.num_rows, tasks[0])
        part = TaskData(part.x, part.y, labels, tasks=tasks)
        small = built_model(SharedGaussian("isotropic"), Gaussian(), part)
        small.likelihood.set_eta(model.likelihood.eta)
        small.prior.register_buffer("scatter", scatter)
        like = scatter.new_ones(1)
        small.prior.set_eta(
            {
                "centre_precision": like * 0.7 / (rho * size),
                "precision": like / ((1 - rho) * size),
            }
        )
        return dense_posterior(small.prior, small.likelihood, part).log_evidence

    expected = [
        evidence(i, j) - evidence(i) - evidence(j) for i, j in itertools.combinations(range(4), 2)
    ]
    assert gain_at(model, data, rho) == pytest.approx(expected, abs=1e-8)


def test_nothing_is_gained_at_a_fixed_centre():
    model, data = made()
    assert np.abs(gain_at(model, data, 0.5)).min() > 1e-4
    assert gain_at(model, data, 0.0) == pytest.approx(0, abs=1e-10)


def test_held_out_gain_is_the_difference_of_dense_predictive_densities():
    model, data = made()
    test = make_data(rows=(3, 4, 2, 5), seed=11)
    affinity = task_affinity(model, data, held_out=test)
    assert affinity.kind == "held-out"
    assert not affinity.symmetric
    for i, j in itertools.permutations(range(4), 2):
        helper, own, further = rows_of(data, i), rows_of(data, j), rows_of(test, j)
        both = tuple(np.concatenate(parts) for parts in zip(own, further, strict=True))
        gain = averaged(model, [helper, both]) - averaged(model, [helper, own])
        gain -= averaged(model, [both]) - averaged(model, [own])
        assert affinity.matrix[i, j] == pytest.approx(gain, abs=1e-8)


def test_a_task_without_observed_rows_gains_nothing():
    model, data = made()
    y = data.y.clone()
    y[data.task == 2] = torch.nan
    silent = TaskData(data.x, y, data.task, tasks=range(4))
    matrix = task_affinity(model, silent).matrix
    assert matrix[2, [0, 1, 3]] == pytest.approx(0, abs=1e-10)
    assert abs(matrix[0, 1]) > 1e-3


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_units_do_not_matter(scale):
    data, _ = datasets.make_clusters(num_tasks=9, num_clusters=3, num_features=4, seed=2)
    other = TaskData(data.x * scale, data.y / scale, data.task, tasks=range(9))
    found = []
    for part in (data, other):
        model = MultitaskModel(prior=SharedGaussian("diagonal"))
        fit(model, part, progress=False)
        found.append(task_affinity(model, part, progress=False).matrix)
    assert found[1] == pytest.approx(found[0], abs=1e-3, nan_ok=True)


def test_one_and_two_tasks():
    for K in (1, 2):
        data, _ = datasets.make_clusters(num_tasks=K, num_clusters=1, num_features=3, seed=0)
        model = MultitaskModel(prior=SharedGaussian("isotropic"))
        fit(model, data, progress=False)
        affinity = task_affinity(model, data)
        assert affinity.groups().tolist() == [0] * K
        assert affinity.groups(K).tolist() == list(range(K))
        assert len(affinity.ranking()) == K - 1


def test_more_features_than_rows_and_constant_columns():
    data = make_data(rows=ROWS, num_features=30, seed=1)
    x = data.x.clone()
    x[:, 3], x[:, 4] = 2.0, 0.0
    data = TaskData(x, data.y, data.task, tasks=range(4))
    model = MultitaskModel(prior=SharedGaussian("isotropic"))
    fit(model, data, progress=False)
    matrix = task_affinity(model, data).matrix
    assert np.isfinite(matrix[~np.eye(4, dtype=bool)]).all()


def fitted_clusters(seed: int, **sizes):
    data, truth = datasets.make_clusters(num_tasks=24, num_clusters=3, seed=seed, **sizes)
    model = MultitaskModel(prior=SharedGaussian("isotropic"))
    fit(model, data, progress=False)
    return model, data, truth


def area(affinity: TaskAffinity, labels: np.ndarray) -> float:
    """Probability that a pair of one cluster ranks above one of two."""
    at = np.triu_indices(len(labels), 1)
    mutual = 0.5 * (affinity.matrix + affinity.matrix.T)
    return roc_auc_score((labels[:, None] == labels)[at], mutual[at])


@pytest.mark.parametrize("seed", range(3))
def test_evidence_finds_planted_clusters(seed):
    model, data, truth = fitted_clusters(seed)
    affinity = task_affinity(model, data)
    assert area(affinity, truth.labels) > 0.97
    assert adjusted_rand_score(truth.labels, affinity.groups()) > 0.9
    assert affinity.groups().max() == 2


def test_evidence_of_yes_and_no_finds_planted_clusters():
    data, truth = datasets.make_clusters(
        num_tasks=16, num_clusters=2, rows_per_task=40, separation=4.0, seed=1
    )
    data = TaskData(data.x, (data.y > 0).double(), data.task, tasks=range(16))
    model = MultitaskModel(prior=SharedGaussian("isotropic"), likelihood=Bernoulli())
    fit(model, data, progress=False)
    affinity = task_affinity(model, data)
    assert area(affinity, truth.labels) > 0.97
    assert adjusted_rand_score(truth.labels, affinity.groups(2)) == 1


def test_factors_of_the_fit_stand_for_rows_of_yes_and_no():
    """Gains of pairs, against the ELBO with the best factors of every pair and single task."""
    data = make_data("bernoulli", rows=(20, 35, 28, 24), num_features=3, spread=1.5, seed=4)
    model = built_model(SharedGaussian("isotropic"), Bernoulli(), data)
    size, rho = law_of_weights(model.prior)[0, 0, 0], 0.6

    def bound(*tasks: int) -> float:
        part = data.rows(torch.isin(data.task, torch.tensor(tasks)))
        labels = part.task.numpy() if len(tasks) > 1 else np.full(part.num_rows, tasks[0])
        part = TaskData(part.x, part.y, labels, tasks=tasks)
        small = built_model(SharedGaussian("isotropic"), Bernoulli(), part)
        scatter, like = small.prior.scatter[0, 0], small.prior.scatter.new_ones(1)
        precision = like / ((1 - rho) * size)
        small.prior.set_eta(
            {"centre_precision": like * scatter / (rho * size), "precision": precision}
        )
        return small.log_evidence(part).value

    best = [bound(i, j) - bound(i) - bound(j) for i, j in itertools.combinations(range(4), 2)]
    root = torch.eye(3, dtype=torch.float64)[None] * size**0.5
    with torch.no_grad():
        factors = CentreFactors.of_tasks(task_statistics(model, "tasks", data), root, (rho,))
        pairs = torch.triu_indices(4, 4, 1)
        gains = pair_gains(factors, factors, tuple(pairs), progress=False).numpy()
    assert np.ptp(best) > 1
    assert gains == pytest.approx(best, abs=0.1 * np.ptp(best))
    assert np.corrcoef(gains, best)[0, 1] > 0.99


def test_evidence_leaves_unrelated_tasks_alone():
    apart = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weights, task = rng.standard_normal((12, 6)), np.repeat(np.arange(12), 10)
        x = rng.standard_normal((120, 6))
        y = (x * weights[task]).sum(1) + 0.5 * rng.standard_normal(120)
        data = TaskData(x, y, task)
        model = MultitaskModel(prior=SharedGaussian("isotropic"))
        fit(model, data, progress=False)
        apart.append(task_affinity(model, data).groups().max() == 11)
    assert sum(apart) >= 4


def test_evidence_joins_one_population():
    data, _ = datasets.make_clusters(num_tasks=15, num_clusters=1, seed=0)
    model = MultitaskModel()
    fit(model, data, progress=False)
    assert task_affinity(model, data).groups().max() == 0


@pytest.mark.parametrize("method", ["lookahead", "gradient"])
def test_steps_find_planted_clusters(method):
    _, data, truth = fitted_clusters(0, rows_per_task=20)
    model = MultitaskModel(backbone=MLP(6, [4], constant=False), prior=SharedGaussian("isotropic"))
    affinity = task_affinity(model, data, method, steps=10, progress=False)
    assert area(affinity, truth.labels) > 0.85


def two_tasks():
    """A net of two weights, y ≈ w tanh(a x + c), and a fitted model around it."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
            self.c = torch.nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))

        def forward(self, x):
            return torch.tanh(self.a * x + self.c)

    rng = np.random.default_rng(0)
    task = np.array([0] * 9 + [1] * 14)
    x = rng.standard_normal((23, 1))
    y = np.where(task == 0, 1.3, -0.4) * np.tanh(1.5 * x[:, 0]) + 0.1 * rng.standard_normal(23)
    data = TaskData(x, y, task, tasks=range(2))
    model = MultitaskModel(backbone=Net(), prior=SharedGaussian("isotropic"))
    model.build(data)
    return model, data


@pytest.mark.parametrize("method", ["lookahead", "gradient"])
def test_steps_are_those_written_by_hand(method):
    """Two steps of Adam on two tasks: scalars throughout."""
    model, data = two_tasks()
    x, y, task = data.x[:, 0].numpy(), data.y.numpy(), data.task.numpy()
    precision = float(model.likelihood.noise_level)
    law = law_of_weights(model.prior)[0, 0, 0]
    shared = float(model.prior.scatter / model.prior.eta["centre_precision"])
    a, c, lr = 0.7, -0.2, 0.05
    first, second = np.zeros(2), np.zeros(2)
    expected = np.zeros((2, 2))
    for step in (1, 2):
        h = np.tanh(a * x + c)
        # posterior mean of (w_0, w_1) ~ N(0, [[T, S], [S, T]])
        known = np.linalg.inv([[law, shared], [shared, law]])
        known += precision * np.diag([(h[task == k] ** 2).sum() for k in (0, 1)])
        told = precision * np.array([(h * y)[task == k].sum() for k in (0, 1)])
        w = np.linalg.solve(known, told)

        def loss(a: float, c: float, k: int, w: np.ndarray = w) -> float:
            own = task == k
            residual = y[own] - w[k] * np.tanh(a * x[own] + c)
            return 0.5 * precision * (residual**2).mean()

        slope = (h * w[task] - y) * w[task] * (1 - h**2) * precision
        gradient = [
            np.array([(slope * x)[task == k].mean(), slope[task == k].mean()]) for k in (0, 1)
        ]
        for i, j in itertools.product((0, 1), repeat=2):
            after = loss(a - lr * gradient[i][0], c - lr * gradient[i][1], j)
            size = np.linalg.norm(gradient[i]) * np.linalg.norm(gradient[j])
            expected[i, j] += (
                1 - after / loss(a, c, j)
                if method == "lookahead"
                else gradient[i] @ gradient[j] / size
            ) / 2
        mean = (gradient[0] + gradient[1]) / 2
        first, second = 0.9 * first + 0.1 * mean, 0.999 * second + 0.001 * mean**2
        move = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        a, c = a - lr * move[0], c - lr * move[1]
    affinity = task_affinity(model, data, method, steps=2, lr=lr, progress=False)
    assert affinity.matrix == pytest.approx(expected, abs=1e-9)
    assert affinity.kind == method


@pytest.mark.parametrize("method", ["evidence", "lookahead", "gradient"])
def test_the_model_and_the_generators_stay_as_they_are(method):
    data = make_data(rows=ROWS)
    backbone = MLP(5, [3], seed=1)
    model = MultitaskModel(backbone=backbone, prior=SharedGaussian("isotropic"))
    fit(model, data, engine=SVI(steps=3), progress=False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(4)
    first = task_affinity(model, data, method, steps=2, progress=False).matrix
    drawn = torch.rand(())
    torch.manual_seed(4)
    assert drawn == torch.rand(())
    again = task_affinity(model, data, method, steps=2, progress=False).matrix
    np.testing.assert_array_equal(first, again)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_families_are_tasks():
    data = {
        "price": make_data(rows=(5, 8), seed=0),
        "liked": make_data("bernoulli", rows=(9, 3, 6), seed=1),
    }
    families = {
        "price": Family(SharedGaussian("isotropic")),
        "liked": Family(PooledTasks(), Bernoulli()),
    }
    model = MultitaskModel(backbone=MLP(5, [3]), families=families)
    affinity = task_affinity(model, data, "lookahead", steps=2, progress=False)
    assert affinity.tasks == ("price", "liked")
    assert affinity.matrix.diagonal().min() > 0  # a step on its own loss lowers it
    inner = task_affinity(model, data, "gradient", family="liked", steps=2, progress=False)
    assert inner.tasks == (0, 1, 2)
    assert inner.matrix.diagonal() == pytest.approx(1)
    with pytest.raises(ValueError, match="say which with family="):
        task_affinity(model, data)


def test_families_of_sentences_and_of_words_are_tasks():
    class Letters(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.states = torch.nn.Embedding(6, 3, dtype=torch.float64)

        def forward(self, x):
            return self.states(x[:, 0].clamp(min=0).long())

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(6, (8, 4), generator=generator, dtype=torch.int32)
    x = torch.stack([ids, torch.arange(4, dtype=torch.int32).expand(8, 4)], 1)
    word = (ids % 2).double()  # odd letters are names, and sentences are of the first letter
    task = ["a", "b"] * 4
    data = {"mood": TaskData(x, word[:, 0], task), "names": TaskData(x, word, task)}
    prior = partial(SharedGaussian, "isotropic")
    families = {
        "mood": Family(prior(), Bernoulli(), reader=Pooled("cls", constant=True)),
        "names": Family(prior(), Categorical(2), reader=Words(constant=True)),
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MultitaskModel(backbone=Letters(), families=families)
    matrix = task_affinity(model, data, "lookahead", steps=3, progress=False).matrix
    assert matrix[1, 0] > 0  # every word's letter is told from, the first one's too
    assert matrix.diagonal().min() > 0


def test_groups_and_ranking_of_a_matrix():
    matrix = np.array(
        [[9.0, 3.0, -1.0, -2.0], [1.0, 9.0, -4.0, -1.0], [-1.0, -2.0, 9.0, 0.5], [-3.0, 0, 1.5, 9]]
    )
    affinity = TaskAffinity(matrix, "lookahead", tuple("abcd"), *average_linkage(matrix))
    assert affinity.groups().tolist() == [0, 0, 1, 1]
    assert affinity.groups(3).tolist() == [0, 0, 1, 2]
    assert affinity.groups(1).tolist() == [0, 0, 0, 0]
    ranking = affinity.ranking()
    assert ranking[0] == ("a", "b", 3.0)
    assert ranking[1] == ("d", "c", 1.5)
    assert len(ranking) == 12
    even = TaskAffinity(matrix + matrix.T, "gradient", tuple("abcd"), *average_linkage(matrix))
    assert len(even.ranking()) == 6
    with pytest.raises(ValueError, match=r'num_groups must be "auto" or lie in 1..4; got 5'):
        affinity.groups(5)


def test_numbers_of_partitions():
    assert np.exp(log_partitions(1)) == pytest.approx([1])
    assert np.exp(log_partitions(5)) == pytest.approx([1, 15, 25, 10, 1])


def test_errors():
    model, data = made()
    with pytest.raises(ValueError, match='"lookahead" or "gradient"; got \'cosine\''):
        task_affinity(model, data, "cosine")
    with pytest.raises(ValueError, match=r'no parameters to train\. Use method="evidence"'):
        task_affinity(model, data, "gradient")
    with pytest.raises(ValueError, match='held_out is for method="evidence"; got it with'):
        task_affinity(model, data, "lookahead", held_out=data)
    with pytest.raises(ValueError, match="got 3 tasks where the model has 4"):
        task_affinity(model, make_data())
    with pytest.raises(RuntimeError, match="call fit"):
        task_affinity(MultitaskModel(), data)
    pooled = built_model(PooledTasks(), Gaussian(), data)
    with pytest.raises(TypeError, match="SharedGaussian; got PooledTasks"):
        task_affinity(pooled, data)
    counts = make_data("bernoulli", rows=ROWS)
    classes = built_model(SharedGaussian(), Bernoulli(), counts)
    with pytest.raises(ValueError, match="the rows of a Bernoulli have no density"):
        task_affinity(classes, counts, held_out=counts)
    trained = MultitaskModel(backbone=MLP(5, [3]))
    with pytest.raises(ValueError, match="steps must be at least 1 and lr positive; got 0 and"):
        task_affinity(trained, data, "gradient", steps=0)


def test_the_benchmark_rotates_features_without_loss():
    """Products with train rows and lengths stay: all that an isotropic prior sees."""
    rng = np.random.default_rng(0)
    train = Rows(rng.standard_normal((4, 9)), np.zeros(4), np.arange(4))
    test = Rows(rng.standard_normal((7, 9)), np.zeros(7), np.zeros(7, int))
    inner, outer = in_row_space(train, test)
    assert inner.x.shape == (4, 5)
    assert inner.x @ inner.x.T == pytest.approx(train.x @ train.x.T)
    assert outer.x @ inner.x.T == pytest.approx(test.x @ train.x.T)
    assert np.square(outer.x).sum(1) == pytest.approx(np.square(test.x).sum(1))


def test_the_benchmark_scores_a_ranking_of_pairs():
    gain = np.linspace(-1, 1, 21)  # of the pairs of 7 tasks
    rows = Rows(np.ones((7, 1)), np.zeros(7), np.arange(7))
    problem = Problem(rows, rows, 7, Gains(gain, gain**2))
    matrix = np.full((7, 7), np.nan)
    matrix[np.triu_indices(7, 1)] = gain**3
    matrix[np.triu_indices(7, 1)[::-1]] = gain**3
    figures = score(problem, Forecast(matrix))
    assert figures["rank"] == pytest.approx(1)
    assert figures["density_highest"] == pytest.approx(gain[11:].mean())
    assert figures["density_lowest"] == pytest.approx(gain[:10].mean())
    assert figures["accuracy_apart"] == pytest.approx(0)


@pytest.mark.parametrize("kind", ["evidence", "lookahead"])
def test_picture(kind):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    matrix = np.array([[9.0, 3.0, -1.0], [1.0, 9.0, -4.0], [-1.0, -2.0, 9.0]])
    affinity = TaskAffinity(matrix, kind, tuple("abc"), *average_linkage(matrix))
    ax = plots.affinity(affinity)
    shown = np.asarray(ax.images[0].get_array(), dtype=float)
    assert np.isnan(shown.diagonal()).all()
    assert np.nanmax(np.abs(shown)) == 4
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["b", "a", "c"]
    assert ax.get_ylabel() == ("helper" if kind == "lookahead" else "")
