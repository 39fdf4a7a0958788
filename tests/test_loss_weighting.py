"""Weightings of losses: closed forms, limits, what they do to a loop, and bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import gamma
from torch import Tensor, nn

from bmm_multitask_learning.weighting import (
    Aggregated,
    DynamicWeightAverage,
    FixedWeights,
    LossWeighting,
    Scalarized,
    UncertaintyWeighting,
    VariationalLossWeighting,
)

KINDS = ("squared", "absolute", "cross_entropy")
LOSSES = torch.tensor([0.8, 3.0, 0.2], dtype=torch.float64)
ROWS = (40, 60, 20)
ALL = torch.tensor(ROWS)
NU = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)

STRATEGIES = {
    "fixed": lambda: FixedWeights([1.0, 0.5, 2.0]),
    "uncertainty": lambda: UncertaintyWeighting(KINDS),
    "variational": lambda: VariationalLossWeighting(KINDS, ROWS),
    "pooled": lambda: VariationalLossWeighting(KINDS, ROWS, shape=2.0, rate=1.0, pooled=True),
    "average": lambda: DynamicWeightAverage(3, period=2),
}


class Heads(nn.Module):
    """A linear backbone of 4 features and three heads of 1 output."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shared = nn.Parameter(torch.randn(5, 4, generator=generator).double())
        self.own = nn.Parameter(torch.randn(4, 3, generator=generator).double())

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        e = x @ self.shared @ self.own - y
        return torch.stack([e[:, 0].square().mean(), e[:, 1].abs().mean(), e[:, 2].abs().mean()])


@pytest.fixture
def rows(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(30, 3, generator=generator, dtype=torch.float64)


# ---- what all have in common ----------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_gradient_is_the_weighted_sum_of_gradients(name: str, rows) -> None:
    model, weighting = Heads(), STRATEGIES[name]()
    for _ in range(4):
        weighting.update(LOSSES, ALL)
    parameters = [model.shared, model.own]
    losses = model.losses(*rows)
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
    weights = weighting.weights(losses.detach()).detach()
    weighting.backward(losses, [model.shared], [model.own])
    for i, parameter in enumerate(parameters):
        expected = sum(w * g[i] for w, g in zip(weights, each, strict=True))
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_it_remembers_is_saved(name: str) -> None:
    first, second = STRATEGIES[name](), STRATEGIES[name]()
    for losses in (LOSSES, 2 * LOSSES, LOSSES.flip(0), LOSSES, 0.1 * LOSSES):
        first.update(losses, ALL)
    second.load_state_dict(first.state_dict())
    for weighting in (first, second):
        weighting.update(LOSSES, ALL)
    assert torch.equal(first.weights(LOSSES), second.weights(LOSSES))


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_keep_their_dtype(name: str) -> None:
    weighting = STRATEGIES[name]()
    half = LOSSES.float()
    weighting.update(half, ALL)
    assert weighting(half).dtype == weighting.weights(half).dtype == torch.float32


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_head_that_is_absent_changes_nothing(name: str) -> None:
    """Loss 0 and count 0: its own weight stays, and nothing becomes NaN."""
    weighting = STRATEGIES[name]()
    weighting.update(LOSSES, ALL)
    weighting.update(LOSSES, ALL)
    absent = torch.tensor([0.8, 3.0, 0.0], dtype=torch.float64)
    for _ in range(3):
        weighting.update(absent, torch.tensor([40, 60, 0]))
    with torch.no_grad():
        assert bool(torch.isfinite(weighting(absent)))
    if name == "variational":
        torch.testing.assert_close(weighting.precision, (NU / LOSSES))


# ---- the Gamma posterior --------------------------------------------------------------------


def test_flat_prior_gives_the_analytic_weight() -> None:
    weighting = VariationalLossWeighting(KINDS, ROWS, cap=1e9)
    torch.testing.assert_close(
        weighting.weights(LOSSES), NU / LOSSES * ALL / 40
    )  # before any update, by the batch
    weighting.update(LOSSES, ALL)
    torch.testing.assert_close(weighting.precision, NU / LOSSES)


@pytest.mark.parametrize("scale", [1e-16, 1e-8, 1e8, 1e16])
def test_flat_prior_makes_the_objective_free_of_units(scale: float) -> None:
    first, second = (VariationalLossWeighting(KINDS, ROWS, cap=1e99) for _ in range(2))
    for part in (LOSSES, 3 * LOSSES, LOSSES.flip(0)):
        counts = torch.tensor([4, 6, 2])
        torch.testing.assert_close(first(part), second(scale * part))
        first.update(part, counts)
        second.update(scale * part, counts)


def test_a_strong_prior_gives_fixed_weights() -> None:
    weighting = VariationalLossWeighting(KINDS, ROWS, shape=3e11, rate=1.5e11)
    for losses in (LOSSES, 100 * LOSSES):
        weighting.update(losses, ALL)
        fixed = FixedWeights([2 * n / 40 for n in ROWS])
        torch.testing.assert_close(
            weighting.weights(losses), fixed.weights(losses), rtol=1e-5, atol=0
        )


def test_kendall_has_the_same_fixed_point() -> None:
    """With all rows, a linear model and two noises: same precisions, same weights of the model."""
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(200, 3)))
    noise = np.array([0.1, 3.0])
    # one output on both heads' targets, so that precisions decide whom it follows
    truth = torch.tensor([[1.0, 1.3], [-2.0, -1.5], [0.5, 0.0]], dtype=torch.float64)
    y = x @ truth + torch.from_numpy(noise * rng.normal(size=(200, 2)))

    def losses_at(w: Tensor) -> Tensor:
        return (x @ w - y).square().mean(0)

    def solve(lam: Tensor) -> Tensor:
        return torch.linalg.solve(lam.sum() * x.mT @ x, x.mT @ (y @ lam))[:, None]

    weighting = VariationalLossWeighting(["squared", "squared"], [200, 200])
    w = torch.zeros(3, 1, dtype=torch.float64)
    for _ in range(200):
        weighting.update(losses_at(w), torch.tensor([200, 200]))
        w = solve(weighting.precision)
    kendall = UncertaintyWeighting(["squared", "squared"])
    v = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [v, *kendall.parameters()], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = kendall(losses_at(v))
        loss.backward()
        return loss

    for _ in range(5):
        optimiser.step(closure)
    precision = kendall.weights(LOSSES[:2]).detach()
    torch.testing.assert_close(precision, weighting.precision, rtol=1e-5, atol=0)
    torch.testing.assert_close(v.detach(), w, rtol=1e-4, atol=1e-6)
    assert precision[0] > 2 * precision[1]


