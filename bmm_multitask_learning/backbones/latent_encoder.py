r"""A latent code for each row, whose prior is mixed from what other tasks make of the same class.

$$q(z \mid x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x)), \qquad
  p(z \mid x_{tn}, D_{\setminus t}) \approx \sum_{i \ne t} \beta_{ti}\, q(z \mid S_{ic})
  + \beta_{tt}\, N(0, I)$$

with $S_{ic}$ the rows of task i that have the class c of the row, $q(z \mid S)$ the mixture of the
codes' laws over S, and $\beta_t \sim \mathrm{Dirichlet}(1 + \tfrac1K)$. As in the prior of the
weights the mixture is replaced by the Gaussian with its mean and variance.

References:
    Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
    (2021), equation 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, Normal, kl_divergence

from .mlp import MLP
from .parameter_prior import ParameterPrior

# log σ at the start, of codes that are of order one
_LOG_SPREAD = -1.5


@final
class LatentEncoder(ParameterPrior):
    r"""Features $(1, z)$ with a law, $z \sim N(\mu(x), \mathrm{diag}\,\sigma^2(x))$.

    Under `SVI` each step draws the codes anew, and the bound is charged for
    $\sum_n KL(q(z \mid x_n) \,\|\, p(z \mid x_n, D_{\setminus t}))$, with weight 1. The laws of
    the other tasks are those of the rows at hand, held fixed in the step, so the bound does not
    rise monotonically and compares with nothing. After the fit the features are the means, and
    predictions add what the codes' variance makes of the latent's.

    `mixing` is $\beta$, (K, K), the anchor's share on its diagonal; it has nothing to do with the
    weights that `VariationalWeighting` learns, and goes with any prior.

    Args:
        in_features: width of the inputs.
        num_features: D, size of the code; the features are D + 1.
        num_tasks: K.
        hidden: widths of layers between inputs and code; none: $\mu$ and $\log\sigma$ are linear.
        seed: of the initial weights.
        dtype: of the parameters.

    Raises:
        ValueError: for sizes below 1.

    Example:
        >>> encoder = LatentEncoder(3, 2, num_tasks=4, seed=0)
        >>> x = torch.zeros(5, 3, dtype=torch.float64)
        >>> encoder.eval()(x).shape, encoder.law(x).scale.shape, encoder.mixing.shape
        (torch.Size([5, 3]), torch.Size([5, 2]), torch.Size([4, 4]))

    References:
        Shen, Zhen, Worring and Shao, Variational multi-task learning with Gumbel-softmax priors
        (2021).
    """

    def __init__(
        self,
        in_features: int,
        num_features: int,
        *,
        num_tasks: int,
        hidden: Sequence[int] = (),
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if min(in_features, num_features, num_tasks) < 1:
            raise ValueError(
                "in_features, num_features and num_tasks must be at least 1; got "
                f"{in_features}, {num_features} and {num_tasks}."
            )
        self.num_tasks = num_tasks
        self.trunk: nn.Module = nn.Identity()
        width = in_features
        if hidden:
            self.trunk = MLP(in_features, hidden, constant=False, seed=seed, dtype=dtype)
            width = hidden[-1]
        self.loc = nn.Linear(width, num_features, dtype=dtype)
        self.log_scale = nn.Linear(width, num_features, dtype=dtype)
        self.logits = nn.Parameter(torch.zeros(num_tasks, num_tasks, dtype=dtype))
        bound = 1 / math.sqrt(width)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.loc.weight.uniform_(-bound, bound, generator=generator)
            self.loc.bias.zero_()
            self.log_scale.weight.zero_()
            self.log_scale.bias.fill_(_LOG_SPREAD)

    @property
    def mixing(self) -> Tensor:
        r"""$\beta$, (K, K); rows sum to 1, the anchor's share on the diagonal."""
        return self.logits.detach().softmax(-1)

    def law(self, x: Tensor) -> Normal:
        r"""$q(z \mid x)$ of inputs (N, in_features), each of the (N, D) by itself."""
        h = self.trunk(x)
        return Normal(self.loc(h), self.log_scale(h).exp(), validate_args=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 1 + D): the code's means, or while it is trained a draw."""
        law = self.law(x)
        return with_one(law.rsample() if self.training else law.mean)

    def spread(self, x: Tensor) -> Tensor:
        """Variance of the features, (N, 1 + D); that of the constant is 0."""
        variance = self.law(x).variance
        return torch.cat([torch.zeros_like(variance[:, :1]), variance], -1)

    def prior(self, law: Normal, group: Tensor, task: Tensor) -> Normal:
        r"""$p(z \mid x_n, D_{\setminus t})$ of each row, with the mixture's mean and variance.

        $$m_{tc} = \sum_i \beta_{tic}\mu_{ic}, \qquad v_{tc} = \sum_i \beta_{tic}
          \big(\sigma_{ic}^2 + (\mu_{ic} - m_{tc})^2\big)$$

        $\beta_{tic}$ is $\beta_{ti}$ over the tasks that have rows of class c, and the anchor.

        Args:
            law: $q(z \mid x)$, (N, D).
            group: (N,) class of each row, from 0.
            task: (N,) task of each row.
        """
        K, C = self.num_tasks, int(group.max()) + 1
        mean, square = law.mean.detach(), law.variance.detach() + law.mean.detach().square()
        cell = task * C + group
        count = mean.new_zeros(K * C).index_add(0, cell, torch.ones_like(mean[:, 0]))
        sums = mean.new_zeros(2, K * C, mean.shape[1])
        sums = sums.index_add(1, cell, torch.stack([mean, square]))
        first, second = (sums / count.clamp(min=1)[:, None]).unflatten(1, (K, C))  # (K, C, D)
        # in place of itself each task has the anchor N(0, 1)
        own = torch.eye(K, dtype=torch.bool, device=mean.device)
        there = own[:, None] | (count.reshape(K, C).T > 0)  # (K, C, K): t, c, i
        share = self.logits[:, None].masked_fill(~there, -torch.inf).softmax(-1)
        others, anchor = share.masked_fill(own[:, None], 0.0), share.diagonal(dim1=0, dim2=2).T
        m = torch.einsum("tci,icd->tcd", others, first)
        v = torch.einsum("tci,icd->tcd", others, second) + anchor[..., None] - m.square()
        return Normal(m[task, group], v[task, group].sqrt(), validate_args=False)

    def divergence(self, law: Normal, group: Tensor, task: Tensor, weight: Tensor) -> Tensor:
        r"""$\sum_n \omega_n KL(q(z \mid x_n) \| p(z \mid x_n, D_{\setminus t}))$, a scalar.

        Args:
            law: $q(z \mid x)$, (N, D).
            group: (N,) class of each row, from 0; zeros where targets are no classes.
            task: (N,) task of each row.
            weight: (N,) weight of each row.
        """
        each = kl_divergence(law, self.prior(law, group, task)).sum(-1)
        return (weight * each).sum()

    def log_prior(self) -> Tensor:
        r"""$\log p(\beta)$ in its logits, a scalar; it keeps $\beta$ off the corners."""
        belief = self.logits.new_full(self.logits.shape, 1 / self.num_tasks)
        return Dirichlet(1 + belief, validate_args=False).log_prob(self.logits.softmax(-1)).sum()


def with_one(z: Tensor) -> Tensor:
    """(1, z)."""
    return torch.cat([torch.ones_like(z[:, :1]), z], -1)
