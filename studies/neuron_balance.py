"""What hidden neurons keep: the measurements behind the chapter on homogeneity, on handwritten digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn.functional import cross_entropy

import nlcompanion as nl
from nlcompanion import FlatLoss, Law, LearningRule, descend, integrate
from studies.many_seeds import draw_rows

SMOOTH = {"rtol": 1e-11, "atol": 1e-14}  # smooth activations leave the solver nothing to stumble over
KINKED = {"method": "RK45", "rtol": 1e-6, "atol": 1e-8}  # a flow of ReLU crosses many kinks
# for controls, which are off by 0.008 and more: of a true law this leaves at most 7e-5
ROUGH = {"method": "RK45", "rtol": 1e-4}


@cache
def first_digits(samples: int) -> tuple[Tensor, Tensor]:
    """The first handwritten digits as vectors, and their labels."""
    return nl.digits("train").first(samples).tensors(flatten=True)


def digits_loss(widths, activation="relu", *, samples: int = 300, **options) -> FlatLoss:
    """Cross entropy of a fully connected network on the first handwritten digits; ``options`` as for ``mlp``.

    Example:
        >>> len(digits_loss((64, 8, 10)))
        592
    """
    inputs, targets = first_digits(samples)
    return nl.flat_loss(nl.mlp(widths, activation, **options), inputs, targets, cross_entropy)


def mini_batches(f: FlatLoss, size: int = 30, samples: int = 300) -> Callable[[int], FlatLoss]:
    """``batch(n)``: the loss on the mini-batch of step ``n``, drawn without replacement."""
    inputs, targets = first_digits(samples)

    def batch(n: int) -> FlatLoss:
        rows = draw_rows(1, samples, size, torch.Generator().manual_seed(n))[0]
        return f.on(inputs[rows], targets[rows])

    return batch


def relative_drift(law: Law, points: Tensor) -> Tensor:
    """The largest drift of a charge along ``points`` of shape ``(T, n)``, relative to what it is the difference of."""
    start = points[0]
    moved = torch.stack([law.change(start, q) for q in points])
    return (moved.abs().amax(0) / sum(law.sides(points[-1]))).max()


def imbalance(first: Tensor, second: Tensor) -> Tensor:
    """By how much two sides differ at most, relative to the largest value of the first."""
    return (first - second).abs().max() / first.abs().max()


def squares_gained(f: FlatLoss, start: Tensor, end: Tensor) -> dict[str, Tensor]:
    """What the squared norm of each parameter tensor has gained, by name."""
    before, after = f.unflatten(start), f.unflatten(end)
    return {name: after[name].square().sum() - before[name].square().sum() for name in f.names}


def drift_after(f: FlatLoss, law: Law, rule: LearningRule, time: float) -> Tensor:
    """How far a charge has moved when a discrete algorithm has run for a time, in its own clock."""
    assert rule.steps is not None
    steps = round(time / rule.steps.time_step)
    return law.change(f.q0, descend(rule, f, f.q0, steps=steps, every=steps).q[-1])


def sharpness(f: FlatLoss, q: Tensor, iterations: int = 30) -> float:
    """The Hessian's largest eigenvalue, by power iteration; gradient descent is stable for eta below 2 over it."""
    direction = torch.randn(len(q), generator=torch.Generator().manual_seed(0), dtype=q.dtype)
    for _ in range(iterations):
        direction = direction / direction.norm()
        direction = jvp(grad(f), (q,), (direction,))[1]
    return float(direction.norm())


# --- forces, step by step -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forces:
    """What a discrete run says of the two sides of a law, each a pair ``(reads, writes)`` over the steps.

    Attributes:
        norms: the squared lengths.
        kicks: the pairing with the kick over ``eta``, at the point where the gradient was taken.
        kicks_elsewhere: the same at the other of the two points, the weights and where the last step would carry them.
        steps: the pairing with the step itself, the balance that gradient flow would have.
    """

    norms: tuple[Tensor, Tensor]
    kicks: tuple[Tensor, Tensor]
    kicks_elsewhere: tuple[Tensor, Tensor]
    steps: tuple[Tensor, Tensor]


