# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What every neuron keeps
#
# **The claim.** Every hidden neuron of a ReLU network keeps a balance between what it reads and what it writes. Gradient
# flow never changes it, dynamics with mass change it by a known amount, and a step of gradient descent by an amount that
# the gradient alone tells, up to rounding.
#
# **Afterwards you can** name, before training starts, one conserved number for each hidden neuron, with biases and with
# other activations too; say what inertia, a finite step, a mini-batch and weight decay do to it; and keep exact books of
# a training run that notice a gradient wrong by a thousandth.
#
# **Before you start** you need the chain rule and a little Python. [](euler_lagrange.ipynb) tells where gradient flow comes
# from. [The notation](notation.md) puts our letters beside those of the paper that this chapter follows, Głuch and Urbanke
# {cite}`gluch2021noether`, GU for short.

# %%
import torch
from torch.nn.functional import cross_entropy

import nlcompanion as nl
from nlcompanion import claim, descend, explorers, integrate, plotting, results
from nlcompanion.plotting import COLORS, panels

plotting.use_style()
torch.set_default_dtype(torch.float64)
_ = torch.set_num_threads(1), torch.set_flush_denormal(True)

# %% [markdown]
# ## Something here does not move
#
# If you come from physics: a neural network is a point in a space of many dimensions, sliding down a landscape that data
# have shaped. Ours looks at handwritten digits. An image is a vector $x$ of 64 grey values. Three times in turn it is
# multiplied by a matrix and clipped, $\sigma(z) = \max(0, z)$, which is called ReLU. A fourth matrix makes ten scores of
# it, one for each digit (GU Eq. 19):
#
# $$
# y = W^{(4)}\,\sigma\bigl(W^{(3)}\,\sigma\bigl(W^{(2)}\,\sigma\bigl(W^{(1)} x\bigr)\bigr)\bigr) .
# $$ (eq-h-network)
#
# Between two matrices sit 40 numbers, the *neurons* of a layer. Row $i$ of $W^{(h)}$ says what neuron $i$ reads, column
# $i$ of $W^{(h+1)}$ where it writes. The position $q$ is the list of all 6,160 matrix entries, and the height $f(q)$ is
# the loss, which is small when the scores name the right digits. Training is descent: $q \leftarrow q - \eta\,\nabla f(q)$.
# We do 1,500 such steps and write down nothing but the squared lengths of two matrices.

# %%
x, y = nl.digits("train").first(300).tensors(flatten=True)
widths = (64, 40, 40, 40, 10)
f = nl.flat_loss(nl.mlp(widths, "relu", seed=0), x, y, cross_entropy)
laws = nl.homogeneous_laws(f)  # what they are comes below; here they measure lengths


def norms(t, q, v):
    return dict(zip(("reads", "writes"), laws[1].total.sides(q), strict=True))


run = descend(nl.sgd(lr=0.01), f, f.q0, steps=1500, record=norms)

# %% [markdown]
# (check-homogeneity-norms)=
# Here are $W^{(2)}$ and $W^{(3)}$, and the same for a network forty times larger that reads Japanese characters.

# %% mystnb={"figure": {"caption": "Figure 1 a of GU, made again. Left axes: the squared lengths of $W^{(2)}$ and $W^{(3)}$ during gradient descent, $\\eta = 0.01$. Right axes, with the same units per inch: their difference. Left panel: 300 scikit-learn digits, computed above. Right panel: the paper's own network (784-200-200-200-10) and 1,000 images of KMNIST {cite}`clanuwat2018deep`, the first of its test split, where the paper took the training split; stored in `book/results` with its provenance.", "name": "fig-homogeneity-norms"}, "image": {"alt": "Two panels. In each, two curves of squared norms rise together by more than ten percent while the difference of the two, on the right axis with the same units, is a flat line."}} tags=["hide-input"]
def two_axes(axis, t, reads, writes, names, p=1):
    axis.plot(t, reads, color=COLORS["second"], label=names[0])
    axis.plot(t, writes, color=COLORS["third"], label=names[1])
    low, high = min(reads.min(), writes.min()), max(reads.max(), writes.max())
    span = 1.5 * (high - low)
    axis.set(xlabel="time $\\eta n$", ylim=(high - span, high + 0.1 * span))
    twin, gap = axis.twinx(), reads - p * writes
    twin.plot(t, gap, color=COLORS["measurement"], label="difference" if p == 1 else f"first $- {p}\\cdot$ second")
    twin.set(ylim=(gap[0] - 0.12 * span, gap[0] + 0.98 * span))
    twin.grid(False)
    twin.spines["right"].set_visible(True)
    twin.tick_params(axis="y", colors=COLORS["measurement"])
    axis.legend(handles=[*axis.lines, *twin.lines], loc="upper left" if p == 1 else (0.4, 0.2))


def stored(name, rule, *keys):
    return [torch.tensor(results.read(name)["curves"][rule][key]) for key in keys]


figure, axes = panels(2, height=3.2, titles=("digits, live", "KMNIST, the paper's network"))
two_axes(axes[0], run.t, *run.record.values(), ("$|W^{(2)}|^2$", "$|W^{(3)}|^2$"))
two_axes(axes[1], *stored("gu_fig1_kmnist", "gd", "t", "reads", "writes"), ("$|W^{(2)}|^2$", "$|W^{(3)}|^2$"))
_ = axes[0].set_ylabel("squared norm")
numbers, off = results.read("gu_fig1_kmnist")["numbers"], lambda a, b: (a - b).abs().max() / a.abs().max()
gains = [side - side[0] for side in run.record.values()]
claim("gu-fig1-gf", [off(*gains), numbers["gd_drift_over_move"]], control=off(gains[0], 2 * gains[1]))

# %% [markdown]
# Both squared lengths grow, by two thirds in the left panel of {numref}`fig-homogeneity-norms`. Their difference stays, to less
# than $10^{-4}$ of what they gain. (The line above the figure is a *verdict*: a number was measured and compared with a
# tolerance that had been fixed beforehand, and so was a control, which has to fail.) Nothing in the algorithm mentions the
# difference, nothing in the data suggests it. So something ties the layers together. What is it, how tight is the tie, and
# what would loosen it?
#
# If you come from machine learning: such a number is called a *conserved charge*. It is a function $C(q)$ that changes
# from network to network but not along a training run. Energy and angular momentum are the famous ones. A charge is
# worth having because it speaks about the end of a run before the run has begun: wherever training goes, it stays on
# the surface $C(q) = C(q_0)$ that the initialisation has picked. Most dynamics have no such function. Where there is one,
# there is usually a symmetry behind it.
#
# ## The symmetry: turn a neuron up and its readers down
#
# ReLU does not care about units. Multiply its input by $\lambda > 0$ and the output is multiplied by the same factor. A
# function with $\sigma(\lambda z) = \lambda^p\,\sigma(z)$ is called *homogeneous of degree $p$* (GU Definition 2); ReLU and its
# leaky cousin have $p = 1$. So take one neuron, multiply everything it reads by $\lambda$, and divide everything it
# writes by $\lambda^p$:
#
# $$
# W^{(h)}_{i:} \to \lambda\,W^{(h)}_{i:}, \qquad W^{(h+1)}_{:i} \to \lambda^{-p}\,W^{(h+1)}_{:i} .
# $$ (eq-h-rescaling)
#
# The rest of the network cannot notice. These are other weights and the same function, the same scores, the same loss.

