"""A pair of linear layers in a network on digits: its network, its throws, its drifts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy

import nlcompanion as nl
from nlcompanion import FlatLoss, Law, descend, integrate
from studies.many_seeds import draw_rows


def digits_network(*activations: str) -> FlatLoss:
    """Cross entropy of a network with eight neurons in each hidden layer on 300 digits, one activation for each."""
    inputs, targets = nl.digits("train").first(300).tensors(flatten=True)
    widths = (64, *(8 for _ in activations), 10)
    return nl.flat_loss(nl.mlp(widths, list(activations), seed=0), inputs, targets, cross_entropy)


def mini_batches(f: FlatLoss, size: int = 30) -> Callable[[int], FlatLoss]:
    """``batch(n)``: the loss on the mini-batch of step ``n``, drawn with replacement."""
    inputs, targets = nl.digits("train").first(300).tensors(flatten=True)

    def batch(n: int) -> FlatLoss:
        generator = torch.Generator().manual_seed(n)
        rows = draw_rows(1, len(inputs), size, generator, replacement=True)[0]
        return f.on(inputs[rows], targets[rows])

    return batch


def antisymmetric(M: Tensor) -> Tensor:
    """A matrix, or each of a stack, minus its transpose."""
    return M - M.mT


def spins(law: Law, q: Tensor, v: Tensor) -> Tensor:
    """The angular momentum of hidden neurons along a motion: states ``(T, n)`` to matrices ``(T, d, d)``."""
    return torch.stack([antisymmetric(law.form(b, a)) for a, b in zip(q, v, strict=True)])


def throw(
    f: FlatLoss,
    law: Law,
    first_step: Tensor,
    memory: Callable[[int], float],
    *,
    lr: float,
    steps: int,
    loss: Callable[[int], FlatLoss],
    looks_ahead: bool = False,
) -> Tensor:
    r"""Steps :math:`d_n = \mu_n d_{n-1} - \eta g_n` from a first step, and the angular momentum of each.

    Args:
        f, law: the network, and a law of one of its linear layers.
        first_step: the step before the first, shape ``(n,)``.
        memory: ``mu_n`` for ``n = 0, 1, ...``.
        loss: the loss of step ``n``, a mini-batch's if wanted.
        looks_ahead: whether the gradient is taken where the memory alone would lead.

    Returns:
        ``law.form(d, q)`` minus its transpose for every step, the first included, ``(steps + 1, d, d)``.
    """
    q, d = f.q0, first_step
    forms = [law.form(d, q)]
    for n in range(steps):
        q, coasting = q + d, memory(n) * d
        d = coasting - lr * grad(loss(n))(q + coasting if looks_ahead else q)
        forms.append(law.form(d, q))
    return antisymmetric(torch.stack(forms))


def nesterov_wander(f: FlatLoss, law: Law, velocity: Tensor, h: float) -> Tensor:
    """How far ``t^3`` times the angular momentum drifts, relative, in steps of ``h`` from time 1 to 4."""
    start, end = round(1 / h), round(4 / h)

    def memory(n: int) -> float:
        return (n + start) / (n + start + 3)

    J = throw(f, law, h * velocity, memory, lr=h**2, steps=end - start, loss=lambda n: f, looks_ahead=True)
    left = torch.tensor([k / (k + 3) for k in range(start, end)], dtype=J.dtype).prod()
    return (J[-1] - left * J[0]).norm() / (left * J[0]).norm()


def drift(f: FlatLoss, law: Law, lr: float, momentum: float = 0.0, time: float = 8.0) -> Tensor:
    """How far a charge has moved after a time of descent on all images, at the speed of plain descent with ``lr``."""
    steps = round(time / lr)
    rule = nl.sgd(lr=lr * (1 - momentum), momentum=momentum)
    return law.change(f.q0, descend(rule, f, f.q0, steps=steps, every=steps).q[-1])


# --- the laws that are integrated beside a motion -------------------------------------------------------------------


def torque_defect(f: FlatLoss, law: Law, mixers: Tensor, rule, velocity: Tensor, *, t_span, **solver) -> Tensor:
    r"""GU Eq. 39 under Nesterov's flow: :math:`t^3\langle\dot q, \xi_A\rangle`, end minus start, against its integral.

    Args:
        mixers: the matrices ``A``, ``(k, d, d)``.
        rule, velocity, t_span, solver: the motion, from ``f.q0``.
    """

    def torques(t: float, q: Tensor, v: Tensor) -> Tensor:
        return t**3 * torch.stack([v @ law.generator(q, A) for A in mixers])

    def driven(t: float, q: Tensor, v: Tensor) -> Tensor:
        return t**3 * torch.stack([v @ law.generator(v, A) for A in mixers])

    run = integrate(rule, f, f.q0, velocity, t_span=t_span, t_eval=t_span, integrand=driven, **solver)
    assert run.integral is not None
    first, last = (torques(*state) for state in zip(run.t, run.q, run.v, strict=True))
    return (last - first - run.integral[1]) / last.norm()


def second_difference_defect(f: FlatLoss, law: Law, velocity: Tensor, *, t_span, **solver) -> Tensor:
    r"""GU Eq. 43 integrated twice: half of what C gains beyond its rate, against :math:`\int(t_1-t)B(v,v)\,dt`."""
    start, end = t_span

    def twice(t: float, q: Tensor, v: Tensor) -> Tensor:
        return (end - t) * law.form(v)

    run = integrate(nl.newtonian(), f, f.q0, velocity, t_span=t_span, t_eval=t_span, integrand=twice, **solver)
    assert run.integral is not None
    rate = law.form(run.v[0], run.q[0]) * (end - start)
    gained = law.change(*run.q) / 2 - (rate + rate.T) / 2
    return (gained - run.integral[1]) / run.integral[1].norm()