def two_forces(
    rule: LearningRule, memory: Tensor, f: FlatLoss, law: Law, *, looks_ahead: bool, steps: int = 150
) -> Forces:
    r"""Run an algorithm of GU and pair its kicks with the weights; no gradient is used.

    The kick is :math:`(d_n - \mu_n d_{n-1})/\eta`, from three positions.

    Args:
        rule: ``newtonian(lr=...)`` or ``nesterov(lr=...)``.
        memory: :math:`\mu_n` for ``n = 1 ... steps - 1``, a column.
        f, law: the loss, and one law of it.
        looks_ahead: whether the rule takes its gradient ahead of the weights, as Nesterov's algorithm does.
    """
    assert rule.steps is not None
    q = descend(rule, f, f.q0, steps=steps).q
    weights, step, before = q[1:-1], q[2:] - q[1:-1], q[1:-1] - q[:-2]
    ahead = weights + memory * before
    kick = (q[2:] - ahead) / rule.steps.lr
    sides = vmap(law.sides)
    at, elsewhere = (ahead, weights) if looks_ahead else (weights, ahead)
    return Forces(sides(weights), sides(at, kick), sides(elsewhere, kick), sides(weights, step))


# --- tables of laws -------------------------------------------------------------------------------------------------

GENERAL = nl.general(lambda t: 1 + t, lambda t: 1 / t)  # kappa_2 and kappa_1
DYNAMICS = {
    "gradient flow": nl.gradient_flow(),
    "Newton": nl.newtonian(),
    "Nesterov": nl.nesterov(),
    "general": GENERAL,
}


@dataclass(frozen=True)
class Family:
    """An activation of GU's tables and what a careful person might take for it.

    Attributes:
        activation: of the hidden neurons, as ``mlp`` takes it.
        solver: how finely its motion is integrated.
        other: the activation of the control; None if the same.
        p: the degree that the control takes for granted.
        samples: how many digits. Kinks want many: the fewer there are, the harder each image's kink.
        exponent: the power of ten below which the law is taken to hold: what the solver leaves.
    """

    activation: object
    solver: dict
    other: object = None
    p: float = 1.0
    samples: int = 100
    exponent: int = -10


FAMILIES = {
    "ReLU": Family("relu", KINKED, other="gelu", samples=300, exponent=-6),  # its smooth cousin
    "leaky ReLU": Family("leaky_relu", KINKED, other=nn.ELU(), samples=300, exponent=-6),
    "$x^2$": Family(nl.Power(2), SMOOTH),  # as if the law of ReLU were everybody's
    "$x^3$": Family(nl.Power(3), SMOOTH),
    "RePU(3)": Family(nl.RePU(3), SMOOTH),
    "Swish": Family("swish", SMOOTH),  # as if its slope took no part
}


def table_entry(family: Family, rule: LearningRule, bias: bool) -> tuple[Tensor, Tensor]:
    """By how much the law of a family fails under a rule, and by how much its control: the worst neuron's, relative.

    The network is 64-8-10, the time 0.5 to 1; :meth:`nlcompanion.LawUnderRule.residual` integrates the law's own
    right-hand side beside the motion.
    """
    f = digits_loss((64, 8, 10), family.activation, samples=family.samples, bias=bias)
    other = f if family.other is None else digits_loss((64, 8, 10), family.other, samples=family.samples, bias=bias)
    held = nl.homogeneous_law(f, 1).under(rule).residual(f, t_span=(0.5, 1), **family.solver)
    sham = nl.homogeneous_law(other, 1, p=family.p, verify=False).under(rule)
    failed = sham.residual(other, t_span=(0.5, 1), **ROUGH)
    return held.abs().max(), failed.abs().max()


def tables() -> dict[tuple[str, str, bool], tuple[Tensor, Tensor]]:
    """GU's Tables 2 and 3: ``{(family, dynamics, with biases): (violation, control's violation)}``."""
    return {
        (name, dynamics, bias): table_entry(family, rule, bias)
        for name, family in FAMILIES.items()
        for dynamics, rule in DYNAMICS.items()
        for bias in (False, True)
    }


