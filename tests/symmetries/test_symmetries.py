"""Actions, their generators and what they do to losses and kinetic energies; formulas by hand live here only."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import grad, jacfwd, jvp, vmap

from nlcompanion._matrix_exp import matrix_exp
from nlcompanion.dynamics import (
    bregman,
    bregman_momentum,
    damped,
    general,
    gradient_flow,
    kinetic_energy,
    natural_gradient,
    nesterov,
    newtonian,
    sgd,
)
from nlcompanion.networks import RePU, flat_loss, mlp
from nlcompanion.symmetries import (
    LieAlgebra,
    Symmetry,
    generator,
    gl,
    input_rotation,
    invariance_defect,
    kinetic_symmetry_breaking,
    linear_action,
    linear_pair,
    rescale,
    rotation,
    scale,
    so,
    translation,
)

number = st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 4))
nonzero = number.filter(lambda x: abs(x) > 0.05)


def vectors(n, entries=nonzero):
    return st.lists(entries, min_size=n, max_size=n).map(lambda x: torch.tensor(x, dtype=torch.float64))


def matrices(n):
    return vectors(n * n).map(lambda x: x.view(n, n))


def skew(n):
    return matrices(n).map(lambda A: A - A.T).filter(lambda A: A.abs().max() > 0.1)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


Q = vector(0.8, 1.3, -0.6, 0.5, 1.1, -0.9, 0.7)
SHEAR = torch.tensor([[0.3, 1.0], [-0.4, 0.2]], dtype=torch.float64)
SPIN = torch.tensor([[0.0, 2.0], [-2.0, 0.0]], dtype=torch.float64)


def wide(A, n=7):
    big = torch.zeros(n, n, dtype=torch.float64)
    big[: len(A), : len(A)] = A
    return big


# every kind of action on seven parameters, with its generator by hand
ACTIONS = {
    "translation": (translation(Q.flip(0)), lambda q: Q.flip(0)),
    "rotation": (rotation(wide(SPIN)), lambda q: wide(SPIN) @ q),
    "plane": (rotation(plane=(2, 0)), lambda q: vector(q[2], 0, -q[0], 0, 0, 0, 0)),
    "scale": (scale(), lambda q: q),
    "scale a part": (scale([slice(1, 3), 5]), lambda q: q * vector(0, 1, 1, 0, 0, 1, 0)),
    "rescale": (rescale(slice(0, 3), [4, 5], p=3), lambda q: q * vector(1, 1, 1, 0, -3, -3, 0)),
    "rescale, extra": (
        rescale([0], [1], extra=[(slice(2, 4), -0.5)]),
        lambda q: q * vector(1, -1, -0.5, -0.5, 0, 0, 0),
    ),
    "linear": (linear_action(wide(SHEAR)), lambda q: wide(SHEAR) @ q),
    "linear pair": (
        linear_pair(slice(1, 5), slice(5, 7), SHEAR),
        lambda q: torch.cat([q[:1] * 0, (SHEAR @ q[1:5].view(2, 2)).flatten(), (-q[5:7].view(1, 2) @ SHEAR).flatten()]),
    ),
    "input rotation": (
        input_rotation(slice(2, 6), SPIN),
        lambda q: torch.cat([q[:2] * 0, (q[2:6].view(2, 2) @ SPIN).flatten(), q[6:] * 0]),
    ),
    "by hand": (Symmetry(lambda q, s: (1 + s) * q, "TK's scale"), lambda q: q),
}
GROUPS = [name for name in ACTIONS if name != "by hand"]


# --- actions and generators ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIONS)
def test_generator_is_the_derivative_of_the_action(name):
    symmetry, by_hand = ACTIONS[name]
    xi = generator(symmetry)(Q)
    assert torch.allclose(xi, by_hand(Q), rtol=1e-14, atol=1e-14)
    h = 1e-5
    differenced = (symmetry(Q, h) - symmetry(Q, -h)) / (2 * h)
    assert (xi - differenced).abs().max() < 1e-8
    assert (xi - 1.01 * differenced).abs().max() > 1e-4


@pytest.mark.parametrize("name", GROUPS)
@given(s=number, r=number)
@settings(max_examples=8, deadline=None)
def test_actions_are_one_parameter_groups(name, s, r):
    symmetry, _ = ACTIONS[name]
    twice, once = symmetry(symmetry(Q, s), r), symmetry(Q, s + r)
    assert torch.allclose(twice, once, rtol=1e-10, atol=1e-10)
    assert torch.equal(symmetry(Q, 0.0), Q)


def test_scale_as_tk_write_it_is_no_group_but_has_the_same_generator():
    theirs = ACTIONS["by hand"][0]
    assert not torch.allclose(theirs(theirs(Q, 0.5), 0.5), theirs(Q, 1.0))
    assert torch.equal(generator(theirs)(Q), generator(scale())(Q))


@pytest.mark.parametrize("name", GROUPS)
def test_orbits_follow_the_generator(name):
    """GU Eq. 54: dQ/ds = xi(Q), at finite s as well."""
    symmetry, _ = ACTIONS[name]
    s = torch.tensor(0.7, dtype=torch.float64)
    moved, velocity = jvp(lambda s: symmetry(Q, s), (s,), (torch.ones_like(s),))
    assert torch.allclose(velocity, generator(symmetry)(moved), rtol=1e-12, atol=1e-13)


@given(skew(4), vectors(4), number)
@settings(max_examples=20, deadline=None)
def test_rotations_keep_lengths_and_other_matrices_do_not(A, q, s):
    assert rotation(A)(q, s).norm().item() == pytest.approx(q.norm().item(), rel=1e-11)
    assert abs(generator(rotation(A))(q) @ q) < 1e-12 * A.abs().max() * (q @ q)
    symmetric = A @ A  # not zero for a skew A, and negative: it shrinks
    assert (generator(linear_action(symmetric))(q) @ q).item() == pytest.approx(-((A @ q) @ (A @ q)).item(), rel=1e-9)


def test_exponentials_are_exact_at_every_norm():
    """A single matrix of norm 0.0004 to 0.05 is where PyTorch's own is off, by 3e-10 at most."""
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    for s in (1e-9, 1e-4, 1e-3, 0.02, 0.0499, 0.1, 1.0, 7.0):
        exact = torch.tensor([[math.cos(s), -math.sin(s)], [math.sin(s), math.cos(s)]], dtype=torch.float64)
        assert (matrix_exp(s * turn) - exact).abs().max() < 1e-14
        slope = jacfwd(lambda t: matrix_exp(t * turn))(torch.tensor(s, dtype=torch.float64))
        assert (slope - turn @ exact).abs().max() < 1e-14


