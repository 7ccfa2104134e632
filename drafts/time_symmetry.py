# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What training can spend
#
# **The claim.** A learning rule that does not look at the clock conserves an energy. Training then has a fixed budget of
# motion. The wider the network, the more weights share it, the less each of them moves, and the better a kernel computed
# before training predicts the outputs.
#
# **Afterwards you can** bound the speed of a network's weights by its initial loss; say how mean and maximum fall with the
# width, and why not alike; predict a wide network's training by diagonalising one small matrix, and name the two things
# that the prediction leaves out; and keep the books of energy for gradient descent, momentum and mini-batches, step by
# step.
#
# **Before you start** you need to know that a learning rule is a Lagrangian ([](euler_lagrange.ipynb)). We follow Section
# 7 of {cite:t}`gluch2021noether`, GU for short. Symbols are collected in [the notation](notation.md).

# %%
import torch
from torch.func import grad, vmap

import nlcompanion as nl
from nlcompanion import claim, explorers, results
from nlcompanion.plotting import COLORS, convergence, order_guide, panels, use_style

use_style()
torch.set_default_dtype(torch.float64)
_ = torch.set_num_threads(1), torch.set_flush_denormal(True)

# %% [markdown]
# ## An experiment tomorrow
#
# Sixteen images of handwritten zeros and ones, shrunk to 4 × 4 pixels. A network with one hidden layer shall answer $-1$
# to the zeros and $+1$ to the ones. In this chapter the loss is half the *sum* of squares,
#
# $$
# f(q) = \tfrac12 \sum_{i=1}^{N} (u_i - y_i)^2, \qquad
# u_i = \frac{1}{\sqrt n} \sum_{k=1}^{n} a_k\, \sigma\!\left(\frac{\langle w_k, x_i\rangle}{\sqrt d}\right),
# $$ (eq-t-network)
#
# as in GU's Eq. 52. A mean instead of the sum would rescale time. The two roots make the *tangent kernel's scaling*: all
# weights start as standard normal numbers, and neither the outputs nor the speed of learning depend on the width $n$.

# %%
images, labels = nl.digits("train").first(320).tensors()
chosen = (labels < 2).nonzero()[:16, 0]
x = torch.nn.functional.avg_pool2d(images[chosen].double(), 2).flatten(1)
x, y = 4 * x / x.norm(dim=1, keepdim=True), 2.0 * labels[chosen, None] - 1
half_sum = lambda u, y: 0.5 * (u - y).square().sum()
f = nl.flat_loss(nl.mlp((16, 64, 1), "tanh", init="ntk", seed=1), x, y, half_sum)
rules = {"ND": nl.newtonian(), "NAGF": nl.nesterov()}

# %% [markdown]
# Train it as a physicist would, without friction, $\ddot q = -\nabla f$. This is GU's *Newtonian dynamics*, ND for short.
# Its Lagrangian $L = \frac12|\dot q|^2 - f(q)$ contains no time. An experiment done tomorrow gives what it gave today: the
# whole motion, started an hour later, is again a motion. Nesterov's flow NAGF is different. Its friction $3/t$ fades with the
# age of the run, so an experiment started late sees less of it.
#
# To a symmetry in time belongs a conserved quantity, as to one in space. Ask how $L$ changes along a motion. If time
# does not appear in it, only the motion changes it, and with the Euler-Lagrange equation
# $\frac{d}{dt}L = \frac{d}{dt}\langle\dot q, \partial_{\dot q}L\rangle$. So
#
# $$
# E = \langle\dot q, \partial_{\dot q} L\rangle - L = \tfrac12|\dot q|^2 + f(q)
# $$ (eq-t-energy)
#
# stays as it is. (GU's Hamiltonian in Lemma 2 is $-E$.) Below is the formula, the package's version for any Lagrangian, and
# two runs of each rule that start from rest at different hours. NAGF conserves nothing; $E$ falls by the work of its
# friction, $\int \frac3t|\dot q|^2\,dt$, which we integrate beside the state.

# %%
E = lambda q, v: 0.5 * v @ v + f(q)
general = nl.energy(nl.lagrangian(nl.newtonian(), f))
assert torch.allclose(E(f.q0, -f.q0), general(0.0, f.q0, -f.q0), rtol=1e-14)


def trip(rule, t0):
    span = {"t_span": (t0, t0 + 4), "t_eval": torch.linspace(t0, t0 + 4, 81)}
    friction = lambda t, q, v: rule.equation(t)[0] * v @ v
    return nl.integrate(rule, f, f.q0, 0 * f.q0, rtol=1e-12, beside=friction, **span)


runs = {(key, t0): trip(rules[key], t0) for key in rules for t0 in (0.2, 2.0)}

# %% mystnb={"figure": {"caption": "Left and middle: the loss of two runs, against the time since the start; one starts at $t = 0.2$ (wide line), the other at $t = 2$ (dashed). Under ND they are one and the same, under NAGF they are not. Right: what happens to the energy. Under ND the loss (green) is turned into kinetic energy and back, and the sum (orange) stays. NAGF's sum falls by the work of friction (blue).", "name": "fig-time-hours"}, "image": {"alt": "Left: two identical oscillating loss curves. Middle: two different decaying loss curves. Right: a flat line for the energy of Newtonian dynamics over an oscillating loss, and a falling line for Nesterov's flow with the prediction on it."}} tags=["hide-input"]
figure, (left, middle, right) = panels(3, height=2.8, titles=("ND", "NAGF", "energy"))
for axis, name in ((left, "ND"), (middle, "NAGF")):
    for t0, color, width, style in ((0.2, "light", 6, "-"), (2.0, "neutral", 1.6, (0, (3, 1.5)))):
        run = runs[name, t0]
        losses = [f(q) for q in run.q]
        axis.plot(run.t - t0, losses, color=COLORS[color], linewidth=width, linestyle=style, label=f"from $t$ = {t0:g}")
    axis.set(xlabel="time since the start", ylabel="loss" if name == "ND" else "", ylim=(-0.5, 24))
    axis.legend(loc="upper right")