# --- how far the balance can move -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerDrift:
    """The differences ``D_h`` of neighbouring layers along a motion.

    Attributes:
        t: times, ``(T,)``.
        D: the differences, ``(layers, T)``.
        rate: their rates, from positions and velocities.
        unit: ``f_0 t^2``, the unit of the bounds.
    """

    t: Tensor
    D: Tensor
    rate: Tensor
    unit: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of ``|D_h(t) - D_h(0)|``."""
        return (self.D - self.D[:, :1]).abs().sum(0)

    @property
    def slope_of_absolute_values(self) -> Tensor:
        """The rate of the sum of ``|D_h|``, which jumps where a difference changes its sign."""
        return (self.rate * self.D.sign()).sum(0)


def layer_drift(f: FlatLoss, rule: LearningRule, *, t0: float = 0.0, v0: Tensor | None = None) -> LayerDrift:
    """Follow all differences of neighbouring layers up to time 3, from rest unless a velocity is given."""
    t_eval = torch.linspace(t0, 3, 301, dtype=torch.float64)
    path = integrate(rule, f, f.q0, v0, t_span=(t0, 3), t_eval=t_eval, method="RK45", rtol=1e-4, atol=1e-6)
    laws = [law.total for law in nl.homogeneous_laws(f)]
    D = torch.stack([vmap(law.charge)(path.q) for law in laws])
    rate = torch.stack([2 * vmap(law.form)(path.v, path.q) for law in laws])
    return LayerDrift(path.t, D, rate, f(f.q0) * path.t**2)


# --- steps of any optimiser -----------------------------------------------------------------------------------------


def batches_of_digits(steps: int, size: int = 30, samples: int = 300) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of successive mini-batches."""
    inputs, targets = first_digits(samples)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = draw_rows(1, samples, size, generator)[0]
        yield inputs[rows], targets[rows]


def flat(tensors) -> Tensor:
    """One vector of all the tensors, detached."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def tilt_of_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, law: Law, steps: int = 50
) -> tuple[Tensor, Tensor]:
    """The largest cosines with any neuron's symmetry: of the gradients that an optimiser gets, and of its steps."""
    of_gradient, of_step = [], []
    for images, labels in batches_of_digits(steps):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        before = flat(model.parameters())
        gradient = flat(p.grad for p in model.parameters())
        optimizer.step()
        of_gradient.append(law.cosine(gradient, before).abs().max())
        of_step.append(law.cosine(flat(model.parameters()) - before, before).abs().max())
    return torch.stack(of_gradient).max(), torch.stack(of_step).max()


def nesterov_books(f: FlatLoss, law: Law, lr: float = 0.01, steps: int = 150) -> dict[str, Tensor]:
    r"""Both sides of Nesterov's identity on mini-batches.

    .. math:: \Delta C_n - \mu_n\Delta C_{n-1} = \mu_n(1+\mu_n)Q(d_{n-1}) + \eta^2 Q(g_n)

    Returns:
        ``change``, the left side, from positions; ``explained``, the right, with the gradient at the point ahead;
        ``gradient_at_weights``, the right side with the gradient taken at the weights; ``memory_of_0.9``, the left
        side minus the right with a memory that does not age. Each of shape ``(steps - 1, d)``.
    """
    batch = mini_batches(f)
    q = descend(nl.nesterov(lr=lr), None, f.q0, steps=steps, batches=batch).q
    n = torch.arange(1.0, steps, dtype=torch.float64)[:, None]
    memory = (n - 1) / (n + 2)
    d, C = q.diff(dim=0), vmap(law.change)(q[:-1], q[1:])
    Q = vmap(law.form)
    ahead = q[1:-1] + memory * d[:-1]
    gradients = torch.stack([grad(batch(k + 1))(point) for k, point in enumerate(ahead)])
    at_weights = torch.stack([grad(batch(k + 1))(point) for k, point in enumerate(q[1:-1])])
    coasting = memory * (1 + memory) * Q(d[:-1])
    return {
        "change": C[1:] - memory * C[:-1],
        "explained": coasting + lr**2 * Q(gradients),
        "gradient_at_weights": coasting + lr**2 * Q(at_weights),
        "memory_of_0.9": C[1:] - 0.9 * C[:-1] - 0.9 * 1.9 * Q(d[:-1]) - lr**2 * Q(gradients),
    }