def test_kendall_of_squared_errors_is_the_papers() -> None:
    weighting = UncertaintyWeighting(["squared", "squared"])
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    with torch.no_grad():
        weighting.log_precision.copy_(-(2 * sigma.square()).log())
        paper = (LOSSES[:2] / (2 * sigma.square()) + sigma.log()).sum()
        constant = np.log(2)  # 2 heads times ½ log 2
        torch.testing.assert_close(weighting(LOSSES[:2]), paper + constant)


@pytest.mark.parametrize("kind", ["squared", "absolute"])
def test_posterior_equals_the_grid(kind: str) -> None:
    """Known residuals: density of λ times prior, by quadrature on a grid."""
    rng = np.random.default_rng(4)
    e = 0.7 * (rng.normal(size=12) if kind == "squared" else rng.laplace(size=12))
    loss, law = (e**2, torch.distributions.Normal) if kind == "squared" else (abs(e), None)
    weighting = VariationalLossWeighting([kind], [12], shape=1.5, rate=0.4)
    weighting.update(torch.tensor([loss.mean()]), torch.tensor([12]))
    grid = np.linspace(1e-6, 60 / loss.mean(), 400_001)
    # the likelihoods written out in full: normal of variance 1/(2λ), Laplace of scale 1/λ
    if law:
        log_density = -0.5 * np.log(np.pi / grid)[:, None] - np.outer(grid, loss)
    else:
        log_density = np.log(grid / 2)[:, None] - np.outer(grid, loss)
    log_p = log_density.sum(1) + gamma(1.5, scale=1 / 0.4).logpdf(grid)
    p = np.exp(log_p - log_p.max())
    cdf = np.cumsum(p) / p.sum()
    np.testing.assert_allclose(weighting.precision.item(), (p @ grid) / p.sum(), rtol=1e-4)
    expected = np.interp([0.05, 0.95], cdf, grid)
    np.testing.assert_allclose(weighting.interval(0.9).numpy()[0], expected, rtol=1e-3)