energies = {key: torch.stack([E(q, v) for q, v in zip(run.q, run.v, strict=True)]) for key, run in runs.items()}
run, late = runs["ND", 0.2], runs["NAGF", 0.2]
right.plot(run.t - 0.2, [f(q) for q in run.q], color=COLORS["second"], linewidth=1.2, label="ND, loss")
right.plot(run.t - 0.2, energies["ND", 0.2], color=COLORS["measurement"], label="ND, sum")
right.plot(late.t - 0.2, energies["NAGF", 0.2], color=COLORS["measurement"], linewidth=4, alpha=0.5, label="NAGF, sum")
right.plot(late.t - 0.2, energies["NAGF", 0.2][0] - late.beside, color=COLORS["prediction"], label="minus friction")
right.set(xlabel="time since the start", ylim=(-0.5, 24))
_ = right.legend(loc="upper right", fontsize=7.5, ncols=2)

# %% [markdown]
# ## A budget, shared by all weights
#
# Start at rest. All energy is loss then, $E = f(q_0)$, and since the loss is never negative, at no time can more than
# that be in motion: $|\dot q|^2 \le 2 f(q_0)$. The root of a mean square is at least the mean, so for $m$ weights
# (GU Eq. 49)
#
# $$
# \frac1m \sum_{i=1}^m |\dot q_i| \;\le\; \sqrt{\frac{2 f(q_0)}{m}} .
# $$ (eq-t-mean)
#
# No word about depth, activation or data. More weights, the same budget, less speed for each: this is the
# first half of what makes wide networks simple. The second half would be the same statement for the *fastest* weight. GU
# write it down as Eq. 50, say that their argument does not give it, integrate it over time to bound how far any weight
# moves (Eq. 51), and leave open whether a symmetry could prove it. Let us measure.
#
# One network is no evidence. We train 16 of each width at once. `ensemble` stacks their weights, so that a layer is one
# batched product; the gradient of the summed loss is each member's own gradient. ReLU has kinks, at which an adaptive solver
# stalls, so we take the plain steps of GU Eq. 21, known elsewhere as leapfrog.


# %%
def speeds(width):
    team = nl.ensemble((16, width, 1), "relu", init="ntk", seeds=16)
    loss = nl.flat_loss(team, x, y, half_sum)
    run = nl.descend(nl.newtonian(lr=0.05**2), loss, loss.q0, steps=40)
    budget = (loss.outputs(loss.q0) - y).square().sum((1, 2)).sqrt()  # the root of 2 f(q0)
    size = team.split(run.v).abs()
    return torch.stack([size.mean(2).amax(0), size.amax(2).amax(0)]) / budget


fastest = {width: speeds(width) for width in (64, 128, 256, 512, 1024)}

# %% mystnb={"figure": {"caption": "The largest mean and maximum of $|\\dot q_i|$ (left) and of the displacement (middle) during a time 2 of Newtonian training, in units of $\\sqrt{2f(q_0)}$; geometric means over 64 seeds with standard errors (lines, stored in `book/results`) and over the 16 computed above (circles). Orange: the maximum. Purple: the maximum when initial weights are uniform, not Gaussian. Green: the mean. The legend has the exponents fitted from width 256 on. Blue: the bound {eq}`eq-t-mean`. Dashed: slope $-1/2$. Right: the speeds with two hidden layers, against the number $m$ of weights; dashed: $m^{-1/4}$.", "name": "fig-time-width"}, "image": {"alt": "Three log-log panels. Mean speeds fall with slope minus one half below a parallel bound; the maximum lies some thirty times higher and falls a little more slowly, with bounded weights at the slope minus one half. In the right panel the mean falls steeply and the maximum with slope minus one quarter."}} tags=["hide-input"]
stored = results.read("gu_time_width")
wide, flat, deep = (stored["curves"][family] for family in ("gaussian", "bounded", "deep"))


looks = ("gaussian", "bounded", "gaussian"), ("max", "max", "mean"), ("measurement", "control", "second")


def band(axis, size, curve, name, color, label):
    level, error = (torch.tensor(curve[key]) for key in (name, f"{name}_error"))
    shade = {"color": COLORS[color], "alpha": 0.3, "linewidth": 0}
    axis.fill_between(size, level * torch.exp(-error), level * torch.exp(error), **shade)
    axis.loglog(size, curve[name], color=COLORS[color], label=label)


figure, (left, middle, right) = panels(3, height=3.2, titles=("speed", "displacement", "two hidden layers"))
for axis, what in ((left, "speed"), (middle, "moved")):
    for curve, family, name, color in zip((wide, flat, wide), *looks, strict=True):
        slope = stored["numbers"][f"{family}_{name}_{what}_exponent"]
        band(axis, wide["width"][-len(curve["width"]) :], curve, f"{name}_{what}", color, f"$n^{{{slope:.2f}}}$")
    order_guide(axis, wide["width"], wide[f"mean_{what}"][-1], -0.5, label="_")
    axis.set(xlabel="width $n$", ylim=(8e-4, 9))