# %% mystnb={"figure": {"caption": "Left: the neuron's incoming weights (blue) are doubled, its outgoing ones (orange) halved, and nobody downstream can tell. Right: the smallest case, one weight $u$ in and one weight $v$ out, with loss $\\frac12(uv - 1)^2$. The symmetry moves a point along a grey level line (arrows; the thick line is the valley $uv = 1$). Gradient flow (orange, from the dots) has to cross those lines at right angles, and so it follows the hyperbolas $u^2 - v^2 = \\mathrm{const}$ (blue).", "name": "fig-homogeneity-symmetry"}, "image": {"alt": "Left: a small network in which one hidden neuron has thick incoming and thin outgoing lines. Right: the plane of two weights u and v with grey level lines u v = const, arrows along them, and orange descent paths that cross them at right angles along blue hyperbolas."}} tags=["hide-input"]
figure, (net, plane) = panels(2, height=3.3, titles=("reads × 2, writes ÷ 2", "one weight in, one out"))
columns = [[(k, j - n / 2) for j in range(n)] for k, n in enumerate((4, 3, 3))]
chosen = (1, -0.5)
for a, b in [(a, b) for k in (0, 1) for a in columns[k] for b in columns[k + 1]]:
    color, width = (COLORS["prediction"], 4) if b == chosen else ("#bbbbbb", 1.2)
    color, width = (COLORS["measurement"], 1) if a == chosen else (color, width)
    net.plot(*zip(a, b, strict=True), color=color, linewidth=width, zorder=1)
for place in [place for column in columns for place in column]:
    net.scatter(*place, s=230, color="black" if place == chosen else "white", edgecolor="black", zorder=2)
net.set_axis_off()

grid = torch.linspace(0.02, 2.2, 120)
product, charge = torch.outer(grid, grid), grid**2 - grid[:, None] ** 2
plane.contour(grid, grid, product, [0.3, 0.6, 1, 1.5, 2.1], colors="#bbbbbb", linewidths=[1, 1, 3, 1, 1])
plane.contour(grid, grid, charge, [-3, -1.5, 0, 1.5, 3], colors=COLORS["prediction"], linestyles="solid")
for c in (-3.0, -1.5, 0.0, 1.5, 3.0):
    for low in (0.15, 1.25):
        u0 = [(low**2 + max(c, 0)) ** 0.5, (low**2 + max(-c, 0)) ** 0.5]
        path = integrate(nl.gradient_flow(), lambda q: 0.5 * (q[0] * q[1] - 1) ** 2, u0, t_span=(0, 9), rtol=1e-6)
        plane.plot(*path.q.T, color=COLORS["measurement"], linestyle=(0, (2, 1.2)), linewidth=3)
        plane.scatter(*u0, color=COLORS["measurement"], s=22, zorder=3)
u = torch.tensor([0.55, 0.8, 1.3, 1.75])
plane.quiver(u, 1 / u, u, -1 / u, color=COLORS["neutral"], width=0.007, zorder=3)
_ = plane.set(xlim=(0, 2.2), ylim=(0, 2.2), xlabel="$u$, reads", ylabel="$v$, writes", aspect="equal")

# %% [markdown]
# Write $\lambda = e^s$ and let $s$ grow from 0. The point $q$ sets off along the symmetry with velocity $A q$, where $A$ is a
# diagonal matrix: $+1$ on what the neuron reads, $-p$ on what it writes, 0 everywhere else. This $A q$ is the
# *generator* (GU Eq. 28, with $p = 1$). The loss does not change on the way, so its derivative along the generator vanishes
# (GU Eq. 16):
#
# $$
# f(e^{sA} q) = f(q) \quad\text{for all } s \qquad\Longrightarrow\qquad \langle \nabla f(q),\, A q\rangle = 0 .
# $$ (eq-h-orthogonal)
#
# That holds at every point, for every neuron and for every *batch*, the handful of images used for one step. The gradient
# never has a component along a symmetry.
#
# Why should that conserve anything? Because $A$ is symmetric. The direction $Aq$ is then itself a gradient, half that of
#
# $$
# C(q) = q^T A\, q = \bigl|W^{(h)}_{i:}\bigr|^2 - p\,\bigl|W^{(h+1)}_{:i}\bigr|^2 ,
# $$ (eq-h-charge)
#
# the neuron's *balance*: what it reads minus $p$ times what it writes. In code it takes one line. The package's version
# gives all neurons of a hidden layer at once, for each hidden layer; from here on we use that one. Then we turn the 40
# neurons of the second layer up and down by factors between $e^{-1}$ and $e$, which takes the network far away, and look
# at the loss.


# %%
def balance(q, h):
    W = list(f.unflatten(q).values())
    return W[h - 1].square().sum(1) - W[h].square().sum(0)


assert all(law.charge(f.q0).allclose(balance(f.q0, h)) for h, law in enumerate(laws, 1))
far = laws[1].act(f.q0, torch.linspace(-1, 1, 40))
print("moved by half its length:", bool((far - f.q0).norm() > 0.5 * f.q0.norm()))
print("the same loss to 13 digits:", bool(abs(f(far) - f(f.q0)) < 1e-13))

# %% [markdown]
# ## Gradient flow: neurons on rails
#
# Let the step size go to zero. Training becomes gradient flow, $\dot q = -\nabla f$ (GU Eq. 27), and the law takes one line:
#
# $$
# \dot C = 2\,\langle \dot q, A q\rangle = -2\,\langle\nabla f, A q\rangle = 0 .
# $$ (eq-h-conserved)
#
# Neuron by neuron $C_i$ is constant, and summed over a layer $\lVert W^{(h)}\rVert_F^2 - \lVert W^{(h+1)}\rVert_F^2$ is, GU Eq. 31.
# Du, Hu and Lee {cite}`du2018algorithmic` found it first.
#
# (check-homogeneity-flow)=
# We hand the equation to an adaptive solver. The same network with $\tanh$ for ReLU runs along as a control: $\tanh$ is not
# homogeneous, so nothing should hold it.

# %% mystnb={"figure": {"caption": "Each orange path is a neuron of the third layer during gradient flow, from the dot on: across, the length of what it reads; upwards, the length of what it writes. Every third of the 40 is shown. Blue: the hyperbolas $C_i = \\mathrm{const}$ through the starting points. ReLU neurons run on rails. Those of the tanh network start from the same weights and leave them.", "name": "fig-homogeneity-rails"}, "image": {"alt": "Two panels with fourteen short paths each in the plane of reading and writing length, over a family of hyperbolas. With ReLU each path follows its hyperbola; with tanh the paths cross them."}} tags=["hide-input"]
f_tanh = nl.flat_loss(nl.mlp(widths, "tanh", seed=0), x, y, cross_entropy)
wrong = nl.homogeneous(f, 2, p=2, verify=False)  # a control: the package would refuse it
solver = {"t_span": (0, 8), "t_eval": torch.linspace(0, 8, 161), "method": "RK45", "rtol": 1e-6, "atol": 1e-8}
flow, flow_tanh = (integrate(nl.gradient_flow(), loss, loss.q0, **solver) for loss in (f, f_tanh))

