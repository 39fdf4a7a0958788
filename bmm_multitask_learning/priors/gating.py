"""Multinomial logistic regression with soft targets: the gate's M-step."""

from __future__ import annotations

import torch
from torch import Tensor


def gate_objective(design: Tensor, targets: Tensor, gate: Tensor, variance: float) -> Tensor:
    r"""$\sum_{kc} r_{kc} \log \pi_{kc}(U) - \|U\|^2 / (2 \cdot \text{variance})$, a scalar."""
    log_prior = (design @ gate.mT).log_softmax(-1)
    return (targets * log_prior).sum() - 0.5 * gate.square().sum() / variance


def gate_curvature(design: Tensor, mass: Tensor, gate: Tensor) -> Tensor:
    r"""$\sum_k n_k (\mathrm{diag}\,\pi_k - \pi_k\pi_k^\top) \otimes f_k f_k^\top$, (C F, C F).

    Args:
        design: (K, F) task features with a constant.
        mass: (K,) total target of each task.
        gate: (C, F).
    """
    pi = (design @ gate.mT).softmax(-1)
    inner = torch.diag_embed(pi) - pi[:, :, None] * pi[:, None, :]
    return torch.einsum("k,kcd,kf,kg->cfdg", mass, inner, design, design).flatten(2).flatten(0, 1)


def gate_charge(design: Tensor, gate: Tensor, variance: float) -> Tensor:
    """Half the log ratio of the gate's posterior to its prior curvature, in nats."""
    curvature = variance * gate_curvature(design, torch.ones_like(design[:, 0]), gate)
    identity = torch.eye(len(curvature), dtype=gate.dtype, device=gate.device)
    return 0.5 * torch.linalg.slogdet(identity + curvature).logabsdet


def fit_gate(
    design: Tensor, targets: Tensor, start: Tensor, variance: float, steps: int = 8
) -> Tensor:
    r"""Newton steps up the gate's objective, halved until it rises, so that it never falls.

    Args:
        design: (K, F) task features with a constant.
        targets: (K, C) responsibilities.
        start: (C, F) present gate U.
        variance: of the Gaussian prior of each entry of U.

    Returns:
        (C, F).
    """
    C, F = start.shape
    gate, value = start, gate_objective(design, targets, start, variance)
    identity = torch.eye(C * F, dtype=start.dtype, device=start.device)
    for _ in range(steps):
        pi = (design @ gate.mT).softmax(-1)
        mass = targets.sum(-1)
        gradient = (targets - mass[:, None] * pi).mT @ design - gate / variance
        hessian = gate_curvature(design, mass, gate) + identity / variance
        step = torch.linalg.solve(hessian, gradient.flatten()).reshape(C, F)
        size = 1.0
        while size > 1e-6:
            candidate = gate + size * step
            new = gate_objective(design, targets, candidate, variance)
            if new >= value:
                break
            size *= 0.5
        else:
            return gate
        converged = bool(new - value <= 1e-10 * (1 + value.abs()))
        gate, value = candidate, new
        if converged:
            break
    return gate