for k, color in ((0, "second"), (1, "measurement")):
    level = [reach[k].log().mean().exp() for reach in fastest.values()]
    left.plot(list(fastest), level, "o", color=COLORS[color], markerfacecolor="white", markersize=4)
for axis, size, curve in ((left, wide["width"], wide), (right, deep["parameters"], deep)):
    axis.plot(size, [m**-0.5 for m in curve["parameters"]], color=COLORS["prediction"], label="bound of the mean")
for name, color in (("max", "measurement"), ("mean", "second")):
    band(right, deep["parameters"], deep, f"{name}_speed", color, "_")
order_guide(right, deep["parameters"], deep["max_speed"][-1], -0.25, label="$m^{-1/4}$")
right.set(xlabel="number of weights $m$", ylim=(8e-4, 9))
right.tick_params(which="minor", labelbottom=False)
_ = [axis.legend(fontsize=8, loc="upper right") for axis in (left, middle, right)]

# %% [markdown]
# The mean keeps to its budget, using about half of it, and falls with the root of the width, as it must. The maximum does
# not: over these widths its exponent is nearer to $-0.4$. The reason is not deep. A hidden weight is driven in proportion to
# the number $a_k$ that its neuron is multiplied with, and the largest of $n$ Gaussian numbers is about $\sqrt{2\ln n}$. So the
# maximum goes as $\sqrt{\ln n / n}$. The logarithm is slow: it costs $1/(2\ln n)$ in the exponent, 0.07 at $n = 1000$ and still
# 0.04 at a million. The control confirms it. Uniform weights of the same variance cannot be large, and the exponent of their
# fastest is closer to $-1/2$.
#
# So Eq. 50 fails by a logarithm, in a network with one hidden layer, where the number $m$ of weights is proportional to
# the width. With two hidden layers it fails by a power. Almost all of the $m \approx n^2$ weights now sit between the hidden
# layers, and their speeds are of order $1/n$. But the first and last layer still move at $1/\sqrt n$, that is $m^{-1/4}$. The
# bound on the mean holds all the same, and is generous. What no bound of this kind can do is speak of each weight.
#
# ## What the outputs do
#
# Now to the use of weights that hardly move. Differentiate an output twice along the motion:
#
# $$
# \ddot u_i = \langle\nabla u_i, \ddot q\rangle + \langle\dot q, \nabla^2 u_i\,\dot q\rangle
# = \sum_j H_{ij}\,(y_j - u_j) + \langle\dot q, \nabla^2 u_i\,\dot q\rangle,
# \qquad H_{ij} = \langle\nabla u_i, \nabla u_j\rangle .
# $$ (eq-t-outputs)
#
# The weights enter through the *neural tangent kernel* $H$ {cite}`jacot2018neural`, a matrix with one row per sample, and
# through a last term that is quadratic in the speeds. If the weights hardly move, $H$ stays what it was and the
# last term is small. Then outputs are coupled oscillators, and the prediction is high-school physics (GU Eq. 53):
#
# $$
# \ddot u = H_0\,(y - u) \quad\Longrightarrow\quad u(t) = y + V \cos\bigl(\sqrt\Lambda\,t\bigr)\,V^T (u_0 - y),
# \qquad H_0 = V \Lambda V^T .
# $$ (eq-t-prediction)
#
# GU print a minus sign before $H$, in Eqs. 52 and 53 and before it in $\nabla L$. With it the cosine would be a
# hyperbolic one, and training would run away from its targets as $e^{\sqrt{\lambda} t}$. We draw that as well.
#
# `ntk` computes the kernel of any module in blocks that fit into a given memory; `linearized_dynamics` knows the closed form
# for gradient flow ($e^{-\lambda t}$), ND, constant friction, and Nesterov's flow, where the cosine becomes a Bessel function
{cite}`su2016differential`.

# %%
J = torch.func.jacrev(f.outputs)(f.q0)[:, 0]
H = nl.ntk(f, x, output=0)
assert torch.allclose(J @ J.T, H)

t = torch.linspace(0, 2, 81)
rates, V = torch.linalg.eigh(H)
u0 = f.outputs(f.q0)[:, 0]
by_hand = y[:, 0] + torch.cos(rates.sqrt() * t[:, None]) * (V.T @ (u0 - y[:, 0])) @ V.T
assert torch.allclose(by_hand, nl.linearized_dynamics(H, u0, y[:, 0], t, nl.newtonian()))


# %% tags=["hide-input"]
def train(width, seed=0, dt=0.025):
    net = nl.flat_loss(nl.mlp((16, width, 1), "relu", init="ntk", seed=seed), x, y, half_sum)
    run = nl.descend(nl.newtonian(lr=dt**2), net, net.q0, steps=80)
    u = torch.stack([net.outputs(q)[:, 0] for q in run.q])
    H, r0 = nl.ntk(net, x, output=0), u[0] - y[:, 0]
    rates, V = torch.linalg.eigh(H)
    printed = y[:, 0] + (torch.cosh(rates.clamp(min=0).sqrt() * t[:, None]) * (V.T @ r0)) @ V.T
    foreseen = nl.linearized_dynamics(H, u[0], y[:, 0], t, nl.newtonian())
    error = [(u - guess).norm() / (foreseen - u[0]).norm() for guess in (foreseen, printed)]
    return u, foreseen, printed, error


