"""Features made ready on the train rows: standardised, or projected on their principal axes."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from .protocol import Array, Problem, Rows


def with_constant(x: Array) -> Array:
    """Features (N, D) and a constant in front, (N, D + 1)."""
    return np.column_stack([np.ones(len(x)), x])


def standardised(train: Rows, test: Rows, num_tasks: int) -> Problem:
    """Features of mean 0 and variance 1 on the train rows, and a constant."""
    mean, std = train.x.mean(0), train.x.std(0)
    std = np.where(std > 0, std, 1.0)
    parts = [part._replace(x=with_constant((part.x - mean) / std)) for part in (train, test)]
    return Problem(parts[0], parts[1], num_tasks)


def one_scale(train: Rows, test: Rows, num_tasks: int) -> Problem:
    """Features of mean 0 and mean variance 1 on the train rows, and a constant."""
    mean, scale = train.x.mean(0), np.sqrt(train.x.var(0).mean())
    parts = [part._replace(x=with_constant((part.x - mean) / scale)) for part in (train, test)]
    return Problem(parts[0], parts[1], num_tasks)


def principal(train: Rows, test: Rows, num_tasks: int, num_features: int) -> Problem:
    """The principal components of the train rows, of mean variance 1, and a constant."""
    axes = PCA(min(num_features, len(train.x)), svd_solver="full").fit(train.x)
    parts = [part._replace(x=axes.transform(part.x)) for part in (train, test)]
    return one_scale(parts[0], parts[1], num_tasks)