@given(st.permutations(range(5)), number)
@settings(max_examples=15, deadline=None)
def test_plane_rotation_is_the_exponential_of_its_generator(axes, s):
    i, j = axes[:2]
    q, A = Q[:5], torch.zeros(5, 5, dtype=torch.float64)
    A[j, i], A[i, j] = 1.0, -1.0  # turns axis i towards axis j
    assert torch.allclose(rotation(plane=(i, j))(q, s), rotation(A)(q, s), rtol=1e-13, atol=1e-13)
    assert torch.allclose(jacfwd(generator(rotation(plane=(i, j), dimension=5)))(q), A, atol=1e-14)


@given(matrices(2), vectors(6), vectors(4), st.floats(-1, 1))
@settings(max_examples=20, deadline=None)
def test_linear_pairs_leave_the_product_alone(A, first, second, s):
    symmetry = linear_pair(slice(0, 6), slice(6, 10), A)
    moved = symmetry(torch.cat([first, second]), s)
    before, after = second.view(2, 2) @ first.view(2, 3), moved[6:].view(2, 2) @ moved[:6].view(2, 3)
    condition = torch.linalg.cond(torch.linalg.matrix_exp(s * A))
    assert (after - before).norm() < 1e-14 * condition * first.norm() * second.norm()


@pytest.mark.parametrize("theta", [0.7, -2.0])
def test_exponential_as_a_limit_of_small_steps(theta):
    """GU Eq. 57: (1 + theta A / n)^n tends to the action, with an error of order 1 in 1/n."""
    for A, q in ((SPIN / 2, Q[:2]), (SHEAR, Q[:2]), (torch.eye(1).double(), Q[:1])):
        exact = linear_action(A)(q, theta)
        step = lambda n: torch.linalg.matrix_power(torch.eye(len(A)).double() + theta / n * A, n) @ q  # noqa: B023, E731
        errors = [(step(n) - exact).norm().item() for n in (500, 4000)]
        assert math.log(errors[0] / errors[1]) / math.log(8) == pytest.approx(1, abs=0.1)