trained = {width: train(width) for width in (16, 64, 256, 1024, 4096)}


def draw(width):
    u, foreseen, printed, error = trained[width]
    figure, axis = panels(height=3.0, titles=[f"width {width}: the kernel is {100 * error[0]:.1f}% off"])
    for i, style in ((0, "-"), (1, "--"), (4, ":")):
        axis.plot(t, printed[:, i], color=COLORS["control"], linewidth=1, linestyle=style)
        axis.plot(t, u[:, i], color=COLORS["measurement"], linewidth=5, alpha=0.6)
        axis.plot(t, foreseen[:, i], color=COLORS["prediction"], linestyle=style, linewidth=1.6)
    axis.set(xlabel="time", ylabel="outputs for three images", ylim=(-4.5, 4.5))
    return figure


explorers.explore(draw, list(trained), name="width", describe="outputs of a network of width {}".format)

# %% [markdown]
# *Orange: the outputs of one network for three images. Blue: the kernel's prediction, made before training. Purple: with
# the sign as printed.*
#
# ## Two things that are left out
#
# How good is the prediction, and what is missing from it? One thing is obvious: $H$ is not quite constant. For the last term
# of {eq}`eq-t-outputs` GU argue that ReLU has no second derivative, and drop it from Eq. 52 for any width. That is true of
# ReLU and not of a network with two layers of weights, in which $a_k\,\sigma(\langle w_k, x\rangle)$ is *bilinear*: its second
# derivative in the direction $\dot q$ is $2\,\dot a_k\,\sigma'\langle\dot w_k, x\rangle$. Call it the *bend*.
#
# And ReLU has no second derivative except at its kink, where it has all of it. When a preactivation $z_k$ passes through
# zero, the slope of its neuron jumps, and so does the rate of the output, by
#
# $$
# \dot u_i \;\to\; \dot u_i + \frac{a_k\,|\dot z_{k}|}{\sqrt n} .
# $$ (eq-t-kick)
#
# A *kick*. We integrate {eq}`eq-t-outputs` beside the state, its push $J\,\ddot q$ and its bend, and compare with the rate
# that has been reached. Three networks: a smooth one; a ReLU network on a stretch without kinks; and the same on a whole
# run, in small steps with the kicks counted.


# %%
kinked = nl.flat_loss(nl.mlp((16, 32, 1), "relu", init="ntk", seed=1), x, y, half_sum)
walk, dt = nl.descend(nl.newtonian(lr=0.005**2), kinked, kinked.q0, steps=300), 0.005
q, v, acceleration = walk.q[1:], (walk.v[1:] + walk.v[:-1]) / 2, walk.v.diff(dim=0) / dt
moves = [nl.output_motion(kinked, *state) for state in zip(q, v, acceleration, strict=True)]
rate, push, bend = (torch.stack(part)[..., 0] for part in zip(*moves, strict=True))
Z = torch.stack([x @ kinked.unflatten(point)["1.weight"].T / 4 for point in q])
crossing = (Z[1:] > 0) != (Z[:-1] > 0)
kick = torch.where(crossing, Z.diff(dim=0).abs() * q[1:, None, -32:], 0).sum(2) / (dt * 32**0.5)

# %% mystnb={"figure": {"caption": "Left: what changes the rate $\\dot u$ of one output of a ReLU network of width 32; the kicks are a staircase. The four add up: their sum lies on the measured rate. Right, against the width: how far the kernel's prediction is off, and the shares that bend and kicks have in the motion; geometric means over 64 seeds with standard errors. Dashed: slopes $-1$ and $-3/4$.", "name": "fig-time-missing"}, "image": {"alt": "Left: a staircase curve for the kicks beside smooth curves for push and bend, and their sum on the measured rate. Right: three falling curves on logarithmic axes, kicks above bend, the prediction's error in between."}} tags=["hide-input"]
figure, (left, right) = panels(2, height=3.1, titles=("one output, width 32", "against the width"))
clock, i = dt * torch.arange(1, 301), 5
terms = {"push": dt * push.cumsum(0)[:, i], "bend": dt * bend.cumsum(0)[:, i]}
terms["kicks"] = torch.cat([torch.zeros(1), kick.cumsum(0)[:, i]])
left.plot(clock, rate[:, i], color=COLORS["measurement"], linewidth=5, alpha=0.6, label="rate $\\dot u$")
left.plot(clock, sum(terms.values()), color=COLORS["prediction"], linewidth=1.4, label="sum")
for (name, term), color in zip(terms.items(), ("light", "second", "third"), strict=True):
    left.plot(clock, term, color=COLORS[color], label=name)
left.set(xlabel="time", ylabel="gained since the start")
left.legend(fontsize=8, loc="lower left")
band(right, wide["width"], wide, "prediction", "prediction", "error of the prediction")
band(right, wide["width"], wide, "kick", "third", "kicks")
band(right, wide["width"], wide, "bend", "second", "bend")
for name, slope in (("kick", -0.75), ("bend", -1)):
    order_guide(right, wide["width"], 0.8 * wide[name][-1], slope, label="_")
right.set(xlabel="width $n$", ylabel="share of the motion")
_ = right.legend(loc="lower left")

