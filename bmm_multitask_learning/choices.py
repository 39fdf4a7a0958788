"""What the command line calls by name: priors, likelihoods, benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from . import benchmarks
from .likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, Poisson, StudentT
from .priors import (
    IndependentTasks,
    LatentHierarchy,
    PooledTasks,
    SharedGaussian,
    SparseBayesian,
    TaskClustering,
    TaskCovariance,
    TaskPrior,
    VariationalWeighting,
)
from .tabular import TargetKind


class PriorName(StrEnum):
    """How tasks belong together."""

    SHARED = "shared"
    CLUSTERING = "clustering"
    HIERARCHY = "hierarchy"
    SPARSE = "sparse"
    COVARIANCE = "covariance"
    WEIGHTING = "weighting"
    INDEPENDENT = "independent"
    POOLED = "pooled"


class LikelihoodName(StrEnum):
    """What the target is."""

    GAUSSIAN = "gaussian"
    STUDENT_T = "student-t"
    POISSON = "poisson"
    BERNOULLI = "bernoulli"
    CATEGORICAL = "categorical"


class Target(NamedTuple):
    """What a target is, and the likelihood for it."""

    kind: TargetKind
    likelihood: Callable[[int], Likelihood]  # of the number of classes


PRIORS: dict[PriorName, Callable[[int | None, bool], TaskPrior]] = {
    PriorName.SHARED: lambda clusters, gating: SharedGaussian(),
    PriorName.CLUSTERING: lambda clusters, gating: TaskClustering(
        clusters or "auto", gating=gating
    ),
    PriorName.HIERARCHY: lambda clusters, gating: LatentHierarchy(),
    PriorName.SPARSE: lambda clusters, gating: SparseBayesian(),
    PriorName.COVARIANCE: lambda clusters, gating: TaskCovariance(),
    PriorName.WEIGHTING: lambda clusters, gating: VariationalWeighting(),
    PriorName.INDEPENDENT: lambda clusters, gating: IndependentTasks(),
    PriorName.POOLED: lambda clusters, gating: PooledTasks(),
}
LIKELIHOODS: dict[LikelihoodName, Target] = {
    LikelihoodName.GAUSSIAN: Target(TargetKind.REAL, lambda classes: Gaussian()),
    LikelihoodName.STUDENT_T: Target(TargetKind.REAL, lambda classes: StudentT()),
    LikelihoodName.POISSON: Target(TargetKind.COUNT, lambda classes: Poisson()),
    LikelihoodName.BERNOULLI: Target(TargetKind.BINARY, lambda classes: Bernoulli()),
    LikelihoodName.CATEGORICAL: Target(TargetKind.CLASSES, Categorical),
}

# Where features are many and of one scale, as those of sentences.
WIDE_PRIORS: dict[PriorName, Callable[[int | None, bool], TaskPrior]] = PRIORS | {
    PriorName.SHARED: lambda clusters, gating: SharedGaussian("isotropic"),
    PriorName.CLUSTERING: lambda clusters, gating: TaskClustering(
        clusters or "auto", gating=gating, covariance="isotropic"
    ),
    PriorName.HIERARCHY: lambda clusters, gating: LatentHierarchy("isotropic"),
    PriorName.COVARIANCE: lambda clusters, gating: TaskCovariance("isotropic"),
}
# What a target is taken for, where the likelihood is not said.
USUAL = {
    TargetKind.REAL: LikelihoodName.GAUSSIAN,
    TargetKind.BINARY: LikelihoodName.BERNOULLI,
    TargetKind.CLASSES: LikelihoodName.CATEGORICAL,
}

BENCHMARKS = {
    each.name: each
    for each in (
        *(benchmarks.SCHOOL, benchmarks.LANDMINE, benchmarks.SENTIMENT, benchmarks.SARCOS),
        *(benchmarks.OFFICE, benchmarks.YEAST, benchmarks.PARKINSONS, benchmarks.PLANTED),
        *(benchmarks.UNRELATED, benchmarks.ROTATED_MNIST, benchmarks.LANDMINE_TREES),
        *(benchmarks.AFFINITY, benchmarks.TEXTS),
    )
}