def test_single_precision_is_as_good_as_it_can_be():
    """torch's own float32 matrix exponential is off by 2e-5 here."""
    q = vector(1.0, 0.0).float()
    exact = vector(math.cos(0.5), math.sin(0.5))
    turned = rotation([[0.0, -1.0], [1.0, 0.0]])(q, 0.5)
    assert turned.dtype == torch.float32
    assert (turned - exact).abs().max() < 1e-7


# --- symmetries of losses -----------------------------------------------------------------------------------------


@given(skew(3), vectors(3), vectors(3), number)
@settings(max_examples=20, deadline=None)
def test_defect_of_drawn_potentials(A, q, c, s):
    """Any function of |q| is invariant; a tilted one is not, by the amount of the tilt."""
    round_well = lambda q: (c[0] * (q @ q) + torch.sin(c[1] * (q @ q))) + 20  # noqa: E731
    tilted = lambda q: round_well(q) + 3 * (A @ c) @ q  # noqa: E731
    slope = grad(tilted)(q)
    assume(min(grad(round_well)(q).norm(), slope.norm()) > 1e-3)
    assume((A @ q).norm() > 1e-2)
    assume(abs(round_well(q)) > 1)  # the defect is over the value, whose terms of twenty must not cancel
    assert invariance_defect(round_well, rotation(A), q) < 1e-12
    assert invariance_defect(round_well, rotation(A), q, s=[s, 1.0]).max() < 1e-12
    expected = abs(slope @ (A @ q)) / slope.norm() / (A @ q).norm()
    assert invariance_defect(tilted, rotation(A), q).item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


def network(activation, widths=(4, 5, 3), bias=False, seed=1):
    torch.manual_seed(3)
    x, y = torch.randn(9, widths[0]).double(), torch.randint(widths[-1], (9,))
    return flat_loss(mlp(widths, activation, bias=bias, seed=seed), x, y, nn.functional.cross_entropy)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("activation", "p"), [("relu", 1), (RePU(2), 2), (RePU(3), 3), ("swish", 1)])
def test_homogeneous_networks_have_the_rescaling_and_a_wrong_p_does_not(activation, p, bias):
    f = network(activation, bias=bias)
    into, out = f.slices["1.weight"], f.slices["3.weight"]
    rows = torch.arange(len(f.q0))
    betas = f.slices.get("2.beta")
    into_2 = [rows[into].view(5, 4)[2]] + ([rows[f.slices["1.bias"]][2]] if bias else [])
    out_2 = rows[out].view(-1, 5)[:, 2]
    extra = [(rows[betas][2], -1.0)] if betas else []
    neuron = rescale(into_2, out_2, p, extra)
    assert invariance_defect(f, neuron, f.q0) < 1e-13
    assert invariance_defect(f, neuron, f.q0, s=[-0.7, 0.3, 2.0]).max() < 1e-13
    assert invariance_defect(f, rescale(into_2, out_2, p + 1, extra), f.q0) > 1e-6
    if extra:
        assert invariance_defect(f, rescale(into_2, out_2, p), f.q0) > 1e-6  # Swish without its beta
    if bias:
        assert invariance_defect(f, rescale(into_2[:1], out_2, p, extra), f.q0) > 1e-6  # without the bias


