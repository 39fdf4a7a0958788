"""Predictive distributions: mixtures of the likelihood's conditionals over q(W)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .backbones import find_text_encoder
from .data import TaskData
from .likelihoods import Likelihood, Rows
from .places import Places
from .posterior import WeightPosterior
from .priors.task_prior import own_information
from .roots import Roots
from .sites import amortised_factor, first_factor, refine
from .statistics import TaskStatistics

if TYPE_CHECKING:
    from .family import Family
    from .model import MultitaskModel

_BISECTIONS = 60


@dataclasses.dataclass(frozen=True)
class Prediction:
    r"""$p(y_n \mid x_n, D)$ of N rows; NumPy arrays if the inputs were NumPy, tensors otherwise.

    For real-valued targets `mean`, `std`, `interval` and `quantile` speak of the target, noise
    included. For classes `mean` is the probability averaged over q(W) — (N,) for Bernoulli, (N, O)
    for Categorical and Ordinal — and `interval` is a credible interval of the probability itself.

    The O axis is dropped where O = 1.
    """

    known: Any
    """(N,) False for rows of tasks outside the fit."""
    words: Places | None
    """In a family of words: the text and the place of each row."""
    _log_weights: Tensor
    _law: Distribution
    _latent: tuple[Tensor, Tensor, Tensor]
    _probability: Callable[[Tensor], Tensor] | None
    """Of classes at latents (..., O); None where targets are no classes."""
    _numpy: bool

    @property
    def mean(self) -> Any:
        """(N,) or (N, O)."""
        return self._out(self._mean())

    @property
    def std(self) -> Any:
        """Standard deviation of the target, noise included, (N,) or (N, O)."""
        mean = self._mean()
        if self._probability is not None:
            return self._out((mean * (1 - mean)).sqrt())
        component = self._law.mean
        square = self._law.variance + (component - mean[:, None]).square()
        return self._out(self._average(square).sqrt())

    @property
    def latent_mean(self) -> Any:
        """Mean of the latent $f_n$, (N,) or (N, O)."""
        weight, mean, _ = self._latent
        return self._out(torch.einsum("nc,nco->no", weight, mean))

    @property
    def latent_std(self) -> Any:
        """Standard deviation of the latent $f_n$, without noise, (N,) or (N, O)."""
        weight, mean, variance = self._latent
        average = torch.einsum("nc,nco->no", weight, mean)
        square = variance + (mean - average[:, None]).square()
        return self._out(torch.einsum("nc,nco->no", weight, square).sqrt())

    def interval(self, coverage: float = 0.9) -> Any:
        """Central interval, (N, 2) or (N, O, 2): lower and upper."""
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1; got {coverage}.")
        tail = 0.5 * (1 - coverage)
        ends = [self._quantile(level) for level in (tail, 1 - tail)]
        return self._out(torch.stack(ends, -1), drop=1)

    def quantile(self, level: float) -> Any:
        """Quantile of the target (of the probability, for classes), (N,) or (N, O)."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level}.")
        return self._out(self._quantile(level))

    def log_prob(self, y: Any) -> Any:
        """Log predictive density or mass of targets (N,) or (N, O); NaN where y is NaN.

        In a family of words, targets may be (texts, W) as in the fit; the result has a value a
        word.
        """
        y = torch.as_tensor(np.asarray(y) if self._numpy else y).to(self._log_weights)
        if self.words is not None and y.ndim == 2:
            y = self.words.among(y)
        missing = y.isnan()
        safe = torch.where(missing, 0.0, y)
        single = y.ndim == 1
        if isinstance(self._law, torch.distributions.Categorical):
            values = self._law.log_prob(safe[:, None])
            total = (self._log_weights + values).logsumexp(1)
        else:
            values = self._law.log_prob((safe[:, None] if single else safe)[:, None])
            total = (self._log_weights[..., None] + values).logsumexp(1)
            total = total[:, 0] if single else total
        total = torch.where(missing, torch.nan, total)
        return total.cpu().numpy() if self._numpy else total

    def sample(self, num_samples: int, *, seed: int = 0) -> Any:
        """Draws of the target, (num_samples, N) or (num_samples, N, O).

        Rows are drawn independently: for joint draws of what tasks share, see `model.weights`.
        """
        with torch.random.fork_rng(devices=_cuda(self._log_weights)):
            torch.manual_seed(seed)
            draws = self._law.sample((num_samples,))  # (S, N, J) or (S, N, J, O)
            component = torch.multinomial(self._log_weights.exp(), num_samples, replacement=True).T
        index = component[..., None]
        if draws.ndim == 4:
            index = index[..., None].expand(-1, -1, -1, draws.shape[-1])
        chosen = draws.gather(2, index)[:, :, 0]
        chosen = chosen[..., 0] if chosen.ndim == 3 and chosen.shape[-1] == 1 else chosen
        return chosen.cpu().numpy() if self._numpy else chosen

    def _mean(self) -> Tensor:
        if isinstance(self._law, torch.distributions.Categorical):
            return torch.einsum("nj,njo->no", self._log_weights.exp(), self._law.probs)
        return self._average(self._law.mean)

    def _average(self, value: Tensor) -> Tensor:
        return torch.einsum("nj,njo->no", self._log_weights.exp(), value)

    def _quantile(self, level: float) -> Tensor:
        if self._probability is not None:
            return self._probability_quantile(level, self._probability)
        spread = 40 * self._law.stddev
        lower = (self._law.mean - spread).amin(1)
        upper = (self._law.mean + spread).amax(1)
        weight = self._log_weights.exp()
        value = _bisect(
            lambda y: torch.einsum("nj,njo->no", weight, self._law.cdf(y[:, None])),
            level,
            lower,
            upper,
        )
        support = self._law.support
        return value.round() if support is not None and support.is_discrete else value

    def _probability_quantile(
        self, level: float, probability: Callable[[Tensor], Tensor]
    ) -> Tensor:
        weight, mean, variance = self._latent
        std = variance.sqrt()
        if isinstance(self._law, torch.distributions.Categorical):
            draws = _latent_draws(weight, mean, std)  # (S, N, O)
            return torch.quantile(probability(draws), level, dim=0)
        normal = torch.distributions.Normal(mean, std.clamp(min=1e-12), validate_args=False)
        lower, upper = (mean - 40 * std).amin(1), (mean + 40 * std).amax(1)
        latent = _bisect(
            lambda f: torch.einsum("nc,nco->no", weight, normal.cdf(f[:, None])),
            level,
            lower,
            upper,
        )
        return probability(latent)

    def _out(self, value: Tensor, drop: int = 0) -> Any:
        axis = value.ndim - 1 - drop
        if value.shape[axis] == 1 and axis == 1:
            value = value.squeeze(axis)
        return value.cpu().numpy() if self._numpy else value