figure, axes = panels(2, height=3.4, titles=("ReLU", "control: tanh"), sharex=True, sharey=True)
w = torch.linspace(0, 1, 100)
for axis, path in zip(axes, (flow, flow_tanh), strict=True):  # both networks have the same parameters
    reads, writes = (torch.stack(side)[:, ::3].sqrt() for side in zip(*map(laws[2].sides, path.q), strict=True))
    for c, start in zip(laws[2].charge(path.q[0])[::3], writes[0], strict=True):
        rail = w[w > start - 0.04]
        axis.plot((rail**2 + c).clamp(min=0).sqrt(), rail, color=COLORS["prediction"], linewidth=0.9)
    axis.plot(reads, writes, color=COLORS["measurement"], linewidth=2.4, alpha=0.8)
    axis.scatter(reads[0], writes[0], color=COLORS["measurement"], s=18, zorder=3)
    axis.set(xlabel="reads, $|W^{(3)}_{i:}|$", xlim=(0.44, 0.96), ylim=(0.18, 0.74))
_ = axes[0].set_ylabel("writes, $|W^{(4)}_{:i}|$")


def drift(law, path):
    C = torch.stack([law.charge(q) for q in path.q])
    return ((C - C[0]).abs().amax(0) / sum(law.sides(path.q[-1]))).max()


def imbalance(path):
    return max(law.total.cosine(v, q).abs() for law in laws for q, v in zip(path.q, path.v, strict=True))


tilts = lambda law: [law.cosine(torch.func.grad(f.on(x[k::9], y[k::9]))(f.q0), f.q0).abs().max() for k in range(9)]
claim("gu-28", [tilts(law) for law in laws], control=tilts(wrong))
claim("gu-29", [drift(law, flow) for law in laws], control=[drift(law, flow_tanh) for law in laws])
claim("gu-30", imbalance(flow), control=imbalance(flow_tanh))
claim("gu-31", [drift(law.total, flow) for law in laws], control=drift(wrong.total, flow))

# %% [markdown]
# What a rail means: a neuron with $C_i > 0$ can never read with a length below $\sqrt{C_i}$, however long it is trained; its
# inputs cannot be shrunk to nothing. A neuron with $C_i = 0$ reads and writes equally strongly for ever. And since
# neighbouring layers gain equally, all layers do. No layer can outrun another, which is more than one would have guessed
# of a loss so tangled.
#
# A word on solvers. ReLU has a kink at 0, and so has the landscape wherever some neuron receives exactly 0 from some
# image. Gradient flow lingers at such places and crosses them many times, and an adaptive solver sees the slope jump at
# each crossing. So in this book flows of ReLU are checked to $10^{-6}$, flows of smoother activations to $10^{-10}$, and ReLU
# to rounding in the discrete steps below, where kinks do no harm.
#
# ## Give it mass
#
# The symmetry is one of the loss. It holds whatever moves the point, so let it have a mass $\kappa_2$ and a friction
# $\kappa_1$, both functions of time (GU Eq. 22):
#
# $$
# \kappa_2\,\ddot q + \kappa_1\,\dot q = -\nabla f(q)
# \qquad\Longrightarrow\qquad
# \langle \kappa_2\,\ddot q + \kappa_1\,\dot q,\; A q\rangle = 0 .
# $$ (eq-h-forces)
#
# On the right is GU's Eq. 29, and summed over a layer their Eq. 30. Gradient flow has $\kappa_2 = 0$, $\kappa_1 = 1$; Newtonian
# dynamics (ND) $\kappa_2 = 1$, $\kappa_1 = 0$; Nesterov's flow (NAGF) $\kappa_2 = 1$, $\kappa_1 = 3/t$. With mass this is a balance of
# forces, no longer a constant. Whoever wants to test it must not take $\ddot q$ from the equation on the left: that would be
# the law testing itself. So look at the *momentum along the symmetry*, $M = \langle\dot q, Aq\rangle = \frac12\dot C$. By the product rule
#
# $$
# \kappa_2\,\dot M + \kappa_1\,M = \kappa_2\; \dot q^T A\,\dot q .
# $$ (eq-h-momentum)
#
# The balance is driven by the difference of two kinetic energies, that of what a neuron reads and that of what it writes.
# Integrate the right side beside the motion and compare. Here is Newton's case, with a smooth activation of degree 2,
# $\sigma(z) = z^2$; `law.form(a, b)` is $a^T A\,b$.

# %%
def unbalanced(g, form):  # Newtonian, from rest: momentum gained, minus what drove it
    span = {"t_span": (0, 1), "t_eval": [0, 1], "rtol": 1e-12, "atol": 1e-14}
    ride = integrate(nl.newtonian(), g, g.q0, beside=lambda t, q, v: form(v, v), **span)
    gained, driven = form(ride.v[-1], ride.q[-1]), ride.beside[-1]
    return (gained - driven).norm() / driven.norm()


squares = nl.flat_loss(nl.mlp((64, 8, 10), nl.Power(2)), x, y, cross_entropy)
law = nl.homogeneous(squares, 1)
print("balanced to ten digits:", bool(unbalanced(squares, law.form) < 1e-10))

# %% [markdown]
# The package writes any law in the form that a rule gives it, `law.under(rule)`, and its `.residual(...)` measures what we
# have just measured.
#
# GU test the balance with discrete steps. They all have the form $d_n = \mu_n\,d_{n-1} - \eta\,g_n$ with the last step $d_{n-1}$.
# ND is $\mu = 1$ with the gradient at $w_n$, Nesterov's algorithm (NAGD) $\mu_n = \frac{n-1}{n+2}$ with the gradient taken ahead, at
# $y_n = w_n + \mu_n d_{n-1}$. The *kick* $d_n - \mu_n d_{n-1}$ is what stands for $\kappa_2\ddot q + \kappa_1\dot q$. One gets it from three
# positions, without any gradient, and it is balanced to rounding, kinks or not, provided one looks at $y_n$ for NAGD. At $w_n$
# it is off.
#
# (check-homogeneity-forces)=
# So this is how the other two panels of GU's Figure 1 come out.

# %% mystnb={"figure": {"caption": "Figures 1 b and 1 c of GU. Thick orange: $\\langle W^{(2)}, \\cdot\\rangle$ with the kick over $\\eta$, which is a force; thin blue: $\\langle W^{(3)}, \\cdot\\rangle$. Grey: their difference. Above: the digits network, computed live. Below: the paper's network on the 1,000 KMNIST images of {numref}`fig-homogeneity-norms`. Above each panel: by how much $|W^{(2)}|^2$, $|W^{(3)}|^2$ and their difference have moved by its end. With mass the difference of norms is not conserved; the forces balance.", "name": "fig-homogeneity-forces"}, "image": {"alt": "Four panels, ND and NAGD on digits and KMNIST. In each, a thick orange and a thin blue curve of forces coincide while they rise and fall, and their difference is a flat grey line at zero. A line above each panel says by how much the norms and their difference moved."}} tags=["hide-input"]
def kicks(rule, memory):  # the forces on the two layers, taken at y and at w, and the squared norms
    q = descend(rule, f, f.q0, steps=150).q
    ahead, sides = q[1:-1] + memory * q.diff(dim=0)[:-1], torch.vmap(laws[1].total.sides)
    kick = (q[2:] - ahead) / rule.lr
    return sides(ahead, kick), sides(q[1:-1], kick), sides(q[1:-1])


