"""Round data: orbits, angular momenta and torques of a first layer, for the chapter on data symmetry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.func import grad, vmap

import nlcompanion as nl

Loss = Callable[[Tensor], Tensor]

POLYHEDRA = {"tetrahedron": "T", "cube": "O", "icosahedron": "I"}  # SciPy's names of their rotation groups


def journey(f: Loss, rule, q0, v0, span: tuple[float, float], points: int = 501, rtol: float = 1e-13):
    """A motion reported at ``points`` equal times."""
    times = torch.linspace(*span, points, dtype=torch.float64)
    return nl.integrate(rule, f, q0, v0, t_span=span, t_eval=times, rtol=rtol, atol=rtol / 100)


def angular_momentum(path) -> Tensor:
    r""":math:`w \times \dot w` of one weight in space along a path, shape (T, 3)."""
    return torch.linalg.cross(path.q, path.v)


def drift(x: Tensor) -> Tensor:
    """The largest distance from the first row, over that row's length."""
    x = x.flatten(1)
    return ((x - x[0]).norm(dim=1) / x[0].norm()).max()


# --- derivatives taken from a path ------------------------------------------------------------------------------------

_REACH = 4  # neighbours on either side; errors are of order 8 in the spacing


def path_derivative(t: Tensor, x: Tensor) -> Tensor:
    """The rate of what a path reports, from its values alone, by central differences of nine points.

    Nothing is asked of the rule that made the path, so that a law which the rule's own equation would fulfil by
    construction can fail.

    Args:
        t: equal times, shape (T,).
        x: positions or velocities, shape (T, n).

    Returns:
        Shape (T - 8, n), at ``t[4:-4]``.
    """
    offsets = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    powers = offsets ** torch.arange(2 * _REACH + 1)[:, None]
    slope_of_each_power = torch.zeros(2 * _REACH + 1, dtype=torch.float64)
    slope_of_each_power[1] = 1.0
    weights = torch.linalg.solve(powers, slope_of_each_power)
    return x.unfold(0, 2 * _REACH + 1, 1) @ weights / (t[1] - t[0])


def inner(x: Tensor) -> Tensor:
    """The rows at which :func:`path_derivative` has its values."""
    return x[_REACH:-_REACH]


# --- steps ----------------------------------------------------------------------------------------------------------


def march(
    f: Loss, q0: Tensor, v0: Tensor, coefficients, dt: float, *, ahead: bool = False, until: float = 4.0
) -> Tensor:
    r"""Steps :math:`q_{n+1} = y_n - p\,\nabla f(\cdot)`, :math:`y_n = q_n + c\,(q_n - q_{n-1})`, from time 1 on.

    Args:
        f: the loss.
        q0, v0: point and velocity at time 1.
        coefficients: ``(n, dt) -> (c, p)``.
        dt: the time step.
        ahead: whether the gradient is taken at :math:`y_n` or at :math:`q_n`.
        until: the last time.

    Returns:
        The points, shape (steps, n).
    """
    slope = grad(f)
    first, last = round(1 / dt) + 1, round(until / dt)
    points = [q0, q0 + dt * v0]
    for n in range(first, last):
        c, push = coefficients(n, dt)
        here = points[-1]
        y = here + c * (here - points[-2])
        points.append(y - push * slope(y if ahead else here))
    return torch.stack(points)


# --- copies of a data set -------------------------------------------------------------------------------------------


def polyhedral(name: str) -> Tensor:
    """The rotations of a ``"tetrahedron"`` (12), a ``"cube"`` (24) or an ``"icosahedron"`` (60), shape (n, 3, 3)."""
    return torch.from_numpy(Rotation.create_group(POLYHEDRA[name]).as_matrix())