def test_linear_networks_have_gl_d_and_others_do_not():
    A = torch.tensor([[0.3, -1.0, 0.2], [0.5, 0.1, 0.7], [-0.6, 0.4, 0.9]]).double()
    for activation, invariant in (("linear", True), ("tanh", False)):
        f = network(activation, (4, 3, 2))
        pair = linear_pair(f.slices["1.weight"], f.slices["3.weight"], A)
        assert bool(invariance_defect(f, pair, f.q0) < 1e-13) is invariant
        assert bool(invariance_defect(f, pair, f.q0, s=1.3) < 1e-12) is invariant


def test_normalised_weights_have_scale_and_softmax_has_a_translation():
    f = network("tanh", bias=True)
    first = f.slices["1.weight"]
    normalised = lambda q: f(torch.cat([q[first] / q[first].norm(), q[first.stop :]]))  # noqa: E731
    assert invariance_defect(normalised, scale(first), f.q0, s=[-1.0, 1.0]).max() < 1e-13
    assert invariance_defect(normalised, scale(first), f.q0) < 1e-13
    assert invariance_defect(f, scale(first), f.q0) > 1e-3
    shift = torch.zeros(len(f.q0)).double()
    shift[f.slices["3.bias"]] = 1.0
    assert invariance_defect(f, translation(shift), f.q0) < 1e-13
    shift[f.slices["3.bias"].start] = 2.0
    assert invariance_defect(f, translation(shift), f.q0) > 1e-3


def test_input_rotation_on_rotation_invariant_data_only():
    """The population loss of <w, x> on isotropic data depends on |w|; a finite sample is not isotropic."""
    sample = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    population = lambda w: ((w.view(2, 3) ** 2).sum(1) - 1).square().sum()  # noqa: E731
    finite = lambda w: (((sample @ w.view(2, 3).T) ** 2).mean(0) - 1).square().sum()  # noqa: E731
    turn = input_rotation(slice(0, 6), torch.tensor([[0.0, 1, 2], [-1, 0, -0.5], [-2, 0.5, 0]]))
    assert invariance_defect(population, turn, Q[:6]) < 1e-14
    assert invariance_defect(population, turn, Q[:6], s=2.0) < 1e-14
    assert invariance_defect(finite, turn, Q[:6]) > 1e-3


def test_a_finite_defect_has_the_shape_of_s():
    f = lambda q: (q**2).sum()  # noqa: E731
    assert invariance_defect(f, scale(), Q, s=0.1).shape == ()
    assert invariance_defect(f, scale(), Q, s=[[0.1, 0.2]]).shape == (1, 2)
    assert invariance_defect(f, scale(), Q, s=0.1).item() == pytest.approx(1 - math.exp(-0.2), rel=1e-13)
    assert invariance_defect(lambda q: 0 * q.sum(), scale(), Q, s=0.1).item() == 0


# --- kinetic symmetry breaking ------------------------------------------------------------------------------------

ENTROPY = lambda q: (q * q.log()).sum()  # noqa: E731
COSH = lambda q: torch.cosh(q).sum()  # noqa: E731
QUARTIC = lambda q: (q**4).sum()  # noqa: E731
POINT, VELOCITY = vector(0.8, 1.3, 0.6), vector(0.4, -0.2, 0.9)
RULES = {
    "newtonian": newtonian(),
    "nesterov": nesterov(),
    "damped": damped(0.3, 1.0),
    "sgd": sgd(0.1, 0.9, 0.01),
    "general": general(lambda t: 1 + t**2, lambda t: 2 + torch.sin(t)),
    "bregman": bregman(lambda t: math.log(3) - t.log(), lambda t: 3 * t.log(), lambda t: 3 * t.log()),
}
METRICS = {
    "entropy": natural_gradient(ENTROPY, 0.3, 1.0),
    "cosh": natural_gradient(COSH, 0.3, 1.0),
    "quartic": natural_gradient(QUARTIC, 0.3, 1.0),
    "entropy, in time": bregman(lambda t: 0.5 + t, lambda t: t, lambda t: t**2, ENTROPY),
}
THREE = {
    "translation": translation([1.0, -0.5, 2.0]),
    "rotation": rotation([[0.0, 1, -2], [-1, 0, 0.5], [2, -0.5, 0]]),
    "scale": scale(),
}