n = torch.arange(1.0, 150)[:, None]
_, nd, nd_norms = kicks(nl.newtonian(lr=0.01), n**0)
nagd, nagd_at_w, nagd_norms = kicks(nl.nesterov(lr=0.01), (n - 1) / (n + 2))
titles = ("ND, digits", "NAGD, digits", "ND, KMNIST", "NAGD, KMNIST")
figure, axes = panels(2, 2, height=2.2, titles=titles, sharex=True)
for key, live, (upper, lower) in (("nd", (*nd, *nd_norms), axes.T[0]), ("nagd", (*nagd, *nagd_norms), axes.T[1])):
    kept = stored("gu_fig1_kmnist", key, "t", "pull_reads", "pull_writes", "reads", "writes")
    for axis, (t, pull, push, reads, writes) in ((upper, (n / 10, *live)), (lower, [k[:76] for k in kept])):
        axis.plot(t, pull, color=COLORS["measurement"], linewidth=4)
        axis.plot(t, push, color=COLORS["prediction"])
        axis.plot(t, pull - push, color=COLORS["neutral"])
        moved = [(side[-1] - side[0]).item() for side in (reads, writes, reads - writes)]
        axis.set_title("moved {:.2f} − {:.2f} = {:.2f}".format(*moved), loc="right", fontsize=9)
_ = [axis.set_xlabel("time $\\sqrt{\\eta}\\,n$") for axis in axes[1]]
claim("gu-fig1-nd", [off(*nd), numbers["nd_imbalance"]], control=off(nd[0], 2 * nd[1]))
claim("gu-fig1-nagf", [off(*nagd), numbers["nagd_imbalance"]], control=[off(*nagd_at_w), off(nagd[0], 2 * nagd[1])])

# %% [markdown]
# ## Two tables
#
# Nothing in the argument asked for ReLU. It takes a rescaling that nobody notices, and GU list three families that have
# one: $p = 1$ (ReLU, leaky ReLU), any $p$ (powers $x^p$, and $\mathrm{RePU}(p) = \max(0, z)^p$), and Swish, $x/(1 + e^{-\beta_i x})$ with a
# trained slope $\beta_i$ for each neuron. (GU allow any $p > 0$. Of a negative number only an integer power is real, so $x^{1.5}$ is
# left to RePU.) Swish is not homogeneous, but $\sigma_\beta(\lambda x) = \lambda\,\sigma_{\lambda\beta}(x)$: the slope
# shrinks as the input grows, so that $\beta_i$ counts among what the neuron writes. And if the neurons have biases,
# $\sigma(Wx + b)$, then $b_i$ is something that neuron $i$ reads, from a source that always sends 1:
#
# $$
# A = +1 \text{ on } W^{(h)}_{i:} \text{ and } b^{(h)}_i, \qquad -p \text{ on } W^{(h+1)}_{:i}, \qquad -1 \text{ on } \beta^{(h)}_i .
# $$ (eq-h-all)
#
# Every entry of GU's Tables 2 and 3 is {eq}`eq-h-forces` with this $A$, and for gradient flow the charge $q^T A\,q$, their Eqs. 36
# and 37 among them. We measure all of them: six activations, with and without biases, under gradient flow, ND, NAGF and a
# general dynamics with $\kappa_2 = 1 + t$, $\kappa_1 = 1/t$. For each entry a control runs along, with a wrong $p$; for Swish it is
# the law without $\beta$.

# %%
kinds = ["relu", "leaky_relu", nl.Power(2), nl.Power(3), nl.RePU(3), "swish"]
rules = [nl.gradient_flow(), nl.newtonian(), nl.nesterov()]
rules.append(nl.general(lambda t: 1 + t, lambda t: 1 / t))


def residual(kind, bias, rule, p=None, **solver):
    net = nl.mlp((64, 8, 10), kind, bias=bias, seed=0)
    g = nl.flat_loss(net, x, y, cross_entropy)
    law = nl.homogeneous(g, 1, p=p, verify=p is None).under(rule)
    return law.residual(g, t_span=(0.5, 1), **solver).abs().max()

# %% [markdown]
# (check-homogeneity-tables)=
# The table below is GU's Tables 2 and 3 in numbers, followed by their verdicts. One entry is misprinted: Swish under ND has
# $\langle W^{(h)}, \ddot W^{(h+1)}\rangle$, where the first factor must be $W^{(h+1)}$. As printed the product is not even defined unless
# the layers are square. We make them square, and it fails.

# %% mystnb={"figure": {"caption": "Tables 2 and 3 of GU, measured. Upper number of each cell: the largest relative violation of the law by any neuron of a 64-8-10 network on 300 digits between $t = 0.5$ and $1$. Lower number, purple: the control. ReLU is integrated with a tolerance of $10^{-6}$, the smooth activations with $10^{-11}$.", "name": "fig-homogeneity-tables"}, "image": {"alt": "A table with six rows of activations and two times four columns of dynamics. All laws of ReLU and leaky ReLU hold to below one in a million, those of the other activations to below one in ten to the ten; all controls fail by between one percent and several hundred percent."}} tags=["hide-input"]
solver = [{"method": "RK45", "rtol": 1e-6, "atol": 1e-8}] * 2 + [{"rtol": 1e-11, "atol": 1e-14}] * 4
cells = [(i, j, bias) for i in range(6) for j in range(4) for bias in (0, 1)]
pick = lambda table, rows, bias: [table[i, j, b] for i, j, b in cells if i in rows and b == bias]
held = {(i, j, b): residual(kinds[i], b, rules[j], **solver[i]) for i, j, b in cells}
wrong_p = (2, 2, 1, 1, 1, 1)  # x^p and RePU as if p = 1, Swish without its beta
fails = {(i, j, b): residual(kinds[i], b, rules[j], wrong_p[i], method="RK45", rtol=1e-3) for i, j, b in cells}

figure, axes = panels(2, height=3.6, titles=("Table 2", "Table 3, with biases"), subplot_kw={"frame_on": False})
for i, j, b in cells:
    for table, shift, color in ((held, 0.2, "black"), (fails, -0.2, COLORS["control"])):
        text = f"$10^{{{table[i, j, b].log10():.1f}}}$"
        axes[b].text(j, -i + shift, text, color=color, ha="center", va="center", fontsize=9)
for axis in axes:
    axis.set(xlim=(-0.5, 3.5), ylim=(-5.5, 0.5), xticks=range(4), xticklabels=["GF", "ND", "NAGF", "general"])
    axis.set(yticks=range(0, -6, -1), yticklabels=["ReLU", "leaky ReLU", "$x^2$", "$x^3$", "RePU(3)", "Swish"])
    axis.grid(False)