# %% [markdown]
# The kicks are the larger of the two, and of everything that is missing from the prediction they fade last. Why? A kick is of
# order $1/n$: one factor $1/\sqrt n$ from {eq}`eq-t-kick`, another one from the speed. During the run about $\sqrt n$ of $n$ neurons
# cross. Their signs are those of the $a_k$, and equal in number, so that the sum is of order $n^{1/4}\cdot n^{-1}$.
# The bend has $n$ terms of order $n^{-3/2}$, of random sign too: $n^{-1}$. So GU's conclusion stands in the wide limit, and
# the way there is through smallness, not through a vanishing derivative.
#
# (check-time-symmetry-width)=
# ### Checks: the budget and the kernel
#
# GU's Eqs. 49 to 53 and the energy. Controls: NAGF for the conservation; the fastest weight for the bound on the mean;
# for Eqs. 50 and 51, which are false as stated, the exponent of the mean; for {eq}`eq-t-outputs` the equation without bend
# or without kicks; for Eq. 53 its printed sign.

# %% tags=["hide-input"]
N, families = stored["numbers"], ("gaussian", "bounded", "deep")
spread = {key: (e - e[0]).abs().max() / e[0] for key, e in energies.items()}
claim("gu-ham", [spread["ND", t0] for t0 in (0.2, 2.0)], control=[spread["NAGF", t0] for t0 in (0.2, 2.0)])
shares = torch.stack([reach.amax(1) * (17 * width) ** 0.5 for width, reach in fastest.items()])
claim("gu-49", [shares[:, 0], [N[f"{family}_bound"] for family in families]], control=shares[:, 1])
claim("gu-50", N["gaussian_max_speed_exponent"], control=N["gaussian_mean_speed_exponent"])
claim("gu-51", N["gaussian_max_moved_exponent"], control=N["gaussian_mean_moved_exponent"])


def left_over(net, time):  # of the rate gained, without and with the bend
    beside = lambda t, q, v: torch.stack(nl.output_motion(net, q, v, -grad(net)(q))[1:])
    how = {"t_span": (0, time), "t_eval": [0, time], "rtol": 1e-10, "atol": 1e-12}
    run = nl.integrate(nl.newtonian(), net, net.q0, beside=beside, **how)
    first, last = (nl.output_motion(net, q, v, v).rate for q, v in zip(run.q, run.v, strict=True))
    return [(last - first - part).norm() / (last - first).norm() for part in (run.beside[-1, 0], run.beside[-1].sum(0))]


smooth = nl.flat_loss(nl.mlp((16, 32, 1), "swish", init="ntk", seed=1), x, y, half_sum)
calm = dt * float(crossing.any(2).any(1).nonzero()[0, 0] - 2)  # until shortly before the first kink
open_shares = torch.tensor([left_over(smooth, 1.0), left_over(kinked, calm)])
claim("gu-52", open_shares[:, 1], control=open_shares[:, 0])
whole = rate[-1] - rate[0] - dt * torch.trapezoid(push + bend, dim=0) - kick.sum(0)
print("with the kicks the whole ReLU run closes to 1e-3:", bool(whole.norm() < 1e-3 * (rate[-1] - rate[0]).norm()))
off = [trained[width][3] for width in (1024, 4096)]
claim("gu-53", [*(e[0] for e in off), *wide["prediction"][-2:]], control=[e[1] for e in off])

# %% [markdown]
# ## Friction, and no inertia at all
#
# GU's Remark 1 extends the bound to two other rules. Nesterov's flow only loses energy, so {eq}`eq-t-mean` holds with the energy
# at the start. Gradient flow has no kinetic energy. But $\dot f = -|\dot q|^2$, so its motion costs loss, and with Cauchy's and
# Schwarz's help the mean displacement after a time $T$ is bounded,
#
# $$
# \frac1m\sum_i |q_i(T) - q_i(0)| \;\le\; \sqrt{\frac{T\,\bigl(f(q_0) - f(q_T)\bigr)}{m}} .
# $$ (eq-t-flow)
#
# Its *speed* has no such bound: $|\dot q|^2 = r^T H r$ with $r = u - y$ can be $2\lambda_{\max}f$, where the kernel's largest
# eigenvalue knows no limit. In the usual scaling (weights of variance $1/n$, no roots in the network) it grows with the width.
# We measure all three, at two scalings and widths.

# %%
times, reached, hasty = torch.linspace(0, 0.5, 21), {}, {}
for init, width in (("ntk", 64), ("ntk", 256), ("lecun", 64), ("lecun", 256)):
    net = nl.flat_loss(nl.mlp((16, width, 1), "tanh", init=init), x, y, half_sum)
    run = nl.integrate(nl.gradient_flow(), net, net.q0, t_span=(0, 0.5), t_eval=times, rtol=1e-6)
    paid = times[1:] * (net(net.q0) - vmap(net)(run.q[1:])) / len(net)
    reached[init, width] = ((run.q[1:] - run.q[0]).abs().mean(1) / paid.sqrt()).max()
    hasty[init, width] = run.v[0].abs().mean() / (2 * net(net.q0) / len(net)).sqrt()