@pytest.mark.parametrize("name", RULES)
def test_who_breaks_what_with_a_euclidean_metric(name):
    rule = RULES[name]
    broken = {key: kinetic_symmetry_breaking(rule, s, 0.7, POINT, VELOCITY).item() for key, s in THREE.items()}
    T = kinetic_energy(rule)(0.7, POINT, VELOCITY).item()
    assert broken["translation"] == 0
    assert abs(broken["rotation"]) < 1e-13 * T
    assert broken["scale"] == pytest.approx(2 * T, rel=1e-13)


@pytest.mark.parametrize(("name", "p"), [("entropy", 1), ("quartic", 4), ("entropy, in time", 1)])
def test_a_homogeneous_metric_breaks_scale_by_its_degree(name, p):
    rule = METRICS[name]
    T = kinetic_energy(rule)(0.7, POINT, VELOCITY)
    broken = kinetic_symmetry_breaking(rule, scale(), 0.7, POINT, VELOCITY)
    assert broken.item() == pytest.approx(p * T.item(), rel=1e-12)
    assert broken.item() != pytest.approx((p + 1) * T.item(), rel=1e-2)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("action", THREE)
def test_curved_metrics_break_everything(name, action):
    """And by as much as differencing T along finite s says, and as TK's derivatives of T add up to."""
    rule, symmetry, t = METRICS[name], THREE[action], torch.tensor(0.7).double()
    T, broken = kinetic_energy(rule), kinetic_symmetry_breaking(rule, symmetry, t, POINT, VELOCITY)
    assert abs(broken) > 0.05 * T(t, POINT, VELOCITY)
    moved = lambda s: T(t, *jvp(lambda q: symmetry(q, s), (POINT,), (VELOCITY,)))  # noqa: E731
    h = 1e-5
    assert broken.item() == pytest.approx(((moved(h) - moved(-h)) / (2 * h)).item(), rel=1e-6)
    alpha = rule.rates(t)[0]
    delta = bregman_momentum(rule)(t, POINT, VELOCITY)
    force = math.exp(alpha) * delta - jvp(grad(rule.h), (POINT,), (VELOCITY,))[1]
    xi = generator(symmetry)
    by_hand = force @ xi(POINT) + delta @ jvp(xi, (POINT,), (VELOCITY,))[1]
    assert broken.item() == pytest.approx(by_hand.item(), rel=1e-11)


@given(matrices(3), vectors(3), st.floats(0.05, 2), st.floats(0.1, 2))
@settings(max_examples=20, deadline=None)
def test_euclidean_breaking_is_the_symmetric_part_of_any_generator(A, v, mass, t):
    broken = kinetic_symmetry_breaking(damped(mass, 1.0), linear_action(A), t, POINT, v)
    scale_of = mass * A.norm() * (v @ v)
    assert abs(broken - mass * v @ ((A + A.T) / 2 @ v)) < 1e-13 * scale_of


@pytest.mark.parametrize("name", ["damped", "nesterov"])
def test_a_trajectory_gives_what_its_points_give(name):
    torch.manual_seed(0)
    t, q, v = torch.linspace(0.5, 1, 4).double(), torch.rand(4, 3).double() + 0.5, torch.rand(4, 3).double()
    for rule in (RULES[name], METRICS["entropy, in time"]):
        whole = kinetic_symmetry_breaking(rule, THREE["scale"], t, q, v)
        single = [kinetic_symmetry_breaking(rule, THREE["scale"], *x) for x in zip(t, q, v, strict=True)]
        assert whole.shape == (4,)
        assert torch.allclose(whole, torch.stack(single), rtol=1e-14)


