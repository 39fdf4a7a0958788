"""Other libraries' regressions and classifiers as methods of a benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, MultiTaskLassoCV, RidgeCV
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold

from .protocol import Array, CannotError, Forecast, Index, Method, Problem, Rows, cannot

PENALTIES = np.logspace(-3, 4, 29)
# of logistic regression on features of unit mean square, from strong to weak
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FOLDS = 3
STEPS, RATE = 100, 0.1
MOST_ROWS, CHUNKS = 1500, 20
# what those that predict numbers say of classes
NO_CLASSES: dict[str, Method] = {
    "MultiTaskLassoCV": cannot("no classes"),
    "GPyTorch ICM (linear)": cannot("no classes"),
}


# ---- numbers ------------------------------------------------------------------------------------


def each(make: Callable[[], Any]) -> Method:
    """A regression of scikit-learn for every task."""

    def forecast(problem: Problem) -> Forecast:
        train, test = problem.train, problem.test
        mean = np.empty(len(test.y))
        for k in np.unique(test.task):
            model = make().fit(*train.where(train.task == k)[:2])
            mean[test.task == k] = model.predict(test.x[test.task == k])
        return Forecast(mean)

    return forecast


def all_as_one(make: Callable[[], Any]) -> Method:
    """A regression of scikit-learn for all tasks."""

    def forecast(problem: Problem) -> Forecast:
        model = make().fit(problem.train.x, problem.train.y)
        return Forecast(model.predict(problem.test.x))

    return forecast


def ridge() -> dict[str, Method]:
    """RidgeCV, its penalty by leave-one-out on the train rows."""
    return {
        "RidgeCV (pooled)": all_as_one(lambda: RidgeCV(PENALTIES)),
        "RidgeCV (per task)": each(lambda: RidgeCV(PENALTIES)),
    }


def multitask_lasso(*, probabilities: bool = False) -> dict[str, Method]:
    """MultiTaskLassoCV, its penalty by 5-fold cross-validation; tasks must share their inputs.

    Args:
        probabilities: clip what is predicted to .01 .. .99 and take it as one.
    """

    def forecast(problem: Problem) -> Forecast:
        x, y = _side_by_side(problem.train, problem.num_tasks)
        test = problem.test
        of_all_tasks = MultiTaskLassoCV(cv=5, max_iter=10_000).fit(x, y).predict(test.x)
        mean = of_all_tasks[np.arange(len(test.y)), test.task]
        return Forecast(np.clip(mean, 0.01, 0.99) if probabilities else mean)

    return {"MultiTaskLassoCV": forecast}


def _side_by_side(rows: Rows, num_tasks: int) -> tuple[Array, Array]:
    """Inputs (N, D) that all tasks share, and their targets (N, K)."""
    size = len(rows.y) // num_tasks
    if not np.array_equal(rows.task, np.repeat(np.arange(num_tasks), size)):
        raise CannotError("needs shared inputs")
    if not (rows.x.reshape(num_tasks, size, -1) == rows.x[:size]).all():
        raise CannotError("needs shared inputs")
    return rows.x[:size], rows.y.reshape(num_tasks, size).T


# ---- classes ------------------------------------------------------------------------------------


def logistic(num_classes: int = 2) -> dict[str, Method]:
    """Logistic regressions, their penalty by 3-fold cross-validation of the log loss.

    The regressions of single tasks have one penalty together: a task may have one row of a class,
    from which `LogisticRegressionCV` can choose none.
    """

    def method(group: Callable[[Rows], Index]) -> Method:
        def forecast(problem: Problem) -> Forecast:
            train, test = (part._replace(task=group(part)) for part in problem[:2])
            table = _probabilities(train, test, _strength(train, num_classes), num_classes)
            return Forecast(table[:, 1] if num_classes == 2 else table)

        return forecast

    return {
        "LogisticRegression (pooled)": method(lambda rows: np.zeros_like(rows.task)),
        "LogisticRegression (per task)": method(lambda rows: rows.task),
    }


def _strength(rows: Rows, num_classes: int) -> float:
    """The strength of least log loss in cross-validation; one for all groups."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    parts = list(folds.split(rows.x, rows.task if rows.task.any() else rows.y))
    losses = []
    for strength in STRENGTHS:
        table = np.empty((len(rows.y), num_classes))
        for seen, held in parts:
            table[held] = _probabilities(rows.where(seen), rows.where(held), strength, num_classes)
        losses.append(log_loss(rows.y, table, labels=np.arange(num_classes)))
    return STRENGTHS[int(np.argmin(losses))]