def random_rotations(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform rotations, shape (*shape, 3, 3)."""
    quaternions = torch.randn(math.prod(shape), 4, generator=generator, dtype=torch.float64)
    return torch.from_numpy(Rotation.from_quat(quaternions).as_matrix()).view(*shape, 3, 3)


def plane_turns(angles: Tensor) -> Tensor:
    """Rotations of the plane, shape (n, 2, 2)."""
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))


def equal_turns(n: int) -> Tensor:
    """The n turns of the plane by multiples of one angle."""
    return plane_turns(2 * math.pi * torch.arange(n, dtype=torch.float64) / n)


def invariant_waves(rotations: Tensor, degree: int) -> Tensor:
    r"""How many spherical harmonics of a degree a group of rotations leaves as they are.

    The mean over the group of the character :math:`\sin((l + \frac12)\theta) / \sin\frac\theta2`. An orbit averages
    every polynomial up to degree D exactly if there is none in degrees 1 to D (a spherical D-design, after Delsarte,
    Goethals and Seidel).
    """
    traces = rotations.diagonal(dim1=1, dim2=2).sum(1)
    angles = ((traces - 1) / 2).clamp(-1, 1).arccos()
    waves = torch.arange(1, degree + 1, dtype=torch.float64)
    return (1 + 2 * (waves * angles[:, None]).cos().sum(1)).mean()


def with_copies(f: nl.FlatLoss, inputs: Tensor, targets: Tensor, rotations: Tensor) -> nl.FlatLoss:
    """The same loss on turned copies of a data set.

    Args:
        f: a loss.
        inputs: (N, d).
        targets: (N,).
        rotations: (n, d, d), each for all samples, or (n, N, d, d), each sample by its own.
    """
    rotations = rotations if rotations.ndim == 4 else rotations[:, None]
    turned = (rotations @ inputs[:, :, None])[..., 0].flatten(0, 1)
    return f.on(turned, targets.repeat(len(rotations)))


def torque(f: nl.FlatLoss) -> Tensor:
    r"""Norm of :math:`[\nabla f, q]` of the first layer at the start."""
    return nl.data_rotation_law(f).form(grad(f)(f.q0), f.q0).norm()


# --- stochastic descent on round data ---------------------------------------------------------------------------------


def areas_swept(
    lr: float,
    batch: int,
    *,
    start: Tensor,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    orbit: Tensor | None = None,
    fresh: bool = True,
    runs: int = 128,
    time: float = 4.0,
) -> Tensor:
    r"""The area that a first layer sweeps over in stochastic descent, :math:`|\sum_n \ell_n|`, of every run.

    Networks with one hidden layer learn the length of Gaussian inputs in space, each run on batches of its own.

    Args:
        lr: the step.
        batch: samples in a batch.
        start: first-layer weights, (neurons, 3), the same in all runs; outgoing weights start at 0.7.
        activation: of the hidden layer.
        orbit: rotations, (n, 3, 3); a batch then holds whole orbits, every sample with its n turned copies.
        fresh: a new batch at every step; False keeps the first.
        runs: how many.
        time: steps times lr.
    """
    orbit = torch.eye(3, dtype=torch.float64)[None] if orbit is None else orbit
    samples = batch // len(orbit)
    w = start.repeat(runs, 1, 1)
    a = torch.full((runs, len(start), 1), 0.7, dtype=torch.float64)
    area = torch.zeros(runs, 3, 3, dtype=torch.float64)

    def loss(w: Tensor, a: Tensor, x: Tensor) -> Tensor:
        outputs = activation(x @ w.mT) @ a
        return 0.5 * (outputs - x.norm(dim=2, keepdim=True)).square().sum() / batch

    for n in range(round(time / lr)):
        seed = torch.Generator().manual_seed(1000 * batch + n * fresh)
        drawn = torch.randn(runs, samples, 3, generator=seed, dtype=torch.float64)
        x = torch.einsum("nij,rbj->rnbi", orbit, drawn).flatten(1, 2)
        slope_w, slope_a = grad(loss, argnums=(0, 1))(w, a, x)
        area += lr * (w.mT @ slope_w - slope_w.mT @ w)
        w, a = w - lr * slope_w, a - lr * slope_a
    return area.square().sum((1, 2)).sqrt()


def root_mean_square(x: Tensor) -> Tensor:
    """Over the last axis."""
    return x.square().mean(-1).sqrt()


def slope_with_error(sizes: Sequence[float], draws: Tensor, blocks: int = 8) -> tuple[Tensor, Tensor]:
    """The exponent of the root mean square against the size, and its standard error, from blocks of the draws.

    Args:
        sizes: (S,).
        draws: (S, draws), with a multiple of ``blocks`` draws.
        blocks: parts whose exponents are compared.
    """
    parts = draws.view(len(sizes), blocks, -1)
    slopes = [nl.convergence_order(sizes, root_mean_square(parts[:, block]).tolist()) for block in range(blocks)]
    error = torch.tensor(slopes, dtype=torch.float64).std() / math.sqrt(blocks)
    return torch.tensor(nl.convergence_order(sizes, root_mean_square(draws).tolist())), error


# --- the two lemmas ---------------------------------------------------------------------------------------------------


def blind_to(tests: Tensor) -> Tensor:
    """A basis of the matrices X with tr(A X) = 0 for every A in ``tests``, shape (m, n, n).

    Args:
        tests: matrices, (k, n, n).
    """
    n = tests.shape[-1]
    rows = tests.mT.reshape(len(tests), n * n)  # tr(A X) is the sum of the products of A^T and X
    sizes, directions = torch.linalg.svd(rows)[1:]
    rank = int((sizes > 1e-12 * sizes.max()).sum())
    return directions[rank:].view(-1, n, n)


def largest(blind: Tensor, part: Callable[[Tensor], Tensor]) -> float:
    """The largest entry of a part of these matrices, 0 if there are none."""
    return float(part(blind).abs().max()) if len(blind) else 0.0


def law_along(law, path) -> Tensor:
    r"""The bracket :math:`[\dot q, q]` of the first layer at every time of a path, (T, d, d)."""
    return vmap(law.form)(path.v, path.q)
