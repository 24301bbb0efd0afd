"""Sums over tokens: how often units fire, how strongly, in which sizes, and with which other units.

Shapes: T tokens, U units, E bins, P units of a block.
"""

from __future__ import annotations

import torch

from monolora.explain.bins import Bins

BITS = 2  # of the histogram: a quarter of an octave a bin
BLOCK = 4096  # units whose co-activation is counted together; a matrix of 134 MB
CONSTANT = 1e-6  # a standard deviation that is less of the mean is none, but the rounding of float32


class Moments:
    """Sums over the tokens of a data set, on one device; sums are float64.

    Co-activation is counted within blocks of 4,096 units in their order, which most adapters have only one of.

    Args:
        units: U.
        signed: whether activations may be negative.
        device: of the activations.
    """

    def __init__(self, units: int, signed: bool, device: torch.device) -> None:
        self._signed = signed
        self._bins = Bins(signed, BITS)
        self._first_bin_U = torch.arange(units, device=device, dtype=torch.int32) * self._bins.number
        self.tokens = 0
        self._pivot_U: torch.Tensor | None = None
        self.fired_U = torch.zeros(units, dtype=torch.int64, device=device)
        self.sum_U = torch.zeros(units, dtype=torch.float64, device=device)
        self.absolute_U = torch.zeros_like(self.sum_U)
        self.max_U = torch.full((units,), -torch.inf, device=device)
        self.min_U = torch.full((units,), torch.inf, device=device)
        self.histogram_UE = torch.zeros(units, self._bins.number, dtype=torch.int64, device=device)
        self._blocks = [slice(start, min(start + BLOCK, units)) for start in range(0, units, BLOCK)]
        self._products = [self.sum_U.new_zeros(at.stop - at.start, at.stop - at.start) for at in self._blocks]

    def add(self, h_TU: torch.Tensor) -> None:
        """Count tokens; float32."""
        self.tokens += h_TU.shape[0]
        if self._pivot_U is None:
            # Near the means, so that little is lost where products of float32 are added up and means taken off.
            self._pivot_U = h_TU.mean(0)
        shifted_TU = h_TU - self._pivot_U
        self.sum_U += h_TU.sum(0, dtype=torch.float64)
        self.absolute_U += h_TU.abs().sum(0, dtype=torch.float64) if self._signed else 0
        self.max_U = torch.maximum(self.max_U, h_TU.amax(0))
        self.min_U = torch.minimum(self.min_U, h_TU.amin(0))
        self.fired_U += (h_TU != 0).sum(0)
        places_TU = self._bins.of(h_TU) + self._first_bin_U
        self.histogram_UE += torch.bincount(places_TU.flatten(), minlength=self.histogram_UE.numel()).view(
            self.histogram_UE.shape
        )
        for at, product_PP in zip(self._blocks, self._products, strict=True):
            product_PP += shifted_TU[:, at].T @ shifted_TU[:, at]

    def mean_size(self) -> torch.Tensor:
        """Mean absolute activation."""
        return (self.absolute_U if self._signed else self.sum_U) / self.tokens

    def std(self) -> torch.Tensor:
        """Standard deviation over all tokens; 0 of an activation that is constant but for rounding."""
        return self._variance().sqrt()

    def _variance(self) -> torch.Tensor:
        squares_U = torch.cat([product_PP.diagonal() for product_PP in self._products])
        variance_U = squares_U / self.tokens - self._shifted_mean() ** 2
        return variance_U.where(variance_U > (CONSTANT * self.sum_U / self.tokens) ** 2, 0)

    def _shifted_mean(self) -> torch.Tensor:
        assert self._pivot_U is not None  # tokens were counted
        return self.sum_U / self.tokens - self._pivot_U

    def partners(self, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The units that go most with each, by the size of Pearson's correlation over tokens.

        Returns:
            Places of the units and the correlations, ``(U, most)`` each; place -1 where there are no more, or where an
            activation never changes (:meth:`std` is 0).
        """
        mean_U, std_U = self._shifted_mean(), self.std()
        places, correlations = [], []
        for at, product_PP in zip(self._blocks, self._products, strict=True):
            covariance_PP = product_PP / self.tokens - torch.outer(mean_U[at], mean_U[at])
            r_PP = covariance_PP / torch.outer(std_U[at], std_U[at])
            r_PP = r_PP.nan_to_num_(0, 0, 0).clamp_(-1, 1).fill_diagonal_(0)
            found = r_PP.abs().topk(min(most, len(r_PP)), dim=1)
            r_PM = r_PP.gather(1, found.indices)
            pad = (0, most - r_PM.shape[1])
            correlations.append(torch.nn.functional.pad(r_PM, pad))
            places.append(torch.nn.functional.pad(found.indices + at.start, pad))
        r_UM, place_UM = torch.cat(correlations), torch.cat(places)
        return place_UM.masked_fill(r_UM == 0, -1), r_UM