def _bisect(cdf: Any, level: float, lower: Tensor, upper: Tensor) -> Tensor:
    for _ in range(_BISECTIONS):
        middle = 0.5 * (lower + upper)
        below = cdf(middle) < level
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return upper


def _latent_draws(weight: Tensor, mean: Tensor, std: Tensor, num_samples: int = 1000) -> Tensor:
    """Draws (S, N, O) of mixtures of Gaussians, the same seed for every call."""
    generator = torch.Generator(mean.device).manual_seed(0)
    component = torch.multinomial(weight, num_samples, replacement=True, generator=generator).T
    row = torch.arange(len(mean), device=mean.device)
    noise = torch.randn(
        num_samples, *mean[:, 0].shape, dtype=mean.dtype, device=mean.device, generator=generator
    )
    return mean[row, component] + std[row, component] * noise


def _cuda(value: Tensor) -> list[torch.device]:
    return [value.device] if value.device.type == "cuda" else []


# ---- from a model ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of predictions, and what the backbone makes of them.

    Args:
        x: (N, ...) inputs where the model lies.
        outputs: of the backbone, the same for all families.
        numpy: whether they came as something else than a tensor, and predictions are NumPy arrays.
    """

    x: Tensor
    outputs: Tensor
    numpy: bool

    @classmethod
    def of(cls, model: MultitaskModel, x: Any) -> Inputs:
        """Checked inputs, the backbone run on them."""
        tensor = isinstance(x, Tensor)
        value = x if tensor else _as_tensor(model, x)
        if value.ndim < 2:
            raise ValueError(
                "x must have shape (N, ...) with one row per observation; got "
                f"{tuple(value.shape)}. For one row use x[None, :]."
            )
        if len(value) == 0:
            raise ValueError("x has no rows: give at least one.")
        if value.ndim == 2 and not value.is_floating_point():
            value = value.to(torch.float64)
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                "x has NaN or infinite entries. Impute or drop them before predicting."
            )
        value = value.to(model.device)
        with torch.no_grad():
            return cls(value, model.outputs(value), not tensor)

    def features(
        self, model: MultitaskModel, part: Family, task: Tensor
    ) -> tuple[Tensor, Places | None]:
        """Features (M, D) of the rows; where inputs hold words, which word each of them is."""
        with torch.no_grad():
            phi = model.read(part, self.outputs, self.x, task)
        _check_width(part, phi)
        if phi.ndim == 2:
            return phi, None
        words = Places.of(phi)
        return words.among(phi), words


def _as_tensor(model: MultitaskModel, x: Any) -> Tensor:
    """Texts as tokens, where the backbone makes any; everything else as float64."""
    if isinstance(x, list | tuple) and x and _is_text(x[0]):
        encoder = find_text_encoder(model.backbone)
        if encoder is None:
            raise TypeError(
                "x holds texts, and this model's backbone is no text encoder. Give numbers, or "
                "fit a model with backbone=SentenceEncoder.from_pretrained(...)."
            )
        return encoder.tokens(x)
    return torch.as_tensor(np.array(x, dtype=np.float64))  # a frame's own array is read-only


def _is_text(first: Any) -> bool:
    """Whether it is a string, or a list of words."""
    words = isinstance(first, list | tuple) and len(first) > 0 and isinstance(first[0], str)
    return words or isinstance(first, str)


def as_task_labels(task: Any, num_rows: int) -> list[Hashable]:
    """One label for each row, from labels or a single label."""
    if isinstance(task, str | int) or np.ndim(task) == 0:
        return [task.item() if isinstance(task, np.generic) else task] * num_rows
    labels = task.tolist() if isinstance(task, np.ndarray | Tensor) else list(task)
    if len(labels) != num_rows:
        raise ValueError(
            f"task must be one label or {num_rows} labels, one for each row of x; got "
            f"{len(labels)}."
        )
    return labels


def predict(
    model: MultitaskModel, inputs: Inputs, task: Any, *, family: str | None, task_features: Any
) -> Prediction:
    """See `MultitaskModel.predict`."""
    part = model.family(family)
    labels = as_task_labels(task, len(inputs.x))
    index = part.index_of(labels).to(model.device)
    unknown = list(
        dict.fromkeys(label for label, i in zip(labels, index.tolist(), strict=True) if i < 0)
    )
    posterior = part.weights
    if unknown:
        shown = ", ".join(repr(label) for label in unknown[:3]) + (
            ", ..." if len(unknown) > 3 else ""
        )
        warnings.warn(
            f"{len(unknown)} task(s) outside the fit ({shown}): predictions are the population's, "
            "and wider. With rows of these tasks, call model.adapt(data) first.",
            UserWarning,
            stacklevel=3,
        )
        population = part.prior.condense(new_tasks(part, unknown, task_features))
        posterior = concatenate(posterior, population)
        place = {label: len(part.tasks) + i for i, label in enumerate(unknown)}
        full = torch.tensor(
            [place.get(label, i) for label, i in zip(labels, index.tolist(), strict=True)],
            device=model.device,
        )
    else:
        full = index
    phi, words = inputs.features(model, part, full)
    if words is not None:
        full, index = full[words.text], index[words.text]
    with torch.no_grad():
        mean, variance = model.latent(posterior, phi, inputs.x, full)
        log_weights = posterior.log_weights[full]
        mixture, law = part.likelihood.predictive(log_weights, mean, variance, index)
    known = index >= 0
    return Prediction(
        known=known.cpu().numpy() if inputs.numpy else known,
        words=words,
        _log_weights=mixture,
        _law=law,
        _latent=(log_weights.exp(), mean, variance),
        _probability=_class_probability(part.likelihood),
        _numpy=inputs.numpy,
    )


def _class_probability(likelihood: Likelihood) -> Callable[[Tensor], Tensor] | None:
    """Probabilities of classes at the present hyperparameters, which a later fit leaves alone."""
    if not likelihood.classes:
        return None
    return functools.partial(likelihood.probability, theta=likelihood.eta)


def _check_width(part: Family, phi: Tensor) -> None:
    if phi.shape[-1] != part.sizes.num_features:
        raise ValueError(
            f"x must give {part.sizes.num_features} features, as in the fit; got "
            f"{phi.shape[-1]}. Are the columns the same, in the same order?"
        )


def new_tasks(part: Family, labels: list[Hashable], task_features: Any) -> WeightPosterior:
    """Law of the weights of tasks outside the fit."""
    features = None
    if task_features is not None:
        if isinstance(task_features, Mapping):
            missing = [label for label in labels if label not in task_features]
            if missing:
                raise ValueError(f"task_features has no row for the new task {missing[0]!r}.")
            task_features = np.stack([np.asarray(task_features[label]) for label in labels])
        features = torch.as_tensor(np.asarray(task_features)).to(part.prior.scatter)
        wanted = (len(labels), part.sizes.num_task_features)
        if features.shape != wanted:
            raise ValueError(
                f"task_features must have shape {wanted}, a row for each new task in order of "
                f"first appearance; got {tuple(features.shape)}."
            )
    return part.prior.population(part.draws, part.posterior, features, len(labels))


def concatenate(first: WeightPosterior, second: WeightPosterior) -> WeightPosterior:
    """The posteriors of two sets of tasks as one."""
    first, second = _same_columns(first, second), _same_columns(second, first)
    return dataclasses.replace(
        first,
        log_weights=torch.cat([first.log_weights, second.log_weights]),
        means=torch.cat([first.means, second.means]),
        roots=Roots(
            torch.cat([first.roots.own, second.roots.own]),
            torch.cat([first.roots.common, second.roots.common]),
        ),
    )


def _same_columns(posterior: WeightPosterior, other: WeightPosterior) -> WeightPosterior:
    """Pad components with weight 0, and roots with columns of 0, to the size of `other`."""
    C = max(posterior.means.shape[1], other.means.shape[1]) - posterior.means.shape[1]
    own, common = posterior.roots.own, posterior.roots.common
    R = max(own.shape[-1], other.roots.own.shape[-1]) - own.shape[-1]
    S = max(common.shape[-1], other.roots.common.shape[-1]) - common.shape[-1]
    pad = torch.nn.functional.pad
    return dataclasses.replace(
        posterior,
        log_weights=pad(posterior.log_weights, (0, C), value=-torch.inf),
        means=pad(posterior.means, (0, 0, 0, 0, 0, C)),
        roots=Roots(
            pad(own, (0, R, 0, 0, 0, 0, 0, C)),
            pad(common, (0, S, 0, 0, 0, 0, 0, C)),
        ),
    )


def adapt(model: MultitaskModel, data: TaskData, *, family: str | None) -> MultitaskModel:
    """See `MultitaskModel.adapt`."""
    part = model.family(family)
    part.likelihood.check(data.y)
    result = copy.deepcopy(model)
    target = result.family(family)
    data = data.to(model.device)
    index = part.index_of(data.tasks)
    fresh = [label for label, i in zip(data.tasks, index.tolist(), strict=True) if i < 0]
    newcomers = None
    if fresh:
        features = data.task_features
        if features is not None:
            features = features[(index < 0).to(features.device)]
        newcomers = new_tasks(target, fresh, features)
    tasks = part.tasks + tuple(fresh)
    place = {label: i for i, label in enumerate(tasks)}
    task = torch.tensor([place[label] for label in data.tasks], device=model.device)[data.task]
    with torch.no_grad():
        phi = model.read(part, model.outputs(data.x), data.x, task)
        _check_width(part, phi)
        rows = Rows.from_targets(phi, data.y, data.weight, task, len(tasks))
        _grow(target, tasks, rows.task if phi.ndim == 3 else task)
        _add_rows(target, rows, target.weights, newcomers)
    return result


def _grow(target: Family, tasks: tuple[Hashable, ...], task: Tensor) -> None:
    """Make room in a family for new tasks: sizes, labels, row counts."""
    added = len(tasks) - len(target.tasks)
    target.sizes = dataclasses.replace(target.sizes, num_tasks=len(tasks))
    count = torch.bincount(task, minlength=len(tasks)).tolist()
    before = (*target.rows_per_task, *(0 for _ in range(added)))
    target.rows_per_task = tuple(a + b for a, b in zip(before, count, strict=True))
    target.tasks = tasks
    target.likelihood.grow(target.sizes)


def _add_rows(
    target: Family, rows: Rows, known: WeightPosterior, newcomers: WeightPosterior | None
) -> None:
    """Condition each task's weights on its further rows."""
    K, prior, likelihood = len(known.means), target.prior, target.likelihood

    def condition(statistics: TaskStatistics) -> WeightPosterior:
        posterior = known.condition(statistics[:K])
        if newcomers is None:
            return posterior
        return concatenate(posterior, prior.condense(newcomers.condition(statistics[K:])))

    # the rows' Gaussian factor: the likelihood itself, or the best at the posterior's moments
    if prior.classifier is not None:
        statistics = amortised_factor(prior, likelihood, rows)
    else:
        first = first_factor(likelihood, rows, likelihood.eta)
        statistics = refine(condition, likelihood, rows, first)
    posterior = condition(statistics)
    old = prior.information
    new = own_information(statistics, posterior)
    # the share that rows say grows from i to i + (1 - i) j, where j is the further rows' share
    padded = torch.cat([old, old.new_zeros(len(new) - len(old))])
    placed = None if newcomers is None else newcomers.condition(statistics[K:])
    prior.grow(padded + (1 - padded) * new, posterior, placed)
    target.set_posterior(dataclasses.replace(posterior, shared=known.shared))