def test_functions_that_branch_on_values_are_evaluated_one_by_one():
    def stubborn(q):
        return ENTROPY(q) if bool(q.min() > 0) else torch.tensor(math.nan).double()

    t, q, v = torch.zeros(3).double(), torch.rand(3, 3).double() + 0.5, torch.rand(3, 3).double()
    rule, plain = natural_gradient(stubborn, 0.3, 1.0), METRICS["entropy"]
    one, other = (kinetic_symmetry_breaking(r, THREE["rotation"], t, q, v) for r in (rule, plain))
    assert torch.allclose(one, other, rtol=1e-14)


def test_actions_compose_with_torch_func():
    """Inside vmap the checks cannot look at values; they step aside."""
    points = torch.rand(5, 3).double() + 0.5
    A = torch.tensor([[0.0, 1, -2], [-1, 0, 0.5], [2, -0.5, 0]]).double()
    assert torch.allclose(vmap(generator(THREE["rotation"]))(points), points @ A.T, rtol=1e-14)
    assert torch.allclose(jacfwd(generator(THREE["rotation"]))(POINT), A, rtol=1e-14)
    slope = grad(lambda q: kinetic_symmetry_breaking(METRICS["cosh"], scale(), 0.0, q, VELOCITY))(POINT)
    assert slope.norm() > 0.01


# --- algebras -----------------------------------------------------------------------------------------------------


@given(matrices(3))
@settings(max_examples=15, deadline=None)
def test_lemma_3_traces_with_all_matrices_determine_a_matrix(X):
    algebra = gl(3)
    values = torch.stack([torch.trace(X @ A) for A in algebra.basis])
    assert torch.allclose(algebra.pack(values), X, rtol=1e-13)
    mixed = LieAlgebra(torch.einsum("ij,jkl->ikl", torch.eye(9).double() + 0.1, algebra.basis))
    values = torch.stack([torch.trace(X @ A) for A in mixed.basis])
    assert torch.allclose(mixed.pack(values), X, rtol=1e-11, atol=1e-12)  # whatever the basis


def test_rotations_have_the_signs_and_the_order_of_gu():
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.einsum("m,mij->ij", weights, so(3).basis).tolist() == [[0, 1, 2], [-1, 0, 3], [-2, -3, 0]]


@given(matrices(4))
@settings(max_examples=15, deadline=None)
def test_lemma_4_traces_with_skew_matrices_determine_the_skew_part(X):
    algebra = so(4)
    values = torch.stack([torch.trace(P @ X) for P in algebra.basis])
    assert torch.allclose(algebra.pack(values), X - X.T, rtol=1e-12, atol=1e-13)
    symmetric = X + X.T
    assert not torch.stack([torch.trace(P @ symmetric) for P in algebra.basis]).abs().max() > 1e-13
    assert torch.allclose(algebra.pack(values[None].expand(3, -1)), (X - X.T).expand(3, 4, 4))