# %% [markdown]
# ## One step at a time
#
# GU's conclusions ask what becomes of conservation laws under discrete algorithms and under stochastic gradients. For
# energy there is an exact answer. Take heavy ball on any batches, $d_n = q_{n+1} - q_n = \beta\,d_{n-1} - \eta\,g_n$, and multiply the
# equation by $d_n + d_{n-1}$. The products of the two steps combine into a difference of squares and a square, and
#
# $$
# T_n - T_{n-1} = -\,\tfrac{1-\beta}{4\eta}\,|d_n + d_{n-1}|^2 - \tfrac12\langle g_n,\, q_{n+1} - q_{n-1}\rangle,
# \qquad T_n = \tfrac{1+\beta}{4\eta}\,|d_n|^2 .
# $$ (eq-t-step)
#
# In the velocity $d_n/\eta$ this says that the kinetic energy has the mass $m = \frac{\eta}{2}(1+\beta)$, and friction $\mu = 1-\beta$
# does the work $\mu\,\eta\,|\bar v|^2$ on the mean of two successive velocities. They are the mass and the friction of [the first
# chapter](euler_lagrange.ipynb), where they came out of an expansion; here they are exact. Gradient descent is $\beta = 0$ and
# Newtonian steps, with $\sqrt\eta$ for the time of a step, are $\beta = 1$. Put the loss between two steps,
# $E_n = T_n + \frac12\bigl(f(q_n) + f(q_{n+1})\bigr)$, and split $g_n = \nabla f(q_n) + \xi_n$ into slope and noise:
#
# $$
# E_n - E_{n-1} = \underbrace{-\tfrac{1-\beta}{4\eta}|d_n + d_{n-1}|^2}_{\text{friction}}
# + \underbrace{\tfrac{f(q_{n+1}) - f(q_{n-1})}{2} - \tfrac12\langle\nabla f(q_n), q_{n+1} - q_{n-1}\rangle}_{\text{finite step}}
# \underbrace{-\,\tfrac12\langle\xi_n, q_{n+1} - q_{n-1}\rangle}_{\text{noise}} .
# $$ (eq-t-balance)
#
# The finite step's part is what a parabola has left over on either side of $q_n$, right minus left. It is of third order in
# the step, up to a difference that telescopes.


# %%
def balance(rule, beta, time, batches=None):
    plan = {"steps": round(time / rule.time_step), "batches": batches}
    q = nl.descend(rule, None if batches else f, f.q0, **plan).q
    d, F, g = q.diff(dim=0), vmap(f)(q), vmap(grad(f))(q[1:-1])
    xi = torch.stack([grad(batches(n))(q[n]) for n in range(1, len(q) - 1)]) - g if batches else 0 * g
    s, T = d[1:] + d[:-1], (1 + beta) / (4 * rule.lr) * d.square().sum(1)
    friction, finite = (beta - 1) / (4 * rule.lr) * s.square().sum(1), (F[2:] - F[:-2] - (g * s).sum(1)) / 2
    return q, T + (F[1:] + F[:-1]) / 2, friction, finite, -(xi * s).sum(1) / 2


# %% [markdown]
# Three questions to it. *How exactly is friction all there is?* Descend for a time 2 and compare the loss of energy with the
# work of friction, for smaller and smaller steps. *What do Newtonian steps conserve?* No friction, so the finite step's part
# is all there is. It does not pile up. The steps follow a neighbouring Hamiltonian, the *shadow*
# $\tilde E = E - \frac16\langle d_n, g_{n+1} - g_n\rangle + \frac{\eta}{24}(|g_n|^2 + |g_{n+1}|^2)$, and keep it up to order $\eta^2$
# {cite}`hairer2003geometric`. *And mini-batches?* The noise $\xi_n$ knows nothing of the step before, but the coming step
# contains $-\eta\,\xi_n$. So on average its work does not vanish. In every step it adds
#
# $$
# \mathbb E\left[-\tfrac12\langle\xi_n, q_{n+1} - q_{n-1}\rangle\right] = \tfrac{\eta}{2}\operatorname{tr}\Sigma ,
# $$ (eq-t-heat)
#
# with $\Sigma$ the covariance of the batch gradient and for any $\beta$: *stochastic gradients heat*. Newtonian steps cannot
# get rid of it. To see it we let 64 copies of our network, all with the same start, draw their own batches of 4.

# %%
def batch(n):  # the sum over all 16, estimated from 4
    some = torch.randperm(16, generator=torch.Generator().manual_seed(n))[:4]
    return lambda q: 4 * f.on(x[some], y[some])(q)


etas, gap = [0.04, 0.02, 0.01], {}
for key, beta, batches in (("GD", 0.0, None), ("momentum 0.5", 0.5, None), ("batches", 0.0, batch)):
    for eta in (eta * (1 - beta) for eta in etas):
        _, energy, friction, *_ = balance(nl.sgd(lr=eta, momentum=beta), beta, 2, batches)
        gap.setdefault(key, []).append(float((energy[-1] - energy[0] - friction.sum()).abs()))

# %%
errors, jump = {}, []
for length in (0.2, 0.1, 0.05):
    q, energy, *_ = balance(nl.newtonian(lr=length**2), 1.0, 30)
    d, g = q.diff(dim=0), vmap(grad(f))(q)
    ripple = (d * g.diff(dim=0)).sum(1) / 6 - length**2 / 24 * (g[1:].square() + g[:-1].square()).sum(1)
    errors[length] = energy - energy[0]
    jump.append([float((e - e[0]).abs().max()) for e in (energy, energy - ripple)])

# %%
team = nl.ensemble((16, 64, 1), "tanh", init="ntk", seeds=[1] * 64)
crowd, warmth = nl.flat_loss(team, x, y, half_sum), {}
each = lambda q: 0.5 * (crowd.outputs(q) - y).square().sum((1, 2))


