"""What an update rule promises, in the words of :func:`nlcompanion.testing.check_optimizer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nlcompanion._arguments import choice, described, finite_number, flag, function, integer, names, number_from

Group = dict[str, Any]
_DECAYS = ("none", "coupled", "decoupled", "unknown")
_EQUIVARIANCES = ("signs", "permutations", "rotations", "orthogonal")


@dataclass(frozen=True)
class OptimizerLaws:
    r"""The laws of an update rule; None or an empty field says that the rule promises nothing there.

    Attributes:
        decay: ``"decoupled"``: weights shrink by :math:`1 - \eta\lambda` a step, whatever the gradient; ``"coupled"``:
            :math:`\lambda\theta` joins the gradient (L2); ``"none"``.
        degree: what gradients times c do to step n (counted from 1): 0 nothing, 1 everything times c.
        first_step: the first step from zero weights for a gradient of entries near ``g``, number by number, as
            ``first_step(group, g)``; in units of a parameter.
        kept: what step n keeps of the weights whatever the decay, ``kept(group, n)``, as the averaging of ASGD has it.
        sized: steps are in proportion to the weights, as Adafactor's and LAMB's: instead of a shift, the decay of
            each step alone is checked.
        eps_degree: gradients times c with an ``eps`` times c to this power obey ``degree`` exactly, and ``first_step``
            knows the ``eps``; None if that is not known: what leaving out the ``eps`` changes is allowed for then.
        first_values: the band of the singular values of the first step of a matrix, ``first_values(group, shape)``.
        equivariance: among ``"signs"``, ``"permutations"``, ``"rotations"`` (of all entries of a tensor) and
            ``"orthogonal"`` (from both sides of a matrix).
        white_rms: root mean square of step n (counted from 1) under white gradients of size 1, ``white_rms(group, n)``.
        elementwise: the same numbers in another shape take the same steps.
        ndim: which tensors the rule takes, None for any.
        stops: a learning rate of 0 moves nothing.
        tolerance: relative accuracy of the rule's own arithmetic, where coarser than the parameters'.
    """

    decay: str = "none"
    degree: float | Callable[[int], float] | None = None
    first_step: Callable[[Group, torch.Tensor], torch.Tensor] | None = None
    first_values: Callable[[Group, tuple[int, ...]], tuple[float, float]] | None = None
    equivariance: tuple[str, ...] = ()
    white_rms: Callable[[Group, int], float] | None = None
    elementwise: bool = True
    ndim: int | None = None
    tolerance: float = 0.0
    stops: bool = True
    eps_degree: float | None = None
    kept: Callable[[Group, int], float] | None = None
    sized: bool = False

    def __post_init__(self) -> None:
        choice("decay", self.decay, *_DECAYS)
        if self.degree is not None and not callable(self.degree):
            finite_number("degree", self.degree)
        if self.eps_degree is not None:
            finite_number("eps_degree", self.eps_degree)
        for name in ("degree", "first_step", "first_values", "white_rms", "kept"):
            if callable(given := getattr(self, name)):
                function(name, given, f"{name}(...)", 1 if name == "degree" else 2)
            elif given is not None and name != "degree":
                raise TypeError(f"{name} must be a function or None, got {described(given)}")
        object.__setattr__(self, "equivariance", names("equivariance", self.equivariance))
        for kind in self.equivariance:
            choice("equivariance", kind, *_EQUIVARIANCES)
        for name in ("elementwise", "stops", "sized"):
            flag(name, getattr(self, name))
        if self.ndim is not None:
            integer("ndim", self.ndim, 0, 64)
        number_from("tolerance", self.tolerance, 0, "it is a relative accuracy")