def test_mean_field_posterior_is_near_the_joint_one() -> None:
    """y = θ + e with θ unknown: mean field on (θ, λ) against the exact marginal of λ on a grid."""
    rng = np.random.default_rng(6)
    n, prior_variance = 25, 4.0
    y = 1.2 + 0.5 * rng.normal(size=n)
    weighting = VariationalLossWeighting(["squared"], [n], shape=1.0, rate=0.5)
    mean, variance = 0.0, 1.0
    for _ in range(100):
        expected = ((y - mean) ** 2).mean() + variance  # E_q over θ, which the loss must have
        weighting.update(torch.tensor([expected]), torch.tensor([n]))
        lam = weighting.precision.item()
        variance = 1 / (2 * lam * n + 1 / prior_variance)
        mean = variance * 2 * lam * y.sum()
    lam = np.linspace(1e-4, 12, 6000)
    # y ~ N(0, I / 2λ + s² 11'): θ integrated out by the matrix determinant lemma
    noise = 1 / (2 * lam)
    total = noise + n * prior_variance
    quadratic = (y @ y - y.sum() ** 2 / n) / noise + y.sum() ** 2 / n / total
    log_p = -0.5 * ((n - 1) * np.log(noise) + np.log(total) + quadratic)
    log_p += gamma(1.0, scale=2.0).logpdf(lam)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    exact = np.interp([0.05, 0.5, 0.95], np.cumsum(p), lam)
    a = 1.0 + n / 2
    found = gamma.ppf([0.05, 0.5, 0.95], a, scale=weighting.precision.item() / a)
    # mean field is off by one degree of freedom in 25 at most
    np.testing.assert_allclose(found, exact, rtol=0.04)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(8)
    e = rng.normal(size=(2000, 15)) * 0.3
    truth = 1 / (2 * 0.3**2)
    inside = 0
    for row in e:
        weighting = VariationalLossWeighting(["squared"], [15])
        weighting.update(torch.tensor([(row**2).mean()]), torch.tensor([15]))
        low, high = weighting.interval(0.8)[0].tolist()
        inside += low < truth < high
    # exact with a flat prior; five standard errors of 2000 draws
    assert abs(inside / 2000 - 0.8) < 5 * (0.8 * 0.2 / 2000) ** 0.5


def test_batches_lead_to_the_posterior_of_all_rows() -> None:
    rng = np.random.default_rng(9)
    loss = torch.from_numpy(rng.normal(size=(400, 2)) ** 2 * [1.0, 25.0])
    weighting = VariationalLossWeighting(["squared", "squared"], [400, 400])
    for part in torch.split(loss, 20):  # one epoch: the mean of its batches
        weighting.update(part.mean(0), torch.tensor([20, 20]))
    torch.testing.assert_close(weighting.mean_loss, loss.mean(0))
    for part in torch.split(loss / 9, 20):  # what was learned before fades within epochs
        weighting.update(part.mean(0), torch.tensor([20, 20]))
    far = weighting.mean_loss / (loss.mean(0) / 9)
    assert bool((far > 1.5).all())
    for _ in range(4):
        for part in torch.split(loss / 9, 20):
            weighting.update(part.mean(0), torch.tensor([20, 20]))
    # an average over about 20 batches of 20 rows: 7 % is one standard deviation
    torch.testing.assert_close(weighting.mean_loss, loss.mean(0) / 9, rtol=0.3, atol=0)


def test_a_cross_entropy_is_capped_and_has_no_interval() -> None:
    weighting = VariationalLossWeighting(KINDS, ROWS, cap=7.0)
    weighting.update(torch.tensor([0.8, 3.0, 1e-9]), ALL)
    assert weighting.precision[2] == 7
    assert weighting.interval().isnan().all(1).tolist() == [False, False, True]