def draws(n):  # every copy's own 4 of 16
    lots = torch.rand(64, 16, generator=torch.Generator().manual_seed(n)).argsort(1) < 4
    return lambda q: 0.5 * (4 * lots * (crowd.outputs(q)[..., 0] - y[:, 0]).square()).sum()


def trace(q):  # of the covariance, from the squared gradients of the single samples
    W, a = crowd.unflatten(q).values()
    h = torch.tanh(x @ W.mT / 4)
    squares = ((h * a).sum(2) / 8 - y[:, 0]).square() * (h**2 + (a * (1 - h**2)) ** 2).mean(2)
    return (16 * squares.sum(1) - team.split(grad(crowd)(q)).square().sum(1)) / 5  # 4 of 16, none twice


for length in (0.2, 0.1, 0.05):
    run = nl.descend(nl.newtonian(lr=length**2), None, crowd.q0, steps=round(4 / length), batches=draws)
    level = torch.stack([each(q) for q in run.q])
    heat = team.split(run.v[:-1]).square().sum(2) / 2 + (level[1:] + level[:-1]) / 2
    foreseen = length**2 / 2 * torch.stack([trace(q).mean() for q in run.q[1:-1]]).cumsum(0)
    warmth[length] = run.t[1:-1], (heat - heat[0])[1:], foreseen

# %% mystnb={"figure": {"caption": "Left: the error of the energy in Newtonian steps over some fifteen oscillations. It does not grow, and half the step in time makes it a quarter. Middle: what the work of friction leaves unexplained of the energy lost. It is of order 2 on the full batch (dashed), and does not get smaller on mini-batches of 4. Right: energy gained by Newtonian steps on mini-batches, for steps of 0.2, 0.1 and 0.05: mean over 64 copies with its standard error (bands), and the prediction {eq}`eq-t-heat` (blue).", "name": "fig-time-steps"}, "image": {"alt": "Left: three oscillating bands that do not grow, each a quarter as high as the one before. Middle: two lines of slope two and a level one. Right: three rising bands, the higher the larger the step, with the predictions on them."}} tags=["hide-input"]
figure, (left, middle, right) = panels(3, height=3.0, titles=("Newtonian steps", "how exactly", "mini-batches heat"))
for (length, error), color in zip(errors.items(), ("control", "measurement", "prediction"), strict=True):
    clock = length * torch.arange(len(error))
    left.plot(clock, error, color=COLORS[color], linewidth=0.9, label=f"step {length:g}")
left.set(xlabel="time", ylabel="error of the energy", ylim=(-0.05, 1.0))
left.legend(loc="upper right", fontsize=8, ncols=3, columnspacing=0.8, handlelength=1)
convergence(middle, etas, gap, guides={"GD": 2}, xlabel="$\\eta / (1 - \\beta)$")
middle.set(ylabel="energy lost, minus friction's work", ylim=(1e-6, 80))
for (length, (clock, heat, foreseen)), color in zip(warmth.items(), ("control", "measurement", "second"), strict=True):
    level, error = heat.mean(1), heat.std(1) / 8
    right.fill_between(clock, level - error, level + error, color=COLORS[color], alpha=0.4, linewidth=0)
    right.plot(clock, foreseen, color=COLORS["prediction"])
    right.text(clock[-1], foreseen[-1], f" {length:g}", va="center")
_ = right.set(xlabel="time", ylabel="energy gained", xlim=(0, 4.6))

# %% [markdown]
# The middle panel answers GU's question for gradient descent: the balance of energy is kept with an error of order $\eta^2$, and
# exactly if the finite step's part is booked as well. The left panel answers it for ND: the energy is conserved up to a
# ripple of order $\eta$ that never grows. For mini-batches the answer is in {eq}`eq-t-balance`, with one number per step from
# {eq}`eq-t-heat`. In a time $T$ there are $T/\eta$ steps of descent, so noise contributes $\frac12\int\operatorname{tr}\Sigma\,dt$, *no
# matter how small they are*; friction takes it out again, as jitter of the velocity. Newtonian steps are longer in time,
# $\sqrt\eta$, and heat at the rate $\frac{\sqrt\eta}{2}\operatorname{tr}\Sigma$. Without friction there is no learning from
# mini-batches.
#
# (check-time-symmetry-steps)=
# ### Checks: friction and steps
#
# Remark 1 for both rules, with the fastest weight and the speed of gradient flow as controls. The identity
# {eq}`eq-t-step` on mini-batches at three momenta; its control takes the mass $\eta$. The orders of the two drifts; controls are
# the mini-batches and the shadow. The heat {eq}`eq-t-heat` as an exact average over a division of the sixteen images into four
# batches; its control forgets the factor $\frac12$.

# %% tags=["hide-input"]
speed = torch.stack([runs["NAGF", t0].v.abs() / (2 * energies["NAGF", t0][0] / len(f)).sqrt() for t0 in (0.2, 2.0)])
claim("gu-remark1-nagf", speed.mean(2).amax(1), control=speed.amax(2).amax(1))
claim("gu-remark1-gf", reached, control=hasty)

books, wrong = [], []
for beta, rule in ((0.0, nl.sgd(lr=0.01)), (0.9, nl.sgd(lr=0.004, momentum=0.9)), (1.0, nl.newtonian(lr=0.01))):
    q, energy, *parts = balance(rule, beta, 60 * rule.time_step, batch)
    surplus = (1 - beta) / (4 * rule.lr) * q.diff(dim=0).square().sum(1).diff()  # of a mass without 1 + beta
    books.append((energy.diff() - sum(parts)).abs().max() / energy[0])
    wrong.append((energy.diff() + surplus - sum(parts)).abs().max() / energy[0])