square = nl.flat_loss(nl.mlp((64, 10, 10, 10), "swish", seed=0), x, y, cross_entropy)
swish, w, w_next = nl.homogeneous(square, 2).total, square.slices["3.weight"], square.slices["5.weight"]
claim("gu-table2-relu", pick(held, (0, 1), 0), control=pick(fails, (0, 1), 0))
claim("gu-table2-power", pick(held, (2, 3, 4), 0), control=pick(fails, (2, 3, 4), 0))
claim("gu-table2-swish", pick(held, (5,), 0), control=pick(fails, (5,), 0))
claim("gu-table3-relu", pick(held, (0, 1), 1), control=pick(fails, (0, 1), 1))
claim("gu-table3-power", pick(held, (2, 3, 4), 1), control=pick(fails, (2, 3, 4), 1))
claim("gu-table3-swish", pick(held, (5,), 1), control=pick(fails, (5,), 1))
printed = unbalanced(square, lambda a, b: swish.form(a, b) + a[w_next] @ (b[w_next] - b[w]))
claim("gu-table2-swish-nd", unbalanced(square, swish.form), control=printed)

# %% [markdown]
# ## Many layers: $p$ to the power $k$
#
# Let $p_h$ be the degree behind layer $h$, and add up the charges of several layers, each times the degrees of those before
# it. What stands between cancels. With one and the same $p$ across $k$ layers gradient flow keeps
#
# $$
# \bigl\lVert W^{(h)}\bigr\rVert_F^2 - p^k\,\bigl\lVert W^{(h+k)}\bigr\rVert_F^2 = \text{const} .
# $$ (eq-h-pk)
#
# The deeper layer moves $p^k$ times less, which for $p > 1$ can leave the end of a deep network standing still while its
# beginning runs. GU's Figure 2 has $\mathrm{RePU}(2)$ behind layers 2 and 3, so $W^{(2)}$ and $W^{(4)}$ move as 4 to 1. Such a network
# asks for care. Its scores are of degree twelve in the weights. It does not train from PyTorch's usual initialisation, and
# from Kaiming He's the loss begins so steep that steps of 0.01 break the law at once. So the steps here are shorter than the
# paper's.

# %% mystnb={"figure": {"caption": "Figure 2 of GU. ReLU, RePU(2), RePU(2), ReLU, and gradient descent from Kaiming He's initialisation. Left axes: what $|W^{(2)}|^2$ and $|W^{(4)}|^2$ have gained. Right axes, same units per inch: the first minus four times the second. Left panel: digits network 64-40-40-40-40-10, $\\eta = 0.0005$. Right panel: the paper's 784-200-200-200-200-10 on the 1,000 KMNIST images (of the test split) and $\\eta = 0.001$; stored.", "name": "fig-homogeneity-layers"}, "image": {"alt": "Two panels. The squared norm of layer two drops steeply at the start and then rises; that of layer four does the same at a quarter of the scale; the first minus four times the second is flat."}} tags=["hide-input"]
power = ["relu", nl.RePU(2), nl.RePU(2), "relu"]
deep = nl.flat_loss(nl.mlp((64, 40, 40, 40, 40, 10), power, init="kaiming", seed=0), x, y, cross_entropy)
apart = descend(nl.sgd(lr=5e-4), deep, deep.q0, steps=800)
live = torch.stack([apart.t, *torch.vmap(nl.homogeneous(deep, 2, across=2).sides)(apart.q)])
kept = torch.stack(stored("gu_fig2_kmnist", "gd", "t", "reads", "writes"))
figure, axes = panels(2, height=3.2, titles=("digits, live", "KMNIST, the paper's network"))
for axis, (t, a, b), k in zip(axes, (live, kept), (4, 1), strict=True):  # live has 4 |W|^2, as the law does
    two_axes(axis, t, a - a[0], (b - b[0]) / k, ("gain of $|W^{(2)}|^2$", "gain of $|W^{(4)}|^2$"), p=4)

# %% [markdown]
# ## How far can it drift?
#
# With mass the differences $D_h = \lVert W^{(h)}\rVert_F^2 - \lVert W^{(h+1)}\rVert_F^2$ do move. By how much at most? A point that starts at rest
# under ND has the energy $\frac12|\dot q|^2 + f = f_0$ for ever. From {eq}`eq-h-momentum`, $\ddot D_h = 2\lVert\dot W^{(h)}\rVert_F^2 - 2\lVert\dot W^{(h+1)}\rVert_F^2$, and
# each layer occurs at most twice when we add up the absolute values. With $f_*$ for the infimum of the loss,
#
# $$
# \sum_h \bigl|\ddot D_h\bigr| \le 4\,|\dot q|^2 = 8\,(f_0 - f) \le 8\,(f_0 - f_*)
# \qquad\Longrightarrow\qquad
# \sum_h \bigl|D_h(t) - D_h(0)\bigr| \le 4\,(f_0 - f_*)\,t^2 .
# $$ (eq-h-bound)
#
# GU claim more. Their Eqs. 32 and 33 bound the second derivative of $\sum_h |D_h|$ by the same $8\,(f_0 - f_*)$ (they halve
# both sides). But an absolute value has a kink. Where some $D_h$ changes its sign, $|D_h|$ turns from falling to rising in no
# time, and no bound holds for its second derivative. It happens: in the run below two of three $D_h$ cross zero. Their
# Eq. 34, $\sum_h |D_h(t)| - \sum_h |D_h(0)| \le O(t^2)$, is rescued by {eq}`eq-h-bound`, which implies it.
#
# For NAGF friction eats energy, $\frac{d}{dt}\bigl(\frac12|\dot q|^2 + f\bigr) = -\frac3t\,|\dot q|^2$ (GU Eq. 35), and whether that bounds the drift
# they leave open. It does, and better than without friction. By {eq}`eq-h-momentum` $t^3 M$ grows at the rate $t^3\,\dot q^T A\,\dot q$; for the sums over
# layers, $\sum_h |\dot q^T A_h\,\dot q| \le 2\,|\dot q|^2 \le 4\,(f_0 - f_*)$ still, since energy only falls. So
# $\sum_h |M_h| \le t^{-3}\int_0^t 4\,(f_0 - f_*)\,s^3\,ds = (f_0 - f_*)\,t$, and with $\dot D = 2M$
#
# $$
# \sum_h \bigl|D_h(t) - D_h(0)\bigr| \le (f_0 - f_*)\,t^2 \qquad\text{(NAGF)},
# $$ (eq-h-nagf-bound)
#
# a quarter of Newton's bound.
#
# (check-homogeneity-bounds)=
# All of this on a ReLU network 64-16-16-16-10 that starts at rest, with $f_* = 0$, below which cross entropy cannot fall. The
# control of the bounds is a start with a push along a symmetry.

# %% mystnb={"figure": {"caption": "Newtonian dynamics of a ReLU network from rest. Left: the three differences $D_h$; two of them change sign. Middle: the slope of $\\sum_h |D_h|$ jumps upwards at each crossing (orange); if its second derivative obeyed the bound of GU's Eq. 33, it could not rise faster than the blue line, drawn from the first jump on. Right: the total drift, Newtonian (orange) and Nesterov (green), below its bound (dashed), by the factor that is written there at the end.", "name": "fig-homogeneity-bounds"}, "image": {"alt": "Left: three curves, two of which cross zero between times 2 and 3. Middle: an orange curve with two vertical jumps, each far above the slope of the blue line. Right: on logarithmic axes the drifts lie more than ten and more than a hundred times below dashed lines of slope two."}} tags=["hide-input"]
small = nl.flat_loss(nl.mlp((64, 16, 16, 16, 10), "relu", init="kaiming", seed=0), x[:100], y[:100], cross_entropy)
gaps, f0 = [law.total for law in nl.homogeneous_laws(small)], small(small.q0)


