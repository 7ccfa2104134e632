"""Watching a radius: TK Eq. 17 beside a running training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlcompanion._arguments import described, integer, layer_input, number_from
from nlcompanion.dynamics.learning_rules import sgd


class RadiusTracker:
    r"""The law of the length beside a running training, in constant memory: one average gradient per weight.

    Each :meth:`update` takes the weight and its gradient before a step of SGD. Three predictions of :math:`r^2` run
    along, none of which looks at the weight's length again except to bring the gradient to unit length:

    ============  =======================================================================================
    persistent    TK Eq. 17, :math:`P = 1`
    white         independent gradients, :math:`P = (1-\beta)/(1+\beta)`
    averaged      :math:`|\bar g_n|^2` of the momentum's own average, no assumption
    ============  =======================================================================================

    No past gradients are kept: :math:`\langle|\bar g|^2\rangle/\langle|\hat g|^2\rangle` is :math:`P` with all lags.

    Args:
        weight: the weight at the start, any shape.
        lr, momentum, weight_decay: as in ``torch.optim.SGD``.
        keep: how many leading dimensions tell weights apart: 0 takes the tensor as one weight, 1 a convolution's
            filters each for itself.
        window: number of steps (roughly) over which :attr:`persistence` averages, with exponential weights.

    Attributes:
        steps: how many updates there were.

    Raises:
        ValueError: settings out of range, a weight of length 0, shapes that change.

    Source: TK Eq. 17; the averaged prediction is new as far as we know.

    Example:
        >>> import torch
        >>> q = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> tracker = RadiusTracker(q, lr=0.01)
        >>> for _ in range(10):
        ...     g = torch.stack([-q[1], q[0]]) / (q @ q)    # at right angles to q
        ...     tracker.update(q, g)
        ...     q = q - 0.01 * g
        >>> round(float(q @ q), 6), round(float(tracker.persistent), 6)
        (1.001, 1.001)
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        keep: int = 0,
        window: int = 200,
    ):
        sgd(lr, momentum, weight_decay)
        layer_input(weight)
        if isinstance(keep, bool) or not (isinstance(keep, int) and 0 <= keep <= weight.ndim):
            raise ValueError(
                f"keep = {described(keep)} of a weight with {weight.ndim} dimensions; 0 is the whole, 1 its filters"
            )
        integer("window", window, 1, 10**9)  # steps
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.steps, self._keep, self._window = 0, keep, window
        self._shape = weight.shape
        start = self._squared(weight)
        if not ((start > 0) & start.isfinite()).all():
            raise ValueError(
                "a weight of length 0 or without a finite one has no direction; start from weights that do not vanish"
            )
        self._fourth = {name: start.square() for name in ("persistent", "white", "averaged")}
        self._average = torch.zeros_like(weight, dtype=torch.float64)
        self._norms = {name: torch.zeros_like(start) for name in ("gradient", "average", "reach")}

    @torch.no_grad()
    def update(self, weight: Tensor, gradient: Tensor, *, lr: float | None = None) -> None:
        """Take in one step: the weight before it and the gradient it uses, without the decay's part.

        Args:
            weight, gradient: of the shape at the start.
            lr: the step size from this step on, where a schedule changed it.
        """
        if gradient is None:
            raise TypeError("the gradient is None, as after zero_grad(); update after backward(), before the step")
        for tensor in (weight, gradient):
            layer_input(tensor)
            if not torch.isfinite(tensor).all():
                raise ValueError("a weight or gradient is not finite; cut the run where it diverged")
        if weight.shape != self._shape or gradient.shape != self._shape:
            raise ValueError(
                f"weight {tuple(weight.shape)} and gradient {tuple(gradient.shape)}; the tracker was made for "
                f"{tuple(self._shape)}: make one tracker for each parameter"
            )
        if lr is not None:
            lr = number_from("lr", lr, 0, "a step size is positive, or 0 where a schedule rests")
            if lr != 0:  # a schedule may rest at 0, where the momentum goes on averaging
                sgd(lr, self.momentum, self.weight_decay)
            self.lr = lr
        eta, beta = self.lr, self.momentum
        r_squared = self._squared(weight)
        lengths = r_squared.sqrt().reshape(r_squared.shape + (1,) * (weight.ndim - self._keep))
        unit = gradient.double() * lengths
        self._average.mul_(beta).add_(unit, alpha=1 - beta)
        plain, averaged = self._squared(unit), self._squared(self._average)
        z = 4 * self.weight_decay * eta / (1 - beta)
        push = 2 * eta**2 * (1 + beta) / (1 - beta) ** 3 * (-math.expm1(-z) / z if z else 1.0)
        sources = {"persistent": plain, "white": plain * (1 - beta) / (1 + beta), "averaged": averaged}
        for name, source in sources.items():
            self._fourth[name].mul_(math.exp(-z)).add_(push * source)
        self.steps += 1
        share = 1 / min(self.steps, self._window)  # a plain mean until the window is full
        reach = eta**2 * plain / (r_squared * (1 - beta)) ** 2
        for name, value in (("gradient", plain), ("average", averaged), ("reach", reach)):
            self._norms[name].lerp_(value, share)

    def _squared(self, x: Tensor) -> Tensor:
        return x.detach().double().square().flatten(self._keep).sum(-1) if x.ndim > self._keep else x.double() ** 2

    @property
    def persistent(self) -> Tensor:
        r""":math:`r^2` after the last step by TK Eq. 17."""
        return self._fourth["persistent"].sqrt()

    @property
    def white(self) -> Tensor:
        r""":math:`r^2` after the last step if gradients were independent."""
        return self._fourth["white"].sqrt()

    @property
    def averaged(self) -> Tensor:
        r""":math:`r^2` after the last step with the momentum's own average of the gradient."""
        return self._fourth["averaged"].sqrt()

    @property
    def persistence(self) -> Tensor:
        r""":math:`P` over the window. NaN before the first step, and where the gradient vanished all along."""
        return self._norms["average"] / self._norms["gradient"]

    @property
    def reach(self) -> Tensor:
        r"""Root mean square of :math:`\eta|\hat g|/(r^2(1-\beta))` over the window, in radians.

        How far a lasting gradient would turn the weight within a step once the momentum is up to speed. Below
        about 0.1 the law is good to a per cent or two over a hundred steps; from some tenths on the run bursts.
        """
        return self._norms["reach"].sqrt()
