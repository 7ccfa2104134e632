"""What an action does to a loss and to a learning rule: generators, defects, broken kinetic symmetry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

from nlcompanion._arguments import function, numbers, scalar_of, vector
from nlcompanion.dynamics.bregman import kinetic_energy
from nlcompanion.dynamics.gradient import gradient_of
from nlcompanion.dynamics.learning_rules import LearningRule
from nlcompanion.mechanics.lagrangian import lift
from nlcompanion.symmetries.actions import Symmetry, as_symmetry
from nlcompanion.symmetries.states import at_each, state

__all__ = ["generator", "invariance_defect", "kinetic_symmetry_breaking"]

# --- what an action does ----------------------------------------------------------------------------------------


def generator(symmetry: Symmetry) -> Callable[[Tensor], Tensor]:
    r"""The generator of an action, :math:`\xi(q) = \partial_s Q(q, s)` at :math:`s = 0`, by differentiating it.

    Args:
        symmetry: any :class:`Symmetry`.

    Returns:
        A function ``q -> xi`` from shape ``(n,)`` to ``(n,)``, in units of ``q``.

    Raises:
        ValueError: when called, if the action is not the identity at ``s = 0``.

    Source: TK Section 2.1; GU Eqs. 10 and 55.

    Example:
        >>> import torch
        >>> from nlcompanion import scale
        >>> generator(scale())(torch.tensor([1.0, 2.0]).double()).tolist()
        [1.0, 2.0]
    """

    as_symmetry(symmetry)

    def xi(q):
        q = vector("q", q)
        zero, one = torch.zeros((), dtype=q.dtype, device=q.device), torch.ones((), dtype=q.dtype, device=q.device)
        moved, tangent = jvp(lambda s: symmetry(q, s), (zero,), (one,))
        symmetry._compare(moved, q)
        return tangent

    return xi


def invariance_defect(f: Callable[[Tensor], Tensor], symmetry: Symmetry, q, s=None) -> Tensor:
    r"""How far a loss is from having a symmetry, at a point; 0 when it has it.

    Without ``s`` the infinitesimal defect, the cosine of the angle between gradient and generator,

    .. math:: \frac{|\langle\nabla f(q), \xi(q)\rangle|}{|\nabla f(q)|\,|\xi(q)|} \in [0, 1],

    with ``s`` the finite one,

    .. math:: \frac{|f(Q(q, s)) - f(q)|}{\max(|f(Q(q, s))|, |f(q)|)} \in [0, 2].

    Args:
        f: loss ``f(q) -> scalar``.
        symmetry: the action.
        q: point of shape ``(n,)``.
        s: None, a number, or a sequence of numbers (dimensionless).

    Returns:
        A 0-d tensor, or one of the shape of ``s``; dimensionless.

    Raises:
        ValueError: if gradient or generator vanishes at ``q``, where the cosine would pass whatever the symmetry; if
            the loss or its gradient is not finite there.

    Source: TK Section 2.1; GU Eq. 16.

    Example:
        >>> import torch
        >>> from nlcompanion import rotation, scale
        >>> bowl, q = (lambda q: (q @ q - 1) ** 2), torch.tensor([0.3, 0.4]).double()
        >>> bool(invariance_defect(bowl, rotation(plane=(0, 1)), q, s=[0.5, 2.0]).max() < 1e-15)
        True
        >>> round(invariance_defect(bowl, scale(), q).item(), 12)   # as far from it as can be
        1.0
    """
    q = vector("q", q)
    as_symmetry(symmetry).check(q)
    function("f", f, "f(q) -> scalar", 1)
    if s is not None:
        return _finite_defect(f, symmetry, q, numbers("s", s).to(q))
    xi, slope = generator(symmetry)(q), gradient_of(f, q)
    for size, what in ((slope.norm(), "the gradient of the loss"), (xi.norm(), f"the generator of {symmetry.name}")):
        if not float(size):
            raise ValueError(
                f"{what} vanishes at q, where every loss would pass; take another point (or, if it vanishes "
                "everywhere, write the function in torch operations of its arguments)"
            )
    # lengths first: products of tiny numbers would underflow
    return ((slope / slope.norm()) @ (xi / xi.norm())).abs().clamp(max=1.0)


def _finite_defect(f, symmetry: Symmetry, q: Tensor, s: Tensor) -> Tensor:
    with torch.no_grad():
        here = scalar_of("f(q)", f(q))
        values = torch.stack([scalar_of("f(q)", f(symmetry(q, x))) for x in s.reshape(-1)]).reshape(s.shape)
    if not (torch.isfinite(here) and torch.isfinite(values).all()):
        raise ValueError(f"the loss is not finite at q, or where {symmetry.name} moves it; take a smaller s")
    size = torch.maximum(values.abs(), here.abs())
    return torch.where(size > 0, (values - here).abs() / size, torch.zeros_like(size))


def kinetic_symmetry_breaking(rule: LearningRule, symmetry: Symmetry, t, q, v) -> Tensor:
    r"""How a symmetry changes the kinetic energy of a learning rule: :math:`\partial_s T_h` at :math:`s = 0`.

    .. math:: \frac{d}{ds}\, T_h\big(t,\, Q(q, s),\, \dot Q(q, s)\big)\Big|_{s=0}

    0 means that the rule respects the symmetry. Euclidean rules respect translations and rotations, and scaling gives
    :math:`2T`; a :math:`p`-homogeneous :math:`h` gives :math:`p\,T_h` under scaling; in general all are broken.

    Args:
        rule: any rule with a Lagrangian, any ``h``.
        symmetry: any action, a symmetry of the loss or not.
        t, q, v: a point, ``q`` and ``v`` of shape ``(n,)``, or a trajectory of ``T`` of them.

    Returns:
        A scalar or shape ``(T,)``, in units of :math:`T_h`, which is without :math:`e^\gamma`.

    Raises:
        ValueError: for the massless gradient flow; if ``q`` or :math:`q + e^{-\alpha}v` leaves the domain of ``h``; if
            the action is not the identity at ``s = 0``.

    Source: TK Section 2.2, Eqs. 5, 6 and 9.

    Example:
        >>> import torch
        >>> from nlcompanion import damped, scale
        >>> q, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
        >>> kinetic_symmetry_breaking(damped(mass=1.0, friction=0.5), scale(), 0.0, q, v).item()   # twice 25 / 2
        25.0
    """
    T = kinetic_energy(rule)
    as_symmetry(symmetry)
    t, q, v = state(rule, symmetry, t, q, v)

    def broken(t, q, v):
        one = torch.ones((), dtype=torch.float64)
        return jvp(lambda s: T(*lift(lambda t, q: symmetry(q, s))(t, q, v)), (one - 1,), (one,))[1]

    return at_each(broken, t, q, v)


# --- shared with noether ----------------------------------------------------------------------------------------


def variation(symmetry: Symmetry, t: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\partial_s Q` and :math:`\partial_s\dot Q` at :math:`s = 0`: the lifted action, differentiated."""
    one = torch.ones((), dtype=torch.float64)
    return jvp(lambda s: lift(lambda t, q: symmetry(q, s))(t, q, v)[1:], (one - 1,), (one,))[1]
