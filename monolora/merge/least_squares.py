"""The best linear map in place of ``act(A x)``, from second moments.

Plain least squares is ``A' = E[h xᵀ] E[x xᵀ]⁻¹``. With a ridge it is drawn towards ``diag(p) A`` instead of zero, where
``p`` is the slope of each unit's own line through its pre-activation (1 for a unit that never switches off, 0 for a
dead one, 1/2 for zero-mean Gaussian inputs under ReLU): in directions that the calibration text leaves open a unit then
answers with its usual slope, and an activation that is linear comes out exactly.

Shapes: I inputs, O outputs, R units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from monolora.merge.moments import Moments

# Ridges tried, as multiples of the mean eigenvalue of E[x xᵀ].
RIDGES = tuple(10.0**power for power in range(-8, 3))
# Inputs rounded to float32 have eigenvalues to about this share of the largest one; less is noise.
RESOLUTION = 1e-8


class LinearMap(NamedTuple):
    """``A' x + intercept`` in place of ``act(A x)``.

    Attributes:
        A: shape ``(R, I)``, float32.
        intercept: shape ``(R,)``, float32, or None.
        ridge: the ridge as a multiple of the mean eigenvalue of ``E[x xᵀ]``; None for closed forms.
        ridge_raised: whether smaller ridges were left out because ``E[x xᵀ]`` is singular.
        error: ``‖B(A'x + c) - B h‖ / ‖B h‖`` on tokens held out of the fit; None for closed forms.
        tokens: calibration tokens, the held-out ones included.
    """

    A: torch.Tensor
    intercept: torch.Tensor | None = None
    ridge: float | None = None
    ridge_raised: bool = False
    error: float | None = None
    tokens: int = 0


def fit(A: torch.Tensor, B: torch.Tensor, seen: Moments, held_out: Moments, affine: bool) -> LinearMap:
    """The linear map with the ridge that does best on the held-out tokens, fitted again to all tokens.

    Args:
        A: the adapter's first matrix, ``(R, I)``.
        B: its second, ``(O, R)``; it weighs the units' errors.
        seen: moments of the tokens to fit.
        held_out: moments of the tokens to choose the ridge by.
        affine: whether to fit an intercept.
    """
    A64, B64 = A.to(seen.xx), B.to(seen.xx)
    ridge, raised, error = _choose_ridge(A64, B64, seen, held_out, affine)
    both = seen.pooled(held_out)
    centre_x, centre_h = _centre(both, affine)
    centred = both.about(centre_x, centre_h)
    mean_eigenvalue = _mean_eigenvalue(centred)
    prior = _own_slopes(A64, centred)
    ridged = centred.xx + ridge * mean_eigenvalue * torch.eye(len(centred.xx)).to(centred.xx)
    fitted = prior + torch.linalg.solve(ridged, (centred.hx - prior @ centred.xx).T).T
    intercept = (centre_h - fitted @ centre_x).float() if affine else None
    return LinearMap(fitted.float(), intercept, ridge, raised, error, both.tokens)


def _choose_ridge(
    A: torch.Tensor, B: torch.Tensor, seen: Moments, held_out: Moments, affine: bool
) -> tuple[float, bool, float]:
    """The best of ``RIDGES``, whether some had to be left out, and the held-out error it gives."""
    weights_RR = B.T @ B
    size = float((weights_RR * held_out.hh).sum())
    centre = _centre(seen, affine)
    seen, held_out = seen.about(*centre), held_out.about(*centre)
    prior, mean_eigenvalue = _own_slopes(A, seen), _mean_eigenvalue(seen)
    eigenvalues_I, basis_II = torch.linalg.eigh(seen.xx)
    eigenvalues_I = eigenvalues_I.clamp(min=0)
    # Everything below lives in the eigenvectors' basis, where a ridge is one addition to the eigenvalues.
    rest = (seen.hx - prior @ seen.xx) @ basis_II
    rest_held_out = (held_out.hx - prior @ held_out.xx) @ basis_II
    xx_held_out = basis_II.T @ held_out.xx @ basis_II
    hh_held_out = (
        held_out.hh - prior @ held_out.hx.T - held_out.hx @ prior.T + prior @ held_out.xx @ prior.T
    )  # of what the prior leaves open

    def error(ridge: float) -> float:
        slope = rest / (eigenvalues_I + ridge * mean_eigenvalue)
        left = hh_held_out - slope @ rest_held_out.T - rest_held_out @ slope.T + slope @ xx_held_out @ slope.T
        return float((weights_RR * left).sum().clamp(min=0))

    floor = RESOLUTION * float(eigenvalues_I[-1])
    usable = [r for r in RIDGES if float(eigenvalues_I[0]) + r * mean_eigenvalue >= floor]
    best = min(usable, key=error)
    return best, len(usable) < len(RIDGES), (error(best) / size) ** 0.5 if size > 0 else 0.0


def _centre(moments: Moments, affine: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What x and h are measured from: their means for a fit with intercept, else zero."""
    return (moments.x, moments.h) if affine else (torch.zeros_like(moments.x), torch.zeros_like(moments.h))


def _own_slopes(A: torch.Tensor, moments: Moments) -> torch.Tensor:
    """``diag(p) A``, p the least-squares slope of each unit on its own pre-activation ``z = A x``."""
    zz_R = ((A @ moments.xx) * A).sum(1)
    hz_R = (moments.hx * A).sum(1)
    p_R = torch.where(zz_R > 0, hz_R / zz_R.clamp(min=torch.finfo(zz_R.dtype).tiny), 0.0)
    return p_R[:, None] * A


def _mean_eigenvalue(moments: Moments) -> float:
    """Of ``E[x xᵀ]``; 1 where all inputs were zero, so that a ridge stays a ridge."""
    return float(moments.xx.diagonal().mean()) or 1.0
