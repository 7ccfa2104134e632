"""Where radius and angular rate settle, and the RMSProp that it imitates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nlcompanion._arguments import flag, one
from nlcompanion.adaptivity.settings import settings

__all__ = ["Equilibrium", "RMSPropTwin", "angular_update", "equilibrium", "rmsprop_twin"]

# --- equilibrium --------------------------------------------------------------------------------------------------


def angular_update(lr: float, weight_decay: float, momentum: float = 0.0, *, decoupled: bool = False) -> float:
    r"""By how much a scale-invariant weight turns per step at equilibrium (TK Eq. 29).

    .. math:: |\hat q_{n+1} - \hat q_n| = \sqrt{\frac{2\eta k}{1+\beta}}, \qquad
              \text{decoupled decay: } \sqrt{2\eta k\,\frac{1-\beta}{1+\beta}}

    The first is SGD's, whose decay passes through the momentum. The second is for decay that acts on the weight alone,
    AdamW's with :math:`\beta = \beta_1` or SGD's with ``q *= 1 - lr * k``. Both hold for persistent and for
    independent gradients alike, unlike the radius (TK Eq. 30): where the length neither grows nor shrinks, what the
    steps add is what decay takes, :math:`(1+\beta)\langle|d|^2\rangle = 2\eta k\langle r^2\rangle`, and no gradient
    occurs in that balance. For a constant length the first formula is exact, as a chord. AdamW's is as good as its
    steps are at right angles to the weight on average: its division by :math:`\sqrt{v}`, component by component,
    does not guarantee that.

    Args:
        lr: step size :math:`\eta > 0`.
        weight_decay: :math:`k > 0`, in 1 / time, time being :math:`t = \eta n`; without decay there is no equilibrium.
        momentum: :math:`\beta` in [0, 1); PyTorch's convention, or AdamW's ``betas[0]``.
        decoupled: True for AdamW, and for any decay that is not part of the gradient.

    Returns:
        The length of the chord between successive directions, root mean square; for small angles the angle in
        radians per step.

    Raises:
        ValueError: if ``weight_decay`` is 0, since the norm then grows for ever; settings out of range.

    Source: TK Eq. 29 and Wan et al. (arXiv 2006.08419); for decoupled decay Kosson et al. (arXiv 2305.17212).

    Example:
        >>> round(angular_update(lr=0.1, weight_decay=5e-4, momentum=0.9), 5)
        0.00725
        >>> round(angular_update(lr=1e-3, weight_decay=0.1, momentum=0.9, decoupled=True), 5)   # AdamW
        0.00324
    """
    lr, momentum, weight_decay = settings(lr, momentum, weight_decay)
    flag("decoupled", decoupled)
    if not weight_decay > 0:
        raise ValueError(
            "weight_decay is 0, so nothing holds the norm and it grows for ever; there is an equilibrium only with "
            "weight_decay > 0"
        )
    return math.sqrt(2 * lr * weight_decay * ((1 - momentum) if decoupled else 1) / (1 + momentum))


@dataclass(frozen=True)
class Equilibrium:
    r"""Where the length of a scale-invariant weight settles; made by :func:`equilibrium`.

    Attributes:
        angular_update: turn per step, in radians (TK Eq. 29). In every regime.
        angular_speed: turn per time, :math:`\sqrt{k/m}` (TK Eq. 29). In every regime.
        radius: :math:`r^*` (TK Eq. 30 with the persistence), or None where no gradient norm was given. For the
            persistence that was given.
        drive: :math:`\sqrt{k\mu^2/(mP)}`, by which the normalised gradient is multiplied in
            :math:`m\ddot{\hat q} + \mu\dot{\hat q} = -\sqrt{k\mu^2/(mP)}\;\nabla f/|\nabla f|` (TK Eq. 31),
            tangentially and to leading order. For the persistence that was given.
        time_constant: time in which the distance of :math:`r^4` from equilibrium falls by e, :math:`(1-\beta)/(4k)`.
            In every regime, while that is much longer than the momentum's memory.
        time_constant_steps: the same in steps, :math:`(1-\beta)/(4\eta k)`.
        persistence: the factor :math:`P` that was assumed.
    """

    angular_update: float
    angular_speed: float
    radius: float | None
    drive: float
    time_constant: float
    time_constant_steps: float
    persistence: float


def equilibrium(
    lr: float,
    weight_decay: float,
    momentum: float = 0.0,
    *,
    grad_norm: float | None = None,
    persistence: float = 1.0,
    decoupled: bool = False,
) -> Equilibrium:
    r"""The equilibrium of a scale-invariant weight under SGD with heavy ball and decay (TK Eqs. 29 to 31).

    .. math:: |\dot{\hat q}|^* = \sqrt{\frac km}, \qquad
              r^* = \Big(\frac{mP}{k\mu^2}\Big)^{1/4}\sqrt{|\nabla f(\hat q)|}
                  = \Big(\frac{\eta(1+\beta)P}{2k(1-\beta)^2}\Big)^{1/4}\sqrt{|\nabla f(\hat q)|}

    The angle and the time constant hold in every regime. The radius and the drive belong to one: TK's formulas are
    those for ``persistence=1``, and gradients that are new in every step have ``(1 - momentum) / (1 + momentum)``, so
    that their :math:`r^{*4}` is smaller by 19 at :math:`\beta = 0.9`. For other optimisers see :func:`equilibrium_of`;
    :func:`equilibrium_of_updates` has this one as a case.

    Args:
        lr, weight_decay, momentum: as in ``torch.optim.SGD``; the decay must be positive.
        grad_norm: root mean square of :math:`|\nabla f(\hat q)|`, of the batches that the steps use.
        persistence: :math:`P`, from :func:`gradient_persistence`.
        decoupled: True for decay that acts on the weight alone, ``q *= 1 - lr * weight_decay``: it does what coupled
            decay of ``(1 - momentum) * weight_decay`` does.

    Returns:
        An :class:`Equilibrium`.

    Raises:
        ValueError: no decay, settings out of range.

    Source: TK Eqs. 29, 30 and 31.

    Example:
        >>> persistent = equilibrium(0.1, 5e-4, 0.9, grad_norm=1.0)
        >>> independent = equilibrium(0.1, 5e-4, 0.9, grad_norm=1.0, persistence=0.1 / 1.9)
        >>> round((persistent.radius / independent.radius) ** 4)
        19
        >>> persistent.angular_update == independent.angular_update
        True
    """
    lr, momentum, weight_decay = settings(lr, momentum, weight_decay)
    turn = angular_update(lr, weight_decay, momentum, decoupled=decoupled)
    coupled = weight_decay * (1 - momentum) if decoupled else weight_decay
    P = one("persistence", persistence)
    mass, friction = lr * (1 + momentum) / 2, 1 - momentum
    drive = friction * math.sqrt(coupled / (mass * P))
    return Equilibrium(
        angular_update=turn,
        angular_speed=turn / lr,
        radius=None if grad_norm is None else math.sqrt(one("grad_norm", grad_norm) / drive),
        drive=drive,
        time_constant=friction / (4 * coupled),
        time_constant_steps=friction / (4 * coupled * lr),
        persistence=P,
    )


@dataclass(frozen=True)
class RMSPropTwin:
    r"""The RMSProp that normalisation amounts to; made by :func:`rmsprop_twin`.

    Attributes:
        rho: its memory, :math:`1 - 4\eta k/(1-\beta)`.
        amplitude: :math:`A` in :math:`r^4(t) = A\,G(t)`, in units of time squared.
        lr: its step size in steps of a direction: :math:`\hat q` moves by ``lr * grad / sqrt(G)``, and this ``lr`` is
            the angle of TK Eq. 29 over the square root of :math:`P`.
    """

    rho: float
    amplitude: float
    lr: float


def rmsprop_twin(lr: float, weight_decay: float, momentum: float = 0.0, *, persistence: float = 1.0) -> RMSPropTwin:
    r"""Translate SGD on a scale-invariant weight into RMSProp on its direction.

    .. math:: 1 - \rho = \frac{4\eta k}{1-\beta}, \qquad
              r^4(t) = A\,G(t), \quad A = \frac{\eta(1+\beta)P}{2k(1-\beta)^2}, \qquad
              \hat q_{n+1} \approx \hat q_n - \sqrt{\frac{2\eta k}{(1+\beta)P}}\;\frac{\nabla f(\hat q_n)}{\sqrt{G_n}}

    With this :math:`\rho` the kernels of TK Eqs. 17 and 18 are the same and differ by the factor :math:`A` alone. The
    step of the direction is to leading order, without inertia.

    Args:
        lr, weight_decay, momentum: as in ``torch.optim.SGD``; without decay the memory is endless, which is AdaGrad.
        persistence: :math:`P`, from :func:`gradient_persistence`.

    Returns:
        An :class:`RMSPropTwin`.

    Raises:
        ValueError: no decay; a memory shorter than a step, :math:`4\eta k \ge 1-\beta`.

    Source: TK Eqs. 17 and 18 and the text between them; the dictionary is this book's.

    Example:
        >>> twin = rmsprop_twin(lr=0.1, weight_decay=5e-4, momentum=0.9)
        >>> round(twin.rho, 6), round(twin.lr, 5)
        (0.998, 0.00725)
    """
    settled = equilibrium(lr, weight_decay, momentum, grad_norm=1.0, persistence=persistence)
    forgets = 1 / settled.time_constant_steps
    if not forgets < 1:
        raise ValueError(
            f"4 lr weight_decay / (1 - momentum) = {forgets:.3g} is not below 1: the norm forgets within one step and "
            "no rho describes it; lower lr or weight_decay"
        )
    assert settled.radius is not None  # a gradient's norm was given
    return RMSPropTwin(1 - forgets, settled.radius**4, settled.angular_update / math.sqrt(settled.persistence))