def race(rule, t0=0.0, v0=None):  # times, all D, their rates and f0 t^2, from positions and velocities alone
    solver = {"method": "RK45", "rtol": 1e-4, "atol": 1e-6, "t_eval": torch.linspace(t0, 3, 301)}
    path = integrate(rule, small, small.q0, v0, t_span=(t0, 3), **solver)
    D = torch.stack([torch.vmap(gap.charge)(path.q) for gap in gaps])
    rate = torch.stack([2 * torch.vmap(gap.form)(path.v, path.q) for gap in gaps])
    return path.t, D, rate, f0 * path.t**2


(t, D, rate, unit), (t_n, D_n, _, unit_n) = race(nl.newtonian()), race(nl.nesterov(), t0=1e-3)
total = lambda D: (D - D[:, :1]).abs().sum(0)
slope = (rate * D.sign()).sum(0)  # of the sum of |D_h|
jump, chain, room = slope.diff(), rate.diff(dim=1).abs().sum(0), 8 * f0 * t.diff()
figure, (left, middle, right) = panels(3, height=2.9, titles=("differences", "slope of $\\sum|D_h|$", "total drift"))
left.plot(t, D.T, label=["$D_1$", "$D_2$", "$D_3$"])
middle.plot(t, slope, color=COLORS["measurement"])
first = int((D.sign().diff(dim=1) != 0).any(0).nonzero()[0])
middle.plot(t[first:], slope[first] + 8 * f0 * (t[first:] - t[first]), color=COLORS["prediction"])
for time, moved, bound, color in ((t, total(D), 4 * unit, "measurement"), (t_n, total(D_n), unit_n, "second")):
    right.loglog(time[9:], moved[9:], color=COLORS[color])
    right.loglog(time[9:], bound[9:], color=COLORS[color], linestyle="--")
    right.text(3.2, moved[-1] / 40, f"÷ {bound[-1] / moved[-1]:.0f}", ha="right", color=COLORS[color])
_ = left.legend(), [axis.set_xlabel("time") for axis in (left, middle, right)]
push = gaps[2].generator(small.q0)
pushed, pushed_n = (race(*start, push)[1] for start in ((nl.newtonian(), 0.0), (nl.nesterov(), 1e-3)))
claim("gu-34", D.abs().sum(0) - D[:, 0].abs().sum() - 4 * unit, control=(total(pushed) - 4 * unit).max())

# %% [markdown]
# The bounds hold and are loose: the drift comes no closer to them than a factor of 13 under ND and of 129 under NAGF. At rest
# all layers are equally still, so their kinetic energies begin to differ only as $t^2$, and the drift as $t^4$. As printed,
# Eq. 33 fails where the two differences cross zero: within a hundredth of a unit of time the slope rises seventeen times as
# much as the bound allows, and the finer one looks the worse it gets.
#
# ## Real training takes steps
#
# Nobody trains with a flow. What is left of the law at a finite step? Let $d$ be any step. Multiply out:
#
# $$
# C(q + d) - C(q) = 2\,q^T A\, d + d^T A\, d .
# $$ (eq-h-bookkeeping)
#
# That is true for any optimiser and says nothing yet. Plain gradient descent steps by $d = -\eta g$, where $g$ is the gradient
# on whatever batch is at hand. The first term is then $-2\eta\,\langle g, A q\rangle$, and this is zero by {eq}`eq-h-orthogonal`.
# What is left is not an approximation:
#
# $$
# C_{n+1} - C_n = \eta^2\, g_n^T A\, g_n .
# $$ (eq-h-step)
#
# How robust their laws are to finite steps, and what stochastic gradients do to them, GU leave open. For quadratic
# charges this identity is the answer. Kunin and others {cite}`kunin2021neural` found its leading term, with a flow that
# is modified to follow the steps; here it is exact. It is the same on the full batch and on every mini-batch, kinks or not.
# To test it we take noisy steps, 30 images at a time, and compute the right side from the gradients alone. For comparison
# the same network takes as many steps on all 300 images.


# %%
def batch(n):
    chosen = torch.randperm(300, generator=torch.Generator().manual_seed(n))[:30]
    return x[chosen], y[chosen]


law, lr = laws[1], 0.05
q = descend(nl.sgd(lr=lr), None, f.q0, steps=300, batches=lambda n: f.on(*batch(n))).q
measured = torch.stack([law.change(q[n], q[n + 1]) for n in range(300)])
gradients = [torch.func.grad(f.on(*batch(n)))(q[n]) for n in range(300)]
predicted = torch.stack([law.gd_change(g, lr=lr) for g in gradients])

# %% [markdown]
# The flat lines of the first figure were not quite flat, and now we know why: on KMNIST the sum of {eq}`eq-h-step` is their drift
# to ten digits. Mini-batches make them less flat. After 300 steps of the same size the balance of the layer has moved almost
# ninety times as far ({numref}`fig-homogeneity-steps`, left). If $g = \nabla f + \xi$ with noise $\xi$ of covariance $\Sigma$, the mean change per step is
# $\eta^2(\nabla f^T A \nabla f + \operatorname{tr} A\Sigma)$. Noise lengthens both sides, and more the one that it shakes more.
#
# How fast does the law come back when steps shrink? A time $T$ takes $T/\eta$ steps, and each breaks the balance by
# $\eta^2$, so the drift is of order $\eta$. In the plane of two weights you can watch it. Move the slider.

# %% tags=["hide-input"]
def draw(eta):
    path = descend(nl.sgd(lr=eta), lambda q: 0.5 * (q[0] * q[1] - 1) ** 2, [0.05, 1.4], steps=round(8 / eta)).q
    figure, axis = panels(height=3.6, titles=[f"charge drifts by {path[-1, 0] ** 2 - path[-1, 1] ** 2 + 1.9575:.3f}"])
    axis.plot(grid, 1 / grid, "#bbbbbb", grid, (grid**2 + 1.9575).sqrt(), COLORS["prediction"])
    axis.plot(*path.T, "o-", color=COLORS["measurement"], markersize=5, linewidth=1)
    axis.set(xlabel="$u$, reads", ylabel="$v$, writes", xlim=(0, 1.3), ylim=(0.8, 1.9), aspect="equal")
    return figure


explorers.explore(draw, [0.05, 0.1, 0.2, 0.4, 0.6, 0.8], name="step η", describe="descent with step {}".format)

