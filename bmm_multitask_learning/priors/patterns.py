r"""Weights that mix R shared patterns, given each task's Gaussian factor: all integrated at once.

White coordinates: $z_r = L\zeta_r$ and $w_k = L(\sum_r V_{kr}\zeta_r + e_k)$ with
$\zeta_r, e_k \sim N(0, I)$.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..gaussian import Conditioned, Scale, condition_tasks, pulled
from ..precision import LowRankFactor, Precision, RowPrecision, concatenated, formed
from ..roots import CentredRoots, Roots
from ..statistics import TaskStatistics
from .covariance import identity


class Mixed(NamedTuple):
    r"""The law of weights and patterns; means and patterns in white coordinates.

    mean: (K, O, D) of $L^{-1}w_k$.
    roots: of the weights' covariance; what tasks share is by way of the patterns.
    patterns: (O, R, D, R D + 1) root of the patterns' covariance, and their mean $\hat\zeta$ last.
    log_normaliser: scalar, $\log p(D \mid \eta)$, or its bound under q(W) q(z).
    effective: gives $\mathrm{tr}(A_k\,\mathrm{cov}(w_k))$, (K, O).
    """

    mean: Tensor
    roots: Roots | CentredRoots
    patterns: Tensor
    log_normaliser: Tensor
    effective: Callable[[], Tensor]


def condition_patterns(
    statistics: TaskStatistics, scale: Scale, V: Tensor, *, factorised: bool
) -> Mixed:
    r"""$p(W, z \mid D)$, or the best $q(W)\,q(z)$ where `factorised`.

    Args:
        statistics: factors of the K tasks.
        scale: $L$, with leading axis (O,).
        V: (K, R) loadings.
        factorised: see `SparseBayesian`.
    """
    if not torch.is_grad_enabled():  # equal eigenvalues have no gradient
        size = _sizes(statistics.precision)
        if size is not None:
            return _condition_alike(statistics, size, scale, V, factorised=factorised)
    R, D = V.shape[1], statistics.b.shape[-1]
    pieces = condition_tasks(statistics, scale)
    inverses = tuple(piece.inverse_factor for piece in pieces)
    inverse = concatenated(inverses)  # C̃_k = U⁻ᵀU⁻¹
    own = torch.cat([piece.v for piece in pieces])  # v_k = C̃_k h̃_k, (K, O, D)
    unit = identity(R * D, own)
    # z = L ζ:  P = I + Σ_k V_k V_kᵀ ⊗ (I − C̃_k),  ζ̂ = P⁻¹ Σ_k V_k ⊗ v_k
    factor = torch.linalg.cholesky(unit + _information(V, inverse))
    linear = torch.einsum("kr,kod->ord", V, own).flatten(1)[..., None]
    patterns = torch.cholesky_solve(linear, factor)  # (O, R D, 1)
    gain = 0.5 * (linear * patterns).sum()
    if factorised:
        # the best q(W) q(z) has the exact means; to each the other is known: C̃_k = 0 in P
        whole = unit + torch.kron(V.mT @ V, identity(D, own))
        factor = torch.linalg.cholesky(whole).expand_as(factor)
    # P^{-1/2} is wanted as such: it carries the patterns' uncertainty to every task
    root = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False).mT
    # log p(D | η) = Σ_k log Z_k(0) + ½ (ΣVv)ᵀ P⁻¹ (ΣVv) − ½ log|P|
    log_normaliser = (
        torch.cat([piece.log_normaliser for piece in pieces]).sum()
        + gain
        - factor.diagonal(dim1=-2, dim2=-1).log().sum()
    )
    # L⁻¹ w_k | ζ ~ N(v_k + C̃_k Σ_r V_kr ζ_r, C̃_k)
    shared = torch.cat([root, patterns], -1).unflatten(1, (R, D))
    centre = torch.einsum("kr,ord->kod", V, shared[..., -1])[..., None]
    loading = torch.zeros_like(V) if factorised else V
    return Mixed(
        mean=own + (inverse.mT @ (inverse @ centre))[..., 0],
        roots=CentredRoots(scale, inverses, loading, shared[..., :-1]),
        patterns=shared,
        log_normaliser=log_normaliser,
        # of no use to the gradient
        effective=functools.cache(partial(_effective, pieces, loading, shared[..., :-1])),
    )


def _information(V: Tensor, inverse: Tensor | LowRankFactor) -> Tensor:
    r"""$\sum_k V_k V_k^\top \otimes (I - \tilde C_k)$, (O, R D, R D), of $U_k^{-1}$, `inverse`."""
    if isinstance(inverse, LowRankFactor):  # I − C̃ = JᵀJ
        rows = torch.einsum("kr,kond->oknrd", V, inverse.right).flatten(-2).flatten(-3, -2)
        return rows.mT @ rows
    told = identity(inverse.shape[-1], inverse) - inverse.mT @ inverse
    return torch.einsum("kr,ks,koij->orisj", V, V, told).flatten(-2).flatten(-3, -2)


def _effective(pieces: Sequence[Conditioned], V: Tensor, root: Tensor) -> Tensor:
    r"""$\mathrm{tr}(\tilde A_k (\tilde C_k + \tilde C_k B_k B_k^\top \tilde C_k))$, (K, O).

    It is computed with $\tilde A\tilde C = I - \tilde C$.

    Args:
        pieces: of the tasks, given patterns of 0.
        V: (K, R) loadings.
        root: (O, R, D, S) of the patterns, $B_k = \sum_r V_{kr} \text{root}_r$.
    """
    own = torch.cat([piece.effective() for piece in pieces])
    inverse = concatenated([piece.inverse_factor for piece in pieces])
    _, shared = pulled(inverse, torch.einsum("kr,ords->kods", V, root))
    return own + shared


# ---- tasks with the same inputs -----------------------------------------------------------------


def _sizes(A: Precision) -> Tensor | None:
    """(K, O) s with A_k = s_k A_0, as of tasks with the same inputs; None if there is none."""
    if isinstance(A, RowPrecision):
        # rows of tasks with the same inputs come in the same order
        same = bool((A.phi == A.phi[0]).all())
        return _sizes(torch.diag_embed(A.weight)) if same else None
    trace = A.diagonal(dim1=-2, dim2=-1).sum(-1)
    size = trace / trace[0].clamp(min=torch.finfo(A.dtype).tiny)
    rest = (A - size[..., None, None] * A[0]).abs().amax((-2, -1))
    rounding = 500 * torch.finfo(A.dtype).eps
    return size if bool((rest <= rounding * trace).all()) else None


def _condition_alike(
    statistics: TaskStatistics, size: Tensor, scale: Scale, V: Tensor, *, factorised: bool
) -> Mixed:
    """`condition_patterns` where A_k = s_k A_0: one eigendecomposition, then all is diagonal.

    Time O(D³ + K R D²) in place of O(K D³ + (R D)³).
    """
    # LᵀA_0L = QΛQᵀ;  C̃_k = Q diag(c_k) Qᵀ,  c_k = 1 / (1 + s_k λ)
    white = scale.adjoint(scale.adjoint(formed(statistics.precision[0])).mT)
    value, basis = torch.linalg.eigh(white)
    c = 1 / (1 + size[..., None] * value.clamp(min=0))  # (K, O, D)
    h = (basis.mT @ scale.adjoint(statistics.b[..., None]))[..., 0]
    own = c * h
    # P is block diagonal, R × R for each eigenvector:  P_d = I + Σ_k V_k V_kᵀ (1 − c_kd)
    unit = identity(V.shape[1], V)
    precision = unit + torch.einsum("kr,ks,kod->odrs", V, V, 1 - c)
    factor = torch.linalg.cholesky(precision)
    linear = torch.einsum("kr,kod->odr", V, own)[..., None]
    patterns = torch.cholesky_solve(linear, factor)  # (O, D, R, 1)
    gain = 0.5 * (linear * patterns).sum()
    if factorised:
        factor = torch.linalg.cholesky(unit + V.mT @ V).expand_as(factor)
    root = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False).mT
    log_normaliser = (
        statistics.c.sum()
        + 0.5 * ((h * own).sum() + c.log().sum())
        + gain
        - factor.diagonal(dim1=-2, dim2=-1).log().sum()
    )
    shared = torch.cat([root, patterns], -1)  # (O, D, R, R + 1)
    mixed = torch.einsum("kr,odrj->kodj", V, shared)
    told = c[..., None] * mixed
    common = torch.zeros_like(told[..., :-1]) if factorised else told[..., :-1]
    effective = (1 - c).sum(-1) + ((mixed[..., :-1] - common) * common).sum((-2, -1))
    common = torch.einsum("oid,kodj->koidj", basis, common).flatten(-2)
    # back from the eigenvectors: a root's columns are theirs, one by one
    spread = torch.einsum("oid,odrj->oridj", basis, root).flatten(-2)
    centre = torch.einsum("oid,odr->ori", basis, patterns[..., 0])
    return Mixed(
        mean=(basis @ (own + told[..., -1])[..., None])[..., 0],
        roots=Roots(
            scale.apply(basis * c.sqrt()[..., None, :])[:, None], scale.apply(common)[:, None]
        ),
        patterns=torch.cat([spread, centre[..., None]], -1),
        log_normaliser=log_normaliser,
        effective=lambda: effective,
    )
