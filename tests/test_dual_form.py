"""Tasks with fewer rows than features: held as rows, they say what (D, D) matrices say."""

import dataclasses

import pytest
import torch
from torch.linalg import LinAlgError

from bmm_multitask_learning import (
    Bernoulli,
    Categorical,
    CoordinateAscent,
    Gaussian,
    IndependentTasks,
    MultitaskModel,
    SharedGaussian,
    SparseBayesian,
    TaskData,
    fit,
)
from bmm_multitask_learning.gaussian import DenseScale, condition
from bmm_multitask_learning.likelihoods import Rows
from bmm_multitask_learning.precision import LowRankFactor, RowPrecision, combine
from bmm_multitask_learning.priors.patterns import _sizes
from bmm_multitask_learning.sites import blend, fold_statistics, latent_moments, local_factor

from .cases import EVERY_PRIOR, LIKELIHOODS, built_model, make_data

# One task without rows, one of one row; D = 11.
FEW = (4, 0, 1, 3)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def few_rows(kind: str, scale: float = 1.0) -> TaskData:
    outputs = {"categorical": None}.get(kind, 2)
    data = make_data(kind, rows=FEW, num_features=11, outputs=outputs)
    y = data.y.clone()
    y[2] = torch.nan
    if y.ndim == 2:
        y[5, 1] = torch.nan
    return TaskData(
        scale * data.x, y, data.task, tasks=data.tasks, task_features=data.task_features
    )


