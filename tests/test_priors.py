"""What is special to each prior; what all have in common is in `test_conformance`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyro import poutine

from bmm_multitask_learning import (
    MultitaskModel,
    TaskClustering,
    TaskData,
    datasets,
    fit,
)
from bmm_multitask_learning.priors.covariance import FORMS
from bmm_multitask_learning.priors.gating import fit_gate, gate_objective

from .cases import LIKELIHOODS, PRIORS, make_data
from .reference import covariance_of

# ---- covariance forms ---------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_the_prior_of_a_covariance_is_densest_where_it_says(name):
    """The gradient of log p(η) is zero at `mode`, in which the covariance is Ψ."""
    form = FORMS[name]
    scatter = form.reference(torch.tensor([[0.5, 2.0, 1.0]]).double())
    eta = {n: v.clone().requires_grad_() for n, v in form.mode(scatter).items()}
    trace = poutine.trace(poutine.condition(lambda: form.hyperprior(scatter), data=eta))
    gradients = torch.autograd.grad(trace.get_trace().log_prob_sum(), list(eta.values()))
    for site, gradient in zip(eta, gradients, strict=True):
        symmetric = gradient + gradient.mT if gradient.ndim == 3 else gradient
        assert symmetric.abs().max() < 1e-9, site
    root = form.scale(eta, 3).root
    torch.testing.assert_close(root @ root.mT, torch.diag_embed(scatter))


@pytest.mark.parametrize("name", FORMS)
def test_scale_is_a_root_of_the_covariance(name):
    form = FORMS[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        eta = form.hyperprior(torch.rand(2, 4, dtype=torch.float64) + 0.5)
    root = form.scale(eta, 4).root
    arrays = {n: v.numpy() for n, v in eta.items()}
    expected = np.stack([covariance_of(arrays, (o,), 4) for o in range(2)])
    np.testing.assert_allclose(root @ root.mT, expected, rtol=1e-9)
    if name == "full":
        assert torch.equal(root, root.tril())


# ---- the gate -----------------------------------------------------------------------------


def test_gate_reaches_the_maximum_and_never_falls():
    rng = torch.Generator().manual_seed(0)
    design = torch.cat([torch.ones(30, 1), torch.randn(30, 2, generator=rng)], 1).double()
    targets = torch.randn(30, 4, generator=rng).double().softmax(-1)
    gate = torch.zeros(4, 3, dtype=torch.float64)
    before = gate_objective(design, targets, gate, 1.0)
    for _ in range(3):
        gate = fit_gate(design, targets, gate, 1.0, steps=3)
        after = gate_objective(design, targets, gate, 1.0)
        assert after >= before
        before = after
    free = gate.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(gate_objective(design, targets, free, 1.0), free)
    assert gradient.abs().max() < 1e-8


def test_gate_agrees_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    features, label = rng.standard_normal((60, 2)), rng.integers(0, 3, 60)
    design = torch.as_tensor(np.column_stack([np.ones(60), features]))
    targets = torch.nn.functional.one_hot(torch.as_tensor(label)).double()
    gate = fit_gate(design, targets, torch.zeros(3, 3).double(), 1.0, steps=50)
    other = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000)
    other.fit(design.numpy(), label)
    np.testing.assert_allclose(gate, other.coef_, atol=1e-5)


# ---- clustering ---------------------------------------------------------------------------


def test_planted_clusters_are_found():
    from sklearn.metrics import adjusted_rand_score

    data, truth = datasets.make_clusters(num_tasks=40, num_clusters=4, seed=0)
    model = MultitaskModel(TaskClustering(4))
    fit(model, data, progress=False)
    labels = model.prior.responsibilities.argmax(1)
    assert adjusted_rand_score(truth.labels, labels) > 0.95
    together = model.relations() > 0.5
    same = torch.as_tensor(truth.labels[:, None] == truth.labels)
    assert (together == same).double().mean() > 0.97


@pytest.mark.parametrize("num_clusters", [1, 3])
def test_number_of_clusters_is_found(num_clusters):
    data, _ = datasets.make_clusters(
        num_tasks=48, num_clusters=num_clusters, separation=3.0, seed=1
    )
    model = MultitaskModel(TaskClustering("auto", covariance="diagonal"))
    fit(model, data, progress=False)
    assert model.prior.responsibilities.shape == (48, num_clusters)


def test_proportions_are_integrated_out_of_the_charge():
    """With known labels: Pólya's urn, less what the fitted proportions make of the labels."""
    data, _ = datasets.make_clusters(num_tasks=24, num_clusters=3, separation=9.0, seed=1)
    model = MultitaskModel(TaskClustering("auto", covariance="isotropic"))
    fit(model, data, progress=False)
    prior = model.prior
    hard = prior.responsibilities.round()
    assert torch.allclose(hard, prior.responsibilities, atol=1e-6)
    urn, share, seen = 0.0, hard.mean(0).log(), np.ones(3)
    for i, label in enumerate(hard.argmax(1).tolist()):
        urn += np.log(seen[label] / (3 + i))
        seen[label] += 1
    plugged = float((hard.sum(0) * share).sum()) + np.log(2)  # density of Dirichlet(1, 1, 1)
    mode = {"centre": torch.zeros_like(prior.centre), "proportion": prior.proportion}
    mode |= prior.form.mode(prior.scatter.expand(3, -1, -1))
    counts = hard.sum(0)[:, None]
    others = prior.log_hyperprior(mode) - np.log(2)
    others += prior._centre_charge() + prior.form.charge(counts, 6).sum()
    assert prior.complexity() == pytest.approx(float(others) + plugged - urn - np.log(6), abs=1e-4)