def test_no_error_at_all_is_no_nan() -> None:
    weighting = VariationalLossWeighting(["squared", "absolute"], [3, 3])
    losses = torch.tensor([0.0, 1.0])
    weighting.update(losses, torch.tensor([3, 3]))
    assert weighting(losses) == 1
    proper = VariationalLossWeighting(["squared"], [3], shape=1.0, rate=0.5)
    proper.update(torch.zeros(1), torch.tensor([3]))
    assert proper.precision.item() == pytest.approx((1 + 1.5) / 0.5)


def test_pooled_heads_lean_on_one_another() -> None:
    """Ten heads of noise near one; that of 3 rows is pulled to the others, that of 3000 is not."""
    rows = [3] + 9 * [3000]
    losses = torch.tensor([8.0] + 9 * [1.0], dtype=torch.float64)
    alone = VariationalLossWeighting(10 * ["squared"], rows)
    pooled = VariationalLossWeighting(10 * ["squared"], rows, shape=2.0, rate=1e-3, pooled=True)
    for _ in range(50):
        for weighting in (alone, pooled):
            weighting.update(losses, torch.tensor(rows))
    assert alone.precision[0] == pytest.approx(0.5 / 8)
    assert pooled.precision[0] > 1.7 * alone.precision[0]
    torch.testing.assert_close(pooled.precision[1:], alone.precision[1:], rtol=0.003, atol=0)
    # b₀ at its own fixed point
    torch.testing.assert_close(pooled.prior_rate, 20 / pooled.precision.sum(), rtol=1e-6, atol=0)


# ---- the others -----------------------------------------------------------------------------


def test_dynamic_weights_follow_epochs() -> None:
    weighting = DynamicWeightAverage(3, period=2, temperature=0.5)
    ones = torch.ones(3, dtype=torch.float64)
    epochs = [  # two batches of unequal counts each: (losses, counts)
        [([4.0, 2.0, 9.0], [10, 5, 1]), ([1.0, 2.0, 0.0], [20, 5, 0])],
        [([1.0, 3.0, 6.0], [10, 5, 1]), ([1.0, 1.0, 3.0], [20, 5, 2])],
    ]
    for epoch in epochs:
        assert torch.equal(weighting.weights(ones), ones)
        for losses, counts in epoch:
            weighting.update(torch.tensor(losses), torch.tensor(counts))
    rate = torch.tensor([1.0 / 2.0, 2.0 / 2.0, 4.0 / 9.0], dtype=torch.float64)
    torch.testing.assert_close(weighting.weights(ones), 3 * torch.softmax(rate / 0.5, 0))