# %% [markdown]
# *Blue: the hyperbola on which gradient flow moves from (0.05, 1.4). Grey: the valley $uv = 1$ where it ends. Orange:
# gradient descent on the same loss for time 8.*
#
# ## Momentum, decay, and exact books
#
# Real optimisers add two things. Heavy ball keeps a buffer of earlier gradients, $b_n = \beta\,b_{n-1} + g_n$, and weight decay
# replaces $g$ by $g + kq$. The step $d = -\eta\,b$ contains more than the gradient, but all of it is known, so
# {eq}`eq-h-bookkeeping` splits the change of each balance into causes, and nothing else can contribute:
#
# $$
# C_{n+1} - C_n = \underbrace{Q(d_n)}_{\text{finite step}} - \underbrace{2\eta\beta\,b_{n-1}^T A\,q_n}_{\text{momentum}}
# - \underbrace{2\eta k\,C_n}_{\text{decay}}, \qquad Q(d) = d^T A\,d .
# $$ (eq-h-causes)
#
# The package's `Ledger` books them. It listens to a PyTorch optimiser, here through an ordinary training loop on mini-batches.


# %%
def train(model, optimizer):
    ledger = nl.Ledger(laws, model, optimizer)
    for images, labels in map(batch, range(200)):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    return ledger


# %% [markdown]
# A training run that breaks a symmetry it should have is broken itself: a gradient was clipped tensor by tensor, a penalty
# applied to one layer only, a layer's weights are shared without anybody's knowing. So `check()` is a test worth having in
# a test suite. It raises as soon as one step of one neuron is not explained to twelve digits.
#
# (check-homogeneity-ledger)=
# To see it bite we let the gradient of one matrix be wrong by a thousandth, which no loss curve would show. The middle run has
# Nesterov's momentum as PyTorch does it.

# %%
settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
net, ahead, broken = (nl.mlp(widths, "relu", seed=0) for _ in range(3))
broken[5].weight.register_hook(lambda gradient: 1.001 * gradient)
books = train(net, torch.optim.SGD(net.parameters(), **settings))
nesterov = train(ahead, torch.optim.SGD(ahead.parameters(), nesterov=True, **settings))
faulty = train(broken, torch.optim.SGD(broken.parameters(), **settings))
books.check()  # this line is the test; faulty.check() would raise
claim("nl-ledger", [books.residual, nesterov.residual], control=faulty.residual)

# %% [markdown]
# Left to itself, momentum is a finite step with a memory. Put the buffer into {eq}`eq-h-causes` by what the step before has
# done, and without decay
#
# $$
# \Delta C_n - \beta\,\Delta C_{n-1} = Q(d_n) + \beta\,Q(d_{n-1}), \qquad \Delta C_n = C_{n+1} - C_n .
# $$ (eq-h-heavy-ball)
#
# Sum over a long run: $\sum \Delta C \approx \frac{1+\beta}{1-\beta}\sum Q(d)$. Compare with plain descent at the *same* speed, that is
# with $\eta$ replaced by $\eta(1 - \beta)$. As long as successive gradients agree, momentum breaks the balance $\frac{1+\beta}{1-\beta}$
# times as strongly, 19 times at $\beta = 0.9$. [The first chapter](euler_lagrange.ipynb) says why: at equal speed its particle
# is 19 times as heavy. With large or noisy steps the factor is smaller, 18 and 10 at the ends of the right panel below.
# Undamped ND is the case $\beta = 1$. Nesterov's algorithm takes its gradient at $y_n$, from where on its step is one of plain
# descent, and
#
# $$
# \Delta C_n - \mu_n\,\Delta C_{n-1} = \mu_n(1 + \mu_n)\,Q(d_{n-1}) + \eta^2\,Q(g_n) .
# $$ (eq-h-nagd)
#
# All of these are exact on any batches. As steps shrink ({numref}`fig-homogeneity-steps`, right), plain descent and heavy ball
# return to the law of gradient flow, and NAGD to that of its own flow. The measured exponent is 1.0 for plain
# descent and a little above 1 for NAGD; for momentum it is 0.5 between the two largest steps and 0.9 between the smallest, on its
# way to 1.

# %% mystnb={"figure": {"caption": "Left: drift of $\\lVert W^{(2)}\\rVert^2 - \\lVert W^{(3)}\\rVert^2$ in plain descent with $\\eta = 0.05$, measured (orange) and summed up from Eq. {eq}`eq-h-step` (blue), with its value at the end. Middle: the ledger of 200 mini-batches with momentum 0.9 and decay 0.01: what moved the same difference (orange), and the causes, which add up to the blue line. Right: length of the vector of the layer's 40 drifts after time 8, plain and with momentum 0.9 at equal speed, against the step of plain descent; for NAGD the distance from the drift of its flow at time 4, against $\\sqrt\\eta$. Dashed: order 1. The control is the charge with $p = 2$.", "name": "fig-homogeneity-steps"}, "image": {"alt": "Left: the drift with batches of 30 is irregular and grows to minus 0.07, with the prediction on top; that of the full batch stays at zero on this scale. Middle: the measured change lies on the sum of its causes, of which momentum is the largest. Right: on logarithmic axes the drifts of plain descent, momentum and NAGD fall with slope one, that of a charge with the wrong degree, the control, stays level."}} tags=["hide-input"]
full = descend(nl.sgd(lr=lr), f, f.q0, steps=300).q
calm = torch.vmap(law.total.change)(full[:-1], full[1:])
figure, (left, middle, right) = panels(3, height=3.0, titles=("plain descent", "the ledger's causes", "order 1"))
for name, across, up, steps in (("all 300", 298, -0.009, calm), ("batches of 30", 220, -0.062, measured.sum(1))):
    left.plot(steps.cumsum(0), color=COLORS["measurement"], linewidth=4)
    left.text(across, up, f"{name}:\n{steps.sum():.4f}", ha="right", va="center")
left.plot(predicted.sum(1).cumsum(0), color=COLORS["prediction"])
account = {name: sums.sum(1) for name, sums in books[1].cumulative.items()}
middle.plot(account["change"], color=COLORS["measurement"], linewidth=4, label="measured")
middle.plot(account["change"] - account["residual"], color=COLORS["prediction"])
for name, color in {"finite_step": "second", "momentum": "third", "decay": "neutral"}.items():
    middle.plot(account[name], color=COLORS[color], label=name.replace("_", " "))
_ = middle.legend(), left.set_xlabel("step $n$"), middle.set_xlabel("step $n$")


def drift_after(rule, time, charge=law):
    steps = round(time / rule.time_step)
    return charge.change(f.q0, descend(rule, f, f.q0, steps=steps, every=steps).q[-1])


rates, limit = [0.08, 0.04, 0.02, 0.01], drift_after(nl.nesterov(lr=0.0025**2), 4)
ends = {
    "control": [drift_after(nl.sgd(lr=rate), 8, wrong).norm() for rate in rates],
    "NAGD": [(drift_after(nl.nesterov(lr=rate**2), 4) - limit).norm() for rate in rates],
    "plain": [drift_after(nl.sgd(lr=rate), 8).norm() for rate in rates],
    "momentum": [drift_after(nl.sgd(lr=rate / 10, momentum=0.9), 0.8).norm() for rate in rates],
}
right.set(ylim=(4e-6, 1e2))
plotting.convergence(right, rates, ends, guides={"plain": 1}, xlabel=r"$\eta\,/\,(1 - \beta)$, or $\sqrt{\eta}$")

# %% [markdown]
# (check-homogeneity)=
# ## Check
#
# The rest of the laws above, measured against tolerances that were fixed beforehand. Every control has to fail: the charge
# with the wrong degree, the start with a push, a wrong $\beta$, the faulty gradient. Since {eq}`eq-h-orthogonal` and
# {eq}`eq-h-bookkeeping` speak of any optimiser, Adam runs too. The verdicts of all chapters are in [](what_holds.md).