def test_gating_uses_task_features():
    """Tasks with no rows: only their features tell the cluster."""
    data, truth = datasets.make_clusters(
        num_tasks=40, num_clusters=2, informative_features=True, seed=2, separation=3.0
    )
    model = MultitaskModel(TaskClustering(2, gating=True))
    seen = data.select_tasks(data.tasks[:30])
    fit(model, seen, progress=False)
    labels = model.prior.responsibilities.argmax(1).numpy()
    flip = np.mean(labels == truth.labels[:30]) < 0.5
    x, features = np.eye(6), data.task_features.numpy()
    centres = truth.centres[::-1] if flip else truth.centres
    new = list(range(30, 40))
    with pytest.warns(UserWarning, match="outside the fit"):
        p = model.predict(np.tile(x, (10, 1)), np.repeat(new, 6), task_features=features[30:])
    expected = centres[1 - truth.labels[30:] if flip else truth.labels[30:]]
    assert np.abs(p.mean.reshape(10, 6) - expected).max() < 0.8


def test_task_dependent_means_are_recovered():
    """w_k = M f_k + noise: M is found, and predicts tasks that were never seen."""
    rng = np.random.default_rng(3)
    K, n = 60, 12
    features = rng.standard_normal((K, 2))
    M = np.array([[1.0, -0.5, 0.2], [0.8, 0.3, -1.2]])  # (F, D)
    centre = np.array([0.5, 1.0, -0.5])
    weights = centre + features @ M + 0.1 * rng.standard_normal((K, 3))
    task = np.repeat(np.arange(K), n)
    x = rng.standard_normal((K * n, 3))
    y = (x * weights[task]).sum(1) + 0.3 * rng.standard_normal(K * n)
    model = MultitaskModel(TaskClustering(1, task_mean=True))
    fit(model, TaskData(x, y, task, task_features=features), progress=False)
    new = np.array([[1.5, -1.0]])
    with pytest.warns(UserWarning, match="outside the fit"):
        p = model.predict(np.eye(3), "new", task_features=new)
    np.testing.assert_allclose(p.mean, centre + new[0] @ M, atol=0.15)


def test_an_empty_cluster_does_no_harm():
    """More clusters than the data have: finite, and as good as the right number."""
    data, _ = datasets.make_clusters(num_tasks=12, num_clusters=1, seed=3)
    model = MultitaskModel(TaskClustering(6, n_init=1))
    result = fit(model, data, progress=False)
    assert np.isfinite(result.bound)
    assert torch.isfinite(model.weights.std).all()


def test_identical_tasks_can_be_clustered():
    """k-means with fewer distinct points than clusters."""
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = TaskData(x.repeat(4, 1), (x @ torch.ones(2).double()).repeat(4), np.repeat(range(4), 6))
    model = MultitaskModel(TaskClustering(3))
    assert np.isfinite(fit(model, data, progress=False).bound)


# ---- the collapse that this library must not have ------------------------------------------


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("name", ["shared-full", "shared-isotropic", "clusters-isotropic"])
def test_spread_between_tasks_does_not_collapse(name, kind):
    """Tasks with few rows that differ: the fitted spread is near the true one, not near zero."""
    data = make_data(kind, rows=(10,) * 60, num_features=2, spread=1.0, seed=6)
    model = MultitaskModel(PRIORS[name](), LIKELIHOODS[kind]())
    fit(model, data, progress=False)
    root = model.prior.form.scale(model.prior.eta, 2).root
    variance = root.square().sum(-1)
    assert variance.max() > 0.35
    assert variance.max() < 3.0