def test_dynamic_weights_are_torchjds() -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    theirs, ours = scalarization.DWA(1.5), DynamicWeightAverage(3, period=2, temperature=1.5)
    generator = torch.Generator().manual_seed(3)
    for step in range(9):
        losses = torch.rand(3, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(ours(losses), theirs(losses))
        ours.update(losses, torch.tensor([5, 5, 5]))
        if step % 2:
            theirs.step()


@pytest.mark.parametrize(
    ("name", "arguments"), [("UW", [3]), ("IMTLL", [3]), ("GeometricMean", []), ("STCH", [0.5])]
)
def test_scalarizers_give_their_own_gradient(name: str, arguments: list, rows) -> None:
    scalarization = pytest.importorskip("torchjd.scalarization")
    make = getattr(scalarization, name)
    weighting = Scalarized(make(*arguments))
    model = Heads()
    losses = model.losses(*rows)
    expected = torch.autograd.grad(
        weighting.scalarizer(losses), [model.shared, model.own], retain_graph=True
    )
    weights = weighting.weights(losses)
    by_weights = torch.autograd.grad(weights @ losses, [model.shared], retain_graph=True)
    weighting.backward(losses, [model.shared], [model.own])
    torch.testing.assert_close(model.shared.grad, expected[0])
    torch.testing.assert_close(model.own.grad, expected[1])
    torch.testing.assert_close(by_weights[0], expected[0])


def test_an_aggregator_moves_what_is_shared_and_heads_by_their_own(rows) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    model = Heads()
    losses = model.losses(*rows)
    each = [
        torch.autograd.grad(loss, [model.shared, model.own], retain_graph=True) for loss in losses
    ]
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    Aggregated(aggregation.MGDA()).backward(losses, [model.shared, frozen], [model.own])
    jacobian = torch.stack([g[0].flatten() for g in each])
    expected = aggregation.MGDA()(jacobian).view_as(model.shared)
    torch.testing.assert_close(model.shared.grad, expected)
    torch.testing.assert_close(model.own.grad, sum(g[1] for g in each))
    # what MGDA promises: no loss rises to first order
    assert bool((jacobian @ model.shared.grad.flatten() >= -1e-9).all())
    assert not torch.allclose(model.shared.grad, jacobian.sum(0).view_as(model.shared))


def test_equal_sum_by_aggregator_is_the_plain_gradient(rows) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    first, second = Heads(), Heads()
    Aggregated(aggregation.Sum()).backward(first.losses(*rows), [first.shared], [first.own])
    second.losses(*rows).sum().backward()
    torch.testing.assert_close(first.shared.grad, second.shared.grad)
    torch.testing.assert_close(first.own.grad, second.own.grad)


def test_a_strategy_of_ones_own_needs_one_method(rows) -> None:
    class Softmax(LossWeighting):
        def weights(self, losses: Tensor) -> Tensor:
            return torch.softmax(losses, 0)

    weighting = Softmax()
    weighting.update(LOSSES, ALL)
    assert weighting(LOSSES) == pytest.approx(float(torch.softmax(LOSSES, 0) @ LOSSES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedWeights([1.0, -1.0]), "finite numbers of at least 0; got .1.0, -1.0"),
        (lambda: FixedWeights([]), "at least 0; got .]"),
        (lambda: UncertaintyWeighting(["mse"]), "among .*cross_entropy.*; got ..mse"),
        (lambda: UncertaintyWeighting([]), r"got \[\]"),
        (lambda: VariationalLossWeighting(["squared"], [3, 4]), "each of 1 heads.*got .3, 4"),
        (lambda: VariationalLossWeighting(["squared"], [0]), "at least 1; got .0"),
        (lambda: VariationalLossWeighting(["squared"], [3], shape=-1.0), "at least 0.*got -1.0"),
        (lambda: VariationalLossWeighting(["squared"], [3], pooled=True), "above 0 where pooled"),
        (lambda: VariationalLossWeighting(["squared"], [3], smallest_step=2.0), "got 2.0 and"),
        (
            lambda: VariationalLossWeighting(["squared"], [3], cap=0.0),
            "cap be positive; got .* 0.0",
        ),
        (
            lambda: VariationalLossWeighting(["squared"], [3]).interval(1.0),
            r"in \(0, 1\); got 1.0",
        ),
        (lambda: DynamicWeightAverage(2, period=0), "at least 1 .* got 2, 0 and"),
        (lambda: DynamicWeightAverage(2, 3, temperature=0.0), "temperature positive; got .* 0.0"),
    ],
)
def test_bad_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("weighting", [STRATEGIES["variational"](), STRATEGIES["uncertainty"]()])
def test_losses_that_tell_no_precision_are_refused(weighting: LossWeighting) -> None:
    bad = LOSSES.clone()
    bad[1] = -0.5
    call = weighting if isinstance(weighting, UncertaintyWeighting) else weighting.update
    arguments = () if isinstance(weighting, UncertaintyWeighting) else (ALL,)
    with pytest.raises(ValueError, match=r"at least 0 .* got -0.5 for head 1. A log density"):
        call(bad, *arguments)
    with pytest.raises(ValueError, match="got nan for head 0"):
        call(LOSSES * torch.nan, *arguments)
    with pytest.raises(ValueError, match=r"shape \(3,\), one a head; got \(2,\)"):
        call(LOSSES[:2], *arguments)


def test_without_torchjd_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchjd", None)
    weighting = Aggregated(nn.Identity())
    with pytest.raises(ImportError, match=r"bmm-multitask-learning\[gradients\]"):
        weighting.backward(LOSSES, [], [])