# %% tags=["hide-input"]
claim("gu-32", (chain - room).clamp(min=0), control=(jump - chain).max())
claim("gu-33", (total(D) - 4 * unit).clamp(min=0), control=(jump - room).max())
claim("nl-nagf-bound", total(D_n) - unit_n, control=(total(pushed_n) - unit_n).max())
ride = integrate(nl.nesterov(), squares, squares.q0, t_span=(0.1, 1), beside=lambda t, q, v: v @ v / t, rtol=1e-12)
(fresh, *_, tired), spent = [0.5 * v @ v + squares(q) for q, v in zip(ride.q, ride.v, strict=True)], ride.beside[-1]
claim("gu-35", (tired - fresh + 3 * spent) / spent, control=(tired - fresh + 2 * spent) / spent)
claim("gu-36", [held[i, 0, 1] for i in (0, 1)], control=[fails[i, 0, 1] for i in (0, 1)])
claim("gu-37", held[5, 0, 1], control=fails[5, 0, 1])
cubes = nl.flat_loss(nl.mlp((64, 6, 6, 10), nl.Power(3), seed=0), x, y, cross_entropy)
across = [nl.homogeneous(cubes, 1, across=2), nl.homogeneous(cubes, 1, across=2, p=6, verify=False)]  # 3^2, not 2 * 3
pk, not_pk = (law.under(nl.gradient_flow()).residual(cubes, t_span=(0, 0.1), rtol=1e-11) for law in across)
claim("gu-pk", pk, control=not_pk)
numbers, cov = results.read("gu_fig2_kmnist")["numbers"], live[1:].cov()
claim("gu-fig2", [numbers["slope"], 4 * cov[0, 1] / cov[1, 1]], control=numbers["slope_one_layer"])
claim("nl-sgd-identity", measured - predicted, control=(measured - 1.001 * predicted).abs().max())
claim("nl-sgd-drift", nl.convergence_order(rates, ends["plain"]), control=nl.convergence_order(rates, ends["control"]))


def unexplained(rule, mu, at_y=False):
    q = descend(rule, None, f.q0, steps=150, batches=lambda n: f.on(*batch(n))).q
    d, C, Q = q.diff(dim=0), torch.vmap(laws[1].change)(q[:-1], q[1:]), torch.vmap(laws[1].form)
    new = Q(d[1:] - mu * d[:-1]) + mu**2 * Q(d[:-1]) if at_y else Q(d[1:])
    return (C[1:] - mu * C[:-1] - new - mu * Q(d[:-1])).abs().max()


heavy, nagd = nl.sgd(lr=0.01, momentum=0.9), (nl.nesterov(lr=0.01), (n - 1) / (n + 2), True)
claim("nl-momentum", [unexplained(heavy, 0.9), unexplained(*nagd)], control=unexplained(heavy, 0.8))
adam, bent = (train(model, torch.optim.Adam(model.parameters())).residual for model in (net, broken))
claim("nl-any-optimizer", adam, control=bent)

# %% [markdown]
# ## Exercises
#
# **1. Adam.** Adam divides every coordinate of the step by a scale of its own. Which of this page's equations still hold for
# it, and where does the argument for Eq. {eq}`eq-h-step` stop?
#
# ````{dropdown} Solution
# The gradient is as orthogonal as ever, {eq}`eq-h-orthogonal`, for that is a property of the loss. The bookkeeping
# {eq}`eq-h-bookkeeping` is algebra. But Adam's step is no multiple of the gradient: with a diagonal matrix $P$ of scales,
# $d = -\eta P g$, the first term is $-2\eta\,\langle g, P A q\rangle$, and $PAq$ is not a direction in which the loss is level. That
# term is of order $\eta$ and does not go away when steps shrink: Adam breaks the balance in the continuous limit too.
# ````
#
# **2. Momentum without direction.** The factor 19 took it for granted that successive gradients agree, so that
# $d \approx -\frac{\eta}{1-\beta}\,g$. Suppose they are pure noise instead, independent at every step. What becomes of the
# factor? Batches of three images are nearly noise: measure it.
#
# ````{dropdown} Solution
# A sum of independent gradients grows like a random walk: on average $Q(d) = \frac{\eta^2}{1-\beta^2}\,Q(g)$ in place of
# $\frac{\eta^2}{(1-\beta)^2}\,Q(g)$. That is smaller by $\frac{1-\beta}{1+\beta}$, which cancels the factor in front. Noise breaks the balance
# equally with and without momentum. With `batches=lambda n: f.on(x[rows], y[rows])` and three `rows` drawn anew for each `n`,
# 200 steps of 0.02 and momentum 0.9 at equal speed break it about twice as much as plain ones, with 30 rows nine times, with
# all 300 fifteen times.
# ````
#
# **3. Weight decay forgets.** Let the step be $-\eta\,(g + k q)$. What does it do to the charge, and where does the charge go
# in the long run?
#
# ````{dropdown} Solution
# The new point is $(1 - \eta k)\,q - \eta g$. Multiply out; the mixed term is a multiple of $\langle g, Aq\rangle$ and vanishes:
#
# $$
# C_{n+1} = (1 - \eta k)^2\, C_n + \eta^2\, g_n^T A\, g_n .
# $$
#
# The initial balance fades as $e^{-2kt}$, whatever the gradients are. Decay makes every neuron read and write equally
# strongly, up to the small push $\eta^2 g^T A g$ of the steps. (In the ledger above it is the grey line.)
# ````
#
# **4. A whole network.** All activations are ReLU and all layers have biases. Add up GU's Eq. 36 over the layers. What is
# conserved, and what does it say about the first and the last layer?
#
# ````{dropdown} Solution
# What stands between cancels: $\lVert W^{(1)}\rVert_F^2 - \lVert W^{(K)}\rVert_F^2 + \sum_h |b^{(h)}|^2$ stays. If the biases grow, the last layer has to
# outgrow the first by as much. With Swish, $\sum_h |\beta^{(h)}|^2$ is subtracted: trained slopes can pay for the biases.
# ````
#
# ## What to take along
#
# - A symmetry of the loss makes the gradient orthogonal to its generator, at every point and on every batch. If the
#   generator is $Aq$ with a symmetric $A$, gradient flow conserves $q^T A q$.
# - For homogeneous activations and for Swish that is one charge for each hidden neuron: what it reads and its bias, minus $p$
#   times what it writes, minus its slope. Across $k$ layers $p$ becomes $p^k$.
# - With mass the charge moves, driven by kinetic energies alone: $\kappa_2\dot M + \kappa_1 M = \kappa_2\,\dot q^T A\,\dot q$. From rest it moves by
#   at most $4 f_0 t^2$ under ND and $f_0 t^2$ under NAGF, and in fact by much less.
# - A step of gradient descent moves the charge by exactly $\eta^2 g^T A g$. Momentum and decay add terms that are as exact, so
#   that a ledger can account for every digit of a real training run.
#
# Where the activation is linear the rescaling of single neurons grows to the mixing of all of them, and the balance to a
# matrix: [](linear_layers.ipynb).