def in_both_forms(prior, likelihood, data, seed=3):
    """The model, and its tasks' factors as matrices and as rows, where q is not at its start."""
    model = built_model(prior, likelihood, data, seed=seed)
    plain = model.rows("tasks", data)
    factors = []
    for rows in (plain, plain.in_dual_form()):
        summary = likelihood.summarise(rows)
        factor = likelihood.statistics(summary, likelihood.eta)
        posterior = model.prior.expand(
            model.prior.condition(model.prior.reduce(factor), prior.eta)
        )
        factors.append(
            local_factor(likelihood, rows, *latent_moments(posterior, rows), likelihood.eta)
        )
    assert isinstance(factors[0].precision, torch.Tensor)
    assert isinstance(factors[1].precision, RowPrecision)
    return model, plain, factors


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("prior", EVERY_PRIOR)
def test_rows_say_what_matrices_say(prior, likelihood):
    data = few_rows(likelihood.split("-")[0])
    model, rows, factors = in_both_forms(EVERY_PRIOR[prior](), LIKELIHOODS[likelihood](), data)
    said = []
    for factor in factors:
        eta = {name: value.clone().requires_grad_() for name, value in model.prior.eta.items()}
        posterior = model.prior.condition(model.prior.reduce(factor), eta)
        gradient = torch.autograd.grad(
            posterior.log_normaliser, list(eta.values()), retain_graph=True, allow_unused=True
        )
        tasks = model.prior.expand(posterior, factor)
        common = tasks.roots.common
        said.append(
            {
                "A": factor.A.expand(-1, factor.b.shape[1], -1, -1),
                "b": factor.b,
                "trace": factor.trace_term(tasks.roots.whole.movedim(1, 0)),
                "log_normaliser": posterior.log_normaliser,
                "mean": tasks.mean,
                "covariance": tasks.covariance,
                "std": tasks.std,
                "variance": tasks.roots.variance(),
                "between tasks": torch.einsum("kcois,lcojs->klcoij", common, common),
                "effective": tasks.own_trace(),
                "divergence": tasks.kl_to_prior(factor),
                "latent": torch.stack(tasks.latent(rows.phi, rows.blocks)),
                **{
                    f"gradient {n}": g for n, g in zip(eta, gradient, strict=True) if g is not None
                },
            }
        )
    for name, value in said[0].items():
        torch.testing.assert_close(
            said[1][name], value, **CLOSE, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("factorised", [False, True])
def test_patterns_are_told_by_rows_what_matrices_tell(rank, factorised):
    data = few_rows("bernoulli")
    prior = SparseBayesian(rank=rank, factorised=factorised)
    model, _, factors = in_both_forms(prior, Bernoulli(), data)
    dense, rows = (model.prior.condition(factor, model.prior.eta) for factor in factors)
    for name in ("log_normaliser", "mean", "covariance"):
        torch.testing.assert_close(getattr(rows, name), getattr(dense, name), **CLOSE)
    torch.testing.assert_close(rows.own_trace(), dense.own_trace(), **CLOSE)
    torch.testing.assert_close(rows.centre().mean, dense.centre().mean, **CLOSE)
    for root in (lambda q: q.roots.common, lambda q: q.centre().root):
        found, expected = (root(q) @ root(q).mT for q in (rows, dense))
        torch.testing.assert_close(found, expected, **CLOSE)
    found, expected = (q.roots.common[:, 0] @ q.centre().root[0].mT for q in (rows, dense))
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
@pytest.mark.parametrize(
    "make_prior", [lambda: SharedGaussian("diagonal"), IndependentTasks, lambda: SharedGaussian()]
)
def test_a_fit_is_the_same_in_either_form(make_prior, kind, monkeypatch):
    likelihood = {"gaussian": lambda: Gaussian(noise="task"), "bernoulli": Bernoulli}[kind]
    data = few_rows(kind)
    bounds, predictions = [], []
    for share in (0.5, 0.0):
        monkeypatch.setattr(
            "bmm_multitask_learning.likelihoods.likelihood._ROWS_PER_FEATURE", share
        )
        model = MultitaskModel(prior=make_prior(), likelihood=likelihood())
        result = fit(model, data, engine=CoordinateAscent(max_iter=30), progress=False)
        bounds.append(result.bound)
        predictions.append(model.predict(data.x, data.task.tolist()).mean)
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    torch.testing.assert_close(*predictions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_any_units_of_the_features(scale):
    data = few_rows("bernoulli", scale)
    model = built_model(IndependentTasks(), Bernoulli(), data, seed=3)
    rows = model.rows("tasks", data).in_dual_form()
    dual = model.likelihood.statistics(model.likelihood.summarise(rows), {})
    eta = {"precision": model.prior.eta["precision"] * scale**2}
    dense = dataclasses.replace(dual, precision=dual.A)
    expected, found = (model.prior.condition(factor, eta) for factor in (dense, dual))
    torch.testing.assert_close(found.log_normaliser, expected.log_normaliser, **CLOSE)
    torch.testing.assert_close(found.mean * scale, expected.mean * scale, **CLOSE)
    for value, wanted in zip(
        *(q.latent(rows.phi, rows.blocks) for q in (found, expected)), strict=True
    ):
        torch.testing.assert_close(value, wanted, **CLOSE)


@pytest.mark.parametrize("make_prior", [lambda: SharedGaussian("diagonal"), SparseBayesian])
def test_no_matrix_is_formed_on_the_way(make_prior, monkeypatch):
    """What a round of `refine` asks of many features is answered by rows alone."""
    data = few_rows("categorical")
    likelihood = Categorical(4)
    model, rows, (_, dual) = in_both_forms(make_prior(), likelihood, data)

    def refuse(self):
        raise AssertionError("a matrix was formed")

    monkeypatch.setattr(RowPrecision, "dense", refuse)
    monkeypatch.setattr(LowRankFactor, "dense", refuse)
    posterior = model.prior.condition(dual, model.prior.eta)
    posterior.latent(rows.phi, rows.blocks)
    posterior.kl_to_prior(dual)


@pytest.mark.parametrize("same", [True, False])
def test_the_same_inputs_are_known_as_such(same):
    """Tasks with the same rows in the same order share one eigendecomposition."""
    x, y = draw(3, 7).tile(4, 1), draw(12, 2)
    if not same:
        x[-1] += 1e-3
    data = TaskData(x, y, torch.arange(4).repeat_interleave(3).tolist())
    model, _, (dense, dual) = in_both_forms(SparseBayesian(), Gaussian("task"), data)
    size = _sizes(dual.precision)
    assert (size is not None) == same
    if same:
        torch.testing.assert_close(size, _sizes(dense.A), **CLOSE)
    with torch.no_grad():
        expected, found = (model.prior.condition(t, model.prior.eta) for t in (dense, dual))
    torch.testing.assert_close(found.log_normaliser, expected.log_normaliser, **CLOSE)
    torch.testing.assert_close(found.covariance, expected.covariance, **CLOSE)
    torch.testing.assert_close(found.own_trace(), expected.own_trace(), **CLOSE)


def test_only_tasks_with_few_rows_are_held_as_rows():
    wide = make_data(rows=FEW, num_features=8)
    for data, few in ((wide, True), (make_data(rows=FEW, num_features=7), False)):
        rows = built_model(SharedGaussian(), Gaussian(), data).rows("tasks", data).in_dual_form()
        assert (rows.laid_out is not None) == few
    assert rows.in_dual_form() is rows
    phi = torch.randn(6, 40, dtype=torch.float64)
    task = torch.tensor([0, 0, 1, 1, 1, 1])
    blocks = Rows.from_targets(phi, phi[:, 0], None, task, 2).blocks
    halves = type(blocks).from_tasks(task, 2, 2)  # a task of two blocks
    assert Rows.from_targets(phi, phi[:, 0], None, task, 2, halves).in_dual_form().laid_out is None


def test_no_rows_at_all():
    rows = Rows.from_targets(
        torch.zeros(0, 4).double(), torch.zeros(0), None, torch.zeros(0, dtype=torch.long), 3
    ).in_dual_form()
    precision, linear = rows.moments(None, rows.y)
    assert torch.equal((precision @ torch.eye(4).double()), torch.zeros(3, 1, 4, 4).double())
    assert torch.equal(linear, torch.zeros(3, 1, 4).double())


# ---- the two matrices that are not formed -------------------------------------------------------


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_rows_multiply_as_their_matrix():
    A = RowPrecision(draw(5, 1, 2, 7), draw(5, 3, 2).square())
    x = draw(5, 3, 7, 4)
    matrix = torch.einsum("kni,kon,knj->koij", A.phi[:, 0], A.weight, A.phi[:, 0])
    torch.testing.assert_close(A.dense(), matrix)
    torch.testing.assert_close(A @ x, matrix @ x)
    torch.testing.assert_close((A * draw(5, 1, 1, 1)).dense(), matrix * draw(5, 1, 1, 1))
    torch.testing.assert_close(A[1:3].dense(), matrix[1:3])
    torch.testing.assert_close(A[:, None].dense(), matrix[:, None])
    torch.testing.assert_close(A.root().mT @ A.root(), matrix)


def test_combinations_stay_rows_only_of_the_same_rows():
    A = RowPrecision(draw(5, 1, 2, 7), draw(5, 3, 2))
    same = RowPrecision(A.phi, draw(5, 3, 2).square())
    others = RowPrecision(A.phi.flip(0), same.weight)
    weights = (0.3, -1.7)
    for second, kept in ((same, True), (others, False), (others.dense(), False)):
        found = combine(weights, (A, second))
        assert isinstance(found, RowPrecision) == kept
        dense = second if isinstance(second, torch.Tensor) else second.dense()
        expected = 0.3 * A.dense() - 1.7 * dense
        torch.testing.assert_close(found.dense() if kept else found, expected)
        back = combine(weights[::-1], (second, A))
        torch.testing.assert_close(back.dense() if kept else back, expected)


def test_the_root_of_low_rank_is_a_root():
    F = draw(5, 3, 2, 7) * 4
    T, root = LowRankFactor.of(F)
    eye = torch.eye(7, dtype=F.dtype)
    torch.testing.assert_close(
        root.dense().mT @ root.dense(), torch.linalg.inv(eye + F.mT @ F), **CLOSE
    )
    torch.testing.assert_close(
        2 * T.diagonal(dim1=-2, dim2=-1).log().sum(-1), torch.logdet(eye + F.mT @ F), **CLOSE
    )
    x = draw(5, 3, 7, 4)
    torch.testing.assert_close(root @ x, root.dense() @ x)
    torch.testing.assert_close(root.mT @ x, root.dense().mT @ x)
    torch.testing.assert_close(root[1:3].dense(), root.dense()[1:3])


def test_a_row_that_says_all_leaves_no_negative_variance():
    _, root = LowRankFactor.of(1e9 * draw(1, 7))
    x = draw(1, 7).mT
    assert 0 <= float((root @ x).square().sum()) < 1e-12


def test_gradients_in_the_weights_where_some_are_zero():
    """Padding has weight 0, where a root has no gradient."""
    phi, b, L = draw(5, 2, 7), draw(5, 7), draw(5, 7, 7)
    weight = draw(5, 2).square()
    weight[:, 1] = 0
    phi[:, 1] = 0
    gradients = []
    for dense in (False, True):
        h = weight.clone().requires_grad_()
        A = RowPrecision(phi, h)
        given = condition(A.dense() if dense else A, b, b[:, 0], DenseScale(L))
        gradients.append(torch.autograd.grad(given.log_normaliser.sum(), h)[0])
    torch.testing.assert_close(*gradients, **CLOSE)


def test_a_negative_weight_is_refused():
    A = RowPrecision(draw(2, 7), torch.tensor([1.0, -1e-3]).double())
    with pytest.raises(LinAlgError, match="negative weight"):
        condition(A, draw(7), draw(1)[0], DenseScale(torch.eye(7).double()))


def test_parts_of_the_rows_add_up_as_rows():
    data = few_rows("bernoulli")
    model, rows, (_, dual) = in_both_forms(SharedGaussian("isotropic"), Bernoulli(), data)
    rows = rows.in_dual_form()
    parts = fold_statistics(model.likelihood, rows, model.prior.condition(dual, model.prior.eta))
    whole = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
    assert isinstance(whole.precision, RowPrecision)
    torch.testing.assert_close(whole.A, sum(part.A for part in parts))
    again = blend(parts[0], parts[1], 0.25)
    torch.testing.assert_close(again.A, 0.75 * parts[0].A + 0.25 * parts[1].A)
    torch.testing.assert_close(again.b, 0.75 * parts[0].b + 0.25 * parts[1].b)