def _probabilities(train: Rows, test: Rows, strength: float, num_classes: int) -> Array:
    """(N, C): a group without rows of some class gives it the share of half a row."""
    out = np.empty((len(test.y), num_classes))
    for k in np.unique(test.task):
        seen, at = train.where(train.task == k), test.task == k
        present = np.unique(seen.y).astype(int)
        table = np.zeros((int(at.sum()), num_classes))
        if len(present) > 1:
            model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(seen.x, seen.y)
            table[:, present] = model.predict_proba(test.x[at])
        else:
            table[:, present] = 1.0
        absent = np.setdiff1d(np.arange(num_classes), present)
        table *= len(seen.y) / (len(seen.y) + 0.5 * len(absent))
        table[:, absent] = 0.5 / (len(seen.y) + 0.5 * len(absent))
        out[at] = table
    return out


# ---- Gaussian processes -------------------------------------------------------------------------


def coregionalisation() -> dict[str, Method]:
    r"""GPyTorch's intrinsic coregionalisation, $B_{jk}\, x^\top \mathrm{diag}(v) x'$.

    The model of `TaskCovariance` with a diagonal covariance, a covariance of tasks of rank 2 and a
    diagonal, one noise variance; hyperparameters by 100 steps of Adam on the marginal likelihood.
    """
    return {"GPyTorch ICM (linear)": _coregionalised}


def _coregionalised(problem: Problem) -> Forecast:
    test = problem.test
    if len(problem.train.y) > MOST_ROWS:
        raise CannotError(f"more than {MOST_ROWS} rows")
    try:
        import gpytorch
    except ImportError:
        raise CannotError("GPyTorch is not installed") from None
    parts = [test.where(part) for part in np.array_split(np.arange(len(test.y)), CHUNKS)]
    # no conjugate gradients
    with gpytorch.settings.max_cholesky_size(MOST_ROWS):
        model = _fitted_process(problem.train, problem.num_tasks)
        with torch.no_grad():
            latent = [model(*_inputs(part)) for part in parts]
            variance = torch.cat([part.variance for part in latent]) + model.likelihood.noise
    mean = torch.cat([part.mean for part in latent])
    law = torch.distributions.Normal(mean, variance.sqrt())
    interval = torch.stack([law.icdf(mean.new_tensor(level)) for level in (0.05, 0.95)], -1)
    log_prob = law.log_prob(torch.from_numpy(test.y))
    return Forecast(mean.numpy(), log_prob.numpy(), interval.numpy())


def _inputs(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.x), torch.from_numpy(rows.task)[:, None]


def _fitted_process(train: Rows, num_tasks: int) -> Any:
    import gpytorch
    from linear_operator import to_linear_operator  # comes with GPyTorch

    class Coregionalised(gpytorch.models.ExactGP):  # type: ignore[misc]
        def __init__(self, inputs: Any, y: Any, likelihood: Any) -> None:
            super().__init__(inputs, y, likelihood)
            self.features = gpytorch.kernels.LinearKernel(ard_num_dims=train.x.shape[1])
            self.tasks = gpytorch.kernels.IndexKernel(num_tasks=num_tasks, rank=2)

        def forward(self, x: Any, task: Any) -> Any:
            # multiplied dense: the lazy product takes many times as long at such sizes
            between = self.tasks.covar_matrix.to_dense()[task, task.mT]
            covariance = to_linear_operator(self.features(x).to_dense() * between)
            return gpytorch.distributions.MultivariateNormal(x.new_zeros(len(x)), covariance)

    inputs, y = _inputs(train), torch.from_numpy(train.y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Coregionalised(inputs, y, likelihood).double()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = -evidence(model(*inputs), y)
        loss.backward()
        optimizer.step()
    return model.eval()