claim("nl-energy-step", books, control=wrong[:2])
orders = {key: nl.convergence_order(etas, rows) for key, rows in gap.items()}
claim("nl-energy-drift", [orders["GD"], orders["momentum 0.5"]], control=orders["batches"])
ripples = [nl.convergence_order([0.04, 0.01, 0.0025], rows) for rows in zip(*jump, strict=True)]
claim("nl-leapfrog-energy", ripples[0], control=ripples[1])

past, deal = q[-1] - q[-2], torch.randperm(16, generator=torch.Generator().manual_seed(0)).view(4, 4)
g = torch.stack([4 * grad(f.on(x[k], y[k]))(q[-1]) for k in deal])
xi = g - g.mean(0)
steps = [past + beta * past - 0.01 * g for beta in (0, 0.9, 1)]  # both together, for each of the batches
gain = [-(xi * s).sum(1).mean() / (0.01 * xi.square().sum(1).mean()) for s in steps]
claim("nl-energy-noise", [a - 1 for a in gain], control=[a - 2 for a in gain])

# %% [markdown]
# ## Exercises
#
# **1. An invariant without remainder.** Let the loss be quadratic, $f = \frac12 q^T A\,q$. Show that Newtonian steps conserve
# $\frac{1}{2\eta}|d_n|^2 + \frac12\,q_n^T A\,q_{n+1}$ exactly, whatever the step. When is that no longer a bound on the motion?
#
# ````{dropdown} Solution
# With $\beta = 1$ Eq. {eq}`eq-t-step` reads $T_n - T_{n-1} = -\frac12\,q_n^T A\,(q_{n+1} - q_{n-1})$. The right side is minus the
# change of $\frac12 q_n^T A\,q_{n+1}$. In a mode of curvature $\lambda$ the invariant is
# $\frac{1}{2\eta}\bigl(1 - \frac{\eta\lambda}{4}\bigr)(q_{n+1} - q_n)^2 + \frac{\lambda}{8}(q_n + q_{n+1})^2$. Beyond $\eta\lambda = 4$ the first
# term is negative, and both may grow for ever: the limit of stability.
# ````
#
# **2. Nesterov's kernel machine.** What takes the place of $\cos\sqrt\lambda\,t$ in {eq}`eq-t-prediction` for $\ddot q + \frac3t\dot q = -\nabla f$?
# At what time does each rule first reach its target in a mode?
#
# ````{dropdown} Solution
# $\ddot r + \frac3t\dot r + \lambda r = 0$ with $r(0) = 1$ is solved by $2J_1(s)/s$, $s = \sqrt\lambda\,t$. It is zero first at
# $s = 3.83$, where the cosine is at $s = 1.57$. Friction costs a factor of 2.4 in time, and in return the oscillation dies
# as $s^{-3/2}$. Gradient flow, $e^{-\lambda t}$, never arrives, and its time scale is $1/\lambda$ where theirs is
# $1/\sqrt\lambda$.
# ````
#
# **3. Nesterov's books.** His steps are $d_n = \beta_n d_{n-1} - \eta\,g_n$ with $\beta_n = \frac{n}{n+3}$ and the gradient taken ahead, at
# $y_n = q_n + \beta_n d_{n-1}$. Draw up their balance with the mass of $\beta = 1$. Where does the energy go that friction does not
# take?
#
# ````{dropdown} Solution
# With $T_n = |d_n|^2/2\eta$, multiplying by $d_n + d_{n-1}$ gives
# $T_n - T_{n-1} = -\frac{1-\beta_n}{2\eta}\langle d_{n-1}, d_n + d_{n-1}\rangle - \frac12\langle g_n, q_{n+1} - q_{n-1}\rangle$, and $1 - \beta_n = \frac{3}{n+3}$ is
# the flow's $\frac3t$. But $g_n \approx \nabla f(q_n) + \sqrt\eta\,\nabla^2 f\,\dot q$, which acts as additional friction
# $\sqrt\eta\,\langle\dot q, \nabla^2 f\,\dot q\rangle$. Nesterov's method brakes where the valley is steep. Its flow does not know that:
# the balance of the flow is kept to first order in the step $\sqrt\eta$ only.
# ````
#
# ## What to take along
#
# - A rule that does not look at the clock conserves energy. Started at rest, training can never move faster than
#   $\sqrt{2f(q_0)}$, and $m$ weights share that. It is a bound on the mean, and no bound on the fastest weight.
# - In a wide network the outputs follow $\ddot u = +H_0(y - u)$. What is missing fades with the width: bends as $1/n$, kicks at
#   ReLU's kinks as $n^{-3/4}$.
# - Heavy ball has an exact balance of energy in every step, with mass $\frac\eta2(1+\beta)$ and friction $1-\beta$. Newtonian steps
#   keep their energy up to a ripple. Mini-batches heat, by $\frac\eta2\operatorname{tr}\Sigma$ a step.
#
# GU's other open question was whether a symmetry could bound the fastest weight. With one hidden layer the neurons are alike: permuting
# them changes nothing, so on average none is faster than another. What makes one the fastest is the tail of its initial
# weights, and no symmetry knows that.