@pytest.mark.parametrize("d", [2, 3, 5])
def test_the_algebras_are_closed_and_of_the_right_size(d):
    for algebra, size in ((so(d), d * (d - 1) // 2), (gl(d), d * d)):
        assert len(algebra) == len(list(algebra)) == size
        flat = algebra.basis.flatten(1)
        for A in algebra.basis:
            bracket = (A @ algebra.basis - algebra.basis @ A).flatten(1)
            inside = torch.linalg.lstsq(flat.T, bracket.T).solution.T @ flat
            assert torch.allclose(inside, bracket, atol=1e-13)


def test_elements_of_an_algebra_act():
    algebra = so(3)
    c = vector(1.0, 2.0, -0.5)
    A = torch.einsum("m,mij->ij", c, algebra.basis)
    assert torch.allclose(generator(algebra.element(c))(POINT), A @ POINT, rtol=1e-14)
    pair = gl(2, lambda A: linear_pair(slice(0, 4), slice(4, 6), A))[1]
    assert torch.allclose(generator(pair)(Q[:6]), vector(Q[2], Q[3], 0, 0, 0, -Q[4]))


# --- what cannot work ---------------------------------------------------------------------------------------------


def test_an_action_must_start_at_the_identity():
    forgotten = Symmetry(lambda q, s: s * q, "stretch")
    uses = (
        lambda: forgotten.check(Q),
        lambda: generator(forgotten)(Q),
        lambda: invariance_defect(lambda q: q @ q, forgotten, Q),
        lambda: kinetic_symmetry_breaking(damped(1.0, 1.0), forgotten, 0.0, Q, Q),
    )
    for use in uses:
        with pytest.raises(ValueError, match=r"stretch is not the identity at s = 0.*1 \+ s"):
            use()
    with pytest.raises(ValueError, match="not the identity"):
        generator(Symmetry(lambda q, s: q / s))(Q)


def test_shapes_are_named_with_the_fix():
    with pytest.raises(ValueError, match=r"scale acts on q of shape \(n,\), got \(2, 3\); flatten .* flat_loss"):
        scale()(torch.ones(2, 3), 0.1)
    with pytest.raises(ValueError, match=r"scale acts on q of shape \(n,\), got \(2, 3\)"):
        kinetic_symmetry_breaking(damped(1.0, 1.0), scale(), 0.0, torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"t has shape \(3,\) and q \(2, 7\)"):
        kinetic_symmetry_breaking(damped(1.0, 1.0), scale(), torch.ones(3), Q.expand(2, 7), Q.expand(2, 7))
    with pytest.raises(ValueError, match=r"v has shape \(2,\), q \(7,\)"):
        kinetic_symmetry_breaking(damped(1.0, 1.0), scale(), 0.0, Q, Q[:2])
    with pytest.raises(ValueError, match=r"\(7,\) into \(\)"):
        Symmetry(lambda q, s: (q + s).sum())(Q, 0.0)
    with pytest.raises(ValueError, match="direction is for 2 parameters, q has 7"):
        translation([1.0, 2.0])(Q, 0.1)
    with pytest.raises(ValueError, match="generator is for 2 parameters, q has 7"):
        rotation(SPIN)(Q, 0.1)


@given(matrices(3).filter(lambda A: (A + A.T).abs().max() > 1e-3))
@settings(max_examples=20, deadline=None)
def test_rotations_want_skew_generators(A):
    for make in (rotation, lambda P: input_rotation(slice(0, 6), P)):
        with pytest.raises(ValueError, match=r"skew-symmetric generator, got \|A \+ A\^T\| up to .*linear_action"):
            make(A)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: translation([0.0, 0.0]), "direction is zero"),
        (lambda: translation([[1.0]]), r"shape \(n,\)"),
        (lambda: translation([math.nan]), "NaN"),
        (lambda: rotation(torch.zeros(2, 2)), "moves nothing"),
        (lambda: rotation(), "one of the two"),
        (lambda: rotation(SPIN, plane=(0, 1)), "one of the two"),
        (lambda: rotation(plane=(1, 1)), "no plane"),
        (lambda: rotation(plane=(0, 3), dimension=3), "below dimension = 3"),
        (lambda: rotation(plane=(0, 3))(Q[:2], 0.1), "more than 3 components, got 2"),
        (lambda: linear_action([[1.0, 2.0]]), r"shape \(d, d\)"),
        (lambda: rescale([0], [1], p=math.inf), "finite degree"),
        (lambda: rescale([0, 1], [1])(Q, 0.1), "component 1 of q is named twice"),
        (lambda: scale(slice(5, 9))(Q, 0.1), "beyond the 7 components"),
        (lambda: scale([9])(Q, 0.1), "outside 0 .. 6"),
        (lambda: scale([])(Q, 0.1), "names no component"),
        (lambda: linear_pair(slice(0, 4), slice(2, 6), SHEAR), "overlap"),
        (lambda: linear_pair(slice(0, 3), slice(3, 7), SHEAR)(Q, 0.1), "no rows or columns of length 2"),
        (lambda: linear_pair(slice(0, 4), slice(4, 8), SHEAR)(Q, 0.1), "beyond the 7"),
        (lambda: linear_pair(slice(0, 4, 2), slice(4, 6), SHEAR)(Q, 0.1), "no block"),
        (lambda: so(1), "a line has no rotations"),
        (lambda: gl(0), "d must be an integer from 1"),
        (lambda: LieAlgebra(torch.stack([SPIN, 2 * SPIN])), "only 1 independent"),
        (lambda: LieAlgebra(SPIN), r"\(m, d, d\)"),
        (lambda: so(3).pack(torch.ones(2)), "3 elements"),
        (lambda: so(3).element([1.0]), "3 coefficients"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_types():
    with pytest.raises(TypeError, match="function Q"):
        Symmetry(3)
    with pytest.raises(TypeError, match="returned float"):
        Symmetry(lambda q, s: 1.0)(Q, 0.1)
    with pytest.raises(TypeError, match=r"pass q.double\(\)"):
        scale()(torch.ones(3, dtype=torch.long), 0.1)
    with pytest.raises(TypeError, match="must be real numbers"):
        scale()("q", 0.1)


@pytest.mark.parametrize(
    ("q", "v", "where"),
    [
        ([1.0, -0.2], [0.1, 0.1], r"at q at t = 0 \(component 1\)"),
        ([1.0, 0.0], [0.1, 0.1], r"at q at t = 0 \(component 1\)"),
        ([1.0, 0.5], [-4.0, 0.1], r"at q \+ exp\(-alpha\) v at t = 0 \(component 0\).*smaller v"),
    ],
)
def test_outside_the_domain_of_the_entropy(q, v, where):
    rule = METRICS["entropy"]
    with pytest.raises(ValueError, match=where):
        kinetic_symmetry_breaking(rule, scale(), 0.0, vector(*q), vector(*v))
    inside = vector(1.0, 1.0)
    rows = (torch.tensor([-1.0, 0.0]).double(), torch.stack([inside, vector(*q)]), torch.stack([inside, vector(*v)]))
    with pytest.raises(ValueError, match=where):
        kinetic_symmetry_breaking(rule, scale(), *rows)


def test_inside_the_domain_of_the_entropy_at_any_speed_below_its_mass():
    """A mass of 0.3 lets q = 1 bear a velocity of -3: the dual point is q + 0.3 v."""
    broken = kinetic_symmetry_breaking(METRICS["entropy"], scale(), 0.0, vector(1.0), vector(-3.0))
    assert math.isfinite(float(broken))


def test_other_impossible_questions():
    with pytest.raises(ValueError, match="massless"):
        kinetic_symmetry_breaking(gradient_flow(), scale(), 0.0, Q, Q)
    with pytest.raises(ValueError, match="NaN"):
        kinetic_symmetry_breaking(damped(1.0, 1.0), scale(), 0.0, Q * math.nan, Q)
    for t, q in ((0.0, Q), (torch.tensor([1.0, 0.0]), Q.expand(2, -1))):
        with pytest.raises(ValueError, match="not finite at t = 0: it is singular"):
            kinetic_symmetry_breaking(nesterov(), scale(), t, q, q)
    with pytest.raises(ValueError, match=r"not finite at t = 2.*mass is not positive"):
        kinetic_symmetry_breaking(general(lambda t: 1 - t, lambda t: 1.0), scale(), 2.0, Q, Q)
    with pytest.raises(ValueError, match="gradient of the loss vanishes"):
        invariance_defect(lambda q: (q**2).sum(), scale(), torch.zeros(2).double() + 0 * Q[:2])
    with pytest.raises(ValueError, match=r"generator of rotation in plane .* vanishes"):
        invariance_defect(lambda q: ((q - 1) ** 2).sum(), rotation(plane=(0, 1)), vector(0, 0, 1))
    with pytest.raises(ValueError, match=r"generator of frozen vanishes.*torch operations"):
        invariance_defect(lambda q: q @ q, Symmetry(lambda q, s: q * (1 + float(s)), "frozen"), Q)
    with pytest.raises(ValueError, match="not finite at q"):
        invariance_defect(lambda q: q.log().sum(), scale(), -Q.abs())
    with pytest.raises(ValueError, match="smaller s"):
        invariance_defect(lambda q: q.log().sum(), translation([-1.0]), vector(0.5), s=1.0)
