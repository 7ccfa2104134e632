"""One table of what an optimiser makes of a law: its statements hold in the optimiser's own steps."""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from nlcompanion import audit, descend, flat_loss, gradient_flow, homogeneous_law, linear_law, mlp, nesterov, sgd
from nlcompanion.laws.auditing.statements import rates_of
from nlcompanion.laws.under_optimizers import decoupled_decay, statement_under
from studies.small_trainings import Lion

X = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4).sin()
Y = torch.arange(5) % 2


def loss_of(activation="relu"):
    model = mlp((4, 3, 2), activation, seed=2)
    return model, flat_loss(model, X, Y, torch.nn.functional.cross_entropy)


def three_steps(f, law, make):
    """What a statement speaks of, at the last of three steps."""
    q = f.q0.clone().requires_grad_()
    optimizer = make([q])
    points, buffers = [q.detach().clone()], []
    for _ in range(3):
        optimizer.zero_grad()
        f(q).backward()
        optimizer.step()
        points.append(q.detach().clone())
        buffers.append(optimizer.state[q].get("momentum_buffer", torch.zeros_like(q)).clone())
    d = [b - a for a, b in pairwise(points)]
    gradient = torch.autograd.grad(f(at := points[2].clone().requires_grad_()), at)[0]
    return {
        "ΔC(n-1)": law.change(*points[1:3]), "ΔC(n)": law.change(*points[2:4]), "C(n)": law.charge(points[2]),
        "Q(d(n-1))": law.square(d[1]), "Q(d(n))": law.square(d[2]), "Q(g)": law.square(gradient),
        "F(n)": law.form(points[2]),
        "M(b(n-1))": law.form(buffers[1], points[2]), "M(d(n))": law.form(d[2], points[2]),
    }  # fmt: skip


def balance(statement: str, values: dict[str, torch.Tensor]) -> float:
    """Left side minus right side of a statement, over the left side."""
    names = {}
    for k, text in enumerate(sorted(values, key=len, reverse=True)):
        names[f"x{k}"] = values[text]
        statement = statement.replace(text, f"x{k}")
    left, right = (re.sub(r"([\d.e-]*\d) (x\d)", r"\1*\2", side) for side in statement.split(" = "))
    left, right = eval(left, {}, names), eval(right, {}, names)
    return float((left - right).abs().max() / left.abs().max())


SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.05},
    {"lr": 0.1, "momentum": 0.5, "nesterov": True},
    {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.05, "nesterov": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_statement_is_what_the_steps_do(settings):
    _, f = loss_of()
    law = homogeneous_law(f, layer=1).total
    make = lambda parameters, **more: torch.optim.SGD(parameters, **{**settings, **more})  # noqa: E731
    said = statement_under(law, make([f.q0.clone().requires_grad_()])).split(" with ")[0]
    assert balance(said, three_steps(f, law, make)) < 1e-5  # statements print six digits
    other = 1.5 * settings["lr"] if not settings.get("momentum") or "weight_decay" in settings else settings["lr"]
    wrong = three_steps(f, law, lambda p: make(p, lr=other, momentum=0.7, nesterov=False))
    assert balance(said, wrong) > 1e-3


def test_another_optimizer_says_what_is_left():
    model, f = loss_of("linear")
    law = linear_law(f, layer=1).total
    said = statement_under(law, torch.optim.Adam(model.parameters()))
    values = three_steps(f, law, lambda p: torch.optim.Adam(p, lr=0.01))
    assert balance("ΔC(n) = 2 M(d(n)) + Q(d(n))", values) < 1e-12
    assert said.endswith("ΔC(n) = 2 M(d(n)) + Q(d(n))")
    assert balance("ΔC(n) = Q(d(n))", values) > 0.1


# --- charges with a linear part, and balances with a source -----------------------------------------------------------


class Gain(nn.Module):
    """A gain that is stored as its distance from 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.6, 0.3, 4))

    def forward(self, x):
        return x * (1 + self.weight)


def audited(kind):
    """A loss and its first law of a kind: all of ``"logit shift"``, ``"affine"``, ``"source"``."""
    torch.manual_seed(0)
    models = {
        "logit shift": nn.Sequential(nn.Linear(4, 3)),
        "affine": nn.Sequential(Gain(), nn.Linear(4, 3)),
        "source": nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)),
    }
    given = models[kind].double(), X, Y, nn.functional.cross_entropy
    laws = [law for law in audit(*given).laws if law.kind == kind]
    return flat_loss(*given), laws[0]


WITH_DECAY = [settings for settings in SETTINGS if "weight_decay" in settings]


@pytest.mark.parametrize("settings", WITH_DECAY, ids=str)
@pytest.mark.parametrize("kind", ["logit shift", "affine"])
def test_a_charge_with_a_linear_part_decays_as_stated(kind, settings):
    f, law = audited(kind)
    make = lambda parameters: torch.optim.SGD(parameters, **settings)  # noqa: E731
    said = statement_under(law, make([f.q0.clone().requires_grad_()]))
    values = three_steps(f, law, make)
    assert ("F(n) = form(q(n), q(n))" in said) == (kind == "affine")
    said = said.split(" with ")[0].replace("= -", "= 0 - ")
    assert balance(said, values) < 1e-11
    squares = homogeneous_law(loss_of()[1], 1)  # control: what is true of squares, and was said of all laws
    assert balance(statement_under(squares, make([torch.zeros(1)])).split(" with ")[0], values) > 1e-3


@pytest.mark.parametrize("settings", [{"lr": 0.1}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}], ids=str)
def test_a_linear_charge_is_kept_without_decay(settings):
    f, law = audited("logit shift")
    values = three_steps(f, law, lambda p: torch.optim.SGD(p, **settings))
    assert values["ΔC(n)"].abs().max() < 1e-14
    assert law.under(sgd(0.1)).flow == "0.05 C'' + 1 C' = 0"
    assert law.under(sgd(0.1)).steps == "ΔC(n) = 0"


RULES = {
    "gradient flow": (gradient_flow, "C' = -0.5 C", "C' = -1 F"),
    "SGD": (lambda: sgd(0.1), "0.05 C'' + 1 C' = -0.5 C", "0.05 C'' + 1 C' = 0.1 Q(v) - 1 F"),
    "Nesterov": (lambda: nesterov(0.1), "C'' + (3/t) C' = -0.5 C", "C'' + (3/t) C' = 2 Q(v) - 1 F"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_linear_part_decays_at_half_the_rate_in_flows(rule):
    make, of_shift, of_both = RULES[rule]
    rule = replace(make(), weight_decay=0.5)
    for kind, stated in (("logit shift", of_shift), ("affine", of_both)):
        f, law = audited(kind)
        under = law.under(rule)
        assert under.flow == stated
        assert under.residual(f, t_span=(0.1, 0.3), rtol=1e-10).abs().max() < 1e-9
    assert "F = form(q, q) = |0.weight[i]|² + Σ 0.weight[i] - |1.weight[:, i]|²" in under.statement
    w, W = f.unflatten(f.q0)["0.weight"], f.unflatten(f.q0)["1.weight"]
    torch.testing.assert_close(law.form(f.q0), w**2 + w - W.square().sum(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["squares", "logit shift", "affine"])
def test_decay_is_taken_where_the_gradient_is(kind):
    """Nesterov's steps with decay: ``y(n)`` is where momentum alone leads from ``w(n)``."""
    f, law = (loss_of()[1], homogeneous_law(loss_of()[1], 1)) if kind == "squares" else audited(kind)
    rule = replace(nesterov(0.1), weight_decay=0.5)
    said = law.under(rule).steps
    w = descend(rule, f, f.q0, steps=4).q
    y = w[3] + rule.steps.memory_of(3) * (w[3] - w[2])
    values = {
        "C(w(n+1))": law.charge(w[4]), "C(y(n))": law.charge(y), "F(y(n))": law.form(y),
        "Q(w(n+1) - y(n))": law.square(w[4] - y),
    }  # fmt: skip
    assert balance(said.replace("= -", "= 0 - "), values) < 1e-11
    letter, rate = {"squares": ("C", 0.05), "logit shift": ("C", 0.1), "affine": ("C", 0.1)}[kind]
    squares = "" if kind == "logit shift" else "Q(w(n+1) - y(n))"
    assert balance(f"C(w(n+1)) - C(y(n)) = {squares} - {rate} {letter}(y(n))", values) > 1e-3  # control


def test_a_balance_with_a_source_is_no_law_of_any_rule():
    f, law = audited("source")
    g = torch.autograd.grad(f(q := f.q0.clone().requires_grad_()), q)[0]
    assert law.form(g, f.q0).abs().max() > 1e-3  # what all of them take to be 0
    for refused in (
        lambda: law.under(gradient_flow()),
        lambda: law.act(f.q0, 0.3),
        law.symmetry,
        lambda: law.gd_change(g, lr=0.1),
        lambda: law.heavy_ball_change(g, momentum=0.9),
        lambda: statement_under(law, torch.optim.Adam([f.q0])),
    ):
        with pytest.raises(ValueError, match=r"no symmetry: its balance has the source of 1: gelu, .* a Ledger"):
            refused()
    torch.testing.assert_close(g @ law.generator(f.q0), law.form(g, f.q0).sum())  # the generator is the form's own


# --- in the words of an audit -----------------------------------------------------------------------------------------


def audited_under(kind, make):
    """As :func:`audited`, with what the audit says of the law under an optimiser."""
    torch.manual_seed(0)
    models = {
        "rescaling": nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.5), nn.Linear(3, 2)),
        "logit shift": nn.Sequential(nn.Linear(4, 3)),
        "affine": nn.Sequential(Gain(), nn.Linear(4, 3)),
    }
    model = models[kind].double()
    given = model, 3 * X, Y, nn.functional.cross_entropy
    found = audit(*given, optimizer=make(list(model.parameters())))
    line = next(line for line in found.lines if line.kind == kind)
    law = next(law for law in found.laws if law.kind == kind)
    return flat_loss(*given), law, line.statement


def as_an_audit_writes(values):
    """The letters of an audit's statements."""
    after = values["C(n)"] + values["ΔC(n)"]
    of_step = {"ΔC": values["ΔC(n)"], "form(d, θ)": values["M(d(n))"], "Q(d)": values["Q(d(n))"]}
    return {**values, **of_step, "C(n+1)": after, "form(θ(n), θ(n))": values["F(n)"]}


def equation(said: str) -> str:
    """What a statement says of one step: its part that begins with a charge."""
    part = next(part for part in said.split(": ")[-1].split("; ") if part.startswith(("C(n+1)", "ΔC")))
    return part.split(", form(g, θ)")[0]


STOOD_THERE = {  # what was said of these laws, and is false
    ("affine", 1): "C(n+1) = 0.990025 C(n) + 0.01 Q(g)",
    ("affine", 3): "ΔC(n) - 0.9 ΔC(n-1) = Q(d(n)) + 0.9 Q(d(n-1)) - 0.01 C(n)",
    ("logit shift", 4): "ΔC(n) = 0.5 ΔC(n-1) - 0.005 C(n)",
    ("logit shift", 6): "ΔC(n) = 0.5 ΔC(n-1) - 0.005 C(n)",
}


@pytest.mark.parametrize("k", range(len(SETTINGS)), ids=lambda k: str(SETTINGS[k]))
@pytest.mark.parametrize("kind", ["rescaling", "logit shift", "affine"])
def test_what_an_audit_says_is_what_the_steps_do(kind, k):
    make = lambda parameters: torch.optim.SGD(parameters, **SETTINGS[k])  # noqa: E731
    f, law, said = audited_under(kind, make)
    values = as_an_audit_writes(three_steps(f, law, make))
    if said == "ΔC(n) = 0":
        assert values["ΔC"].abs().max() < 1e-14
    else:
        assert balance(equation(said), values) < 1e-10
    if (kind, k) in STOOD_THERE:
        assert balance(STOOD_THERE[kind, k], values) > 1e-3


RATES = {"lr": 0.1, "weight_decay": 0.5}
APART = {
    "AdamW": lambda p: torch.optim.AdamW(p, **RATES),
    "Adafactor": lambda p: torch.optim.Adafactor(p, **RATES),
    "Lion": lambda p: Lion(p, **RATES),
    "RAdam, as its group says": lambda p: torch.optim.RAdam(p, decoupled_weight_decay=True, **RATES),
    "Muon": lambda p: torch.optim.Muon(p, **RATES),
}
TOGETHER = {
    "Adam": lambda p: torch.optim.Adam(p, **RATES),
    "SGD with momentum": lambda p: torch.optim.SGD(p, momentum=0.9, **RATES),
}


@pytest.mark.parametrize("name", [*APART, *TOGETHER])
def test_one_list_says_whose_decay_acts_apart_from_the_gradient(name):
    """Two steps without a gradient: decay apart from it shrinks a weight by the same factor each time."""
    if name == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    p = nn.Parameter(torch.linspace(0.5, 2, 6, dtype=torch.float64).view(2, 3))
    optimizer = {**APART, **TOGETHER}[name]([p])
    points = [p.detach().clone()]
    for _ in range(2):
        p.grad = torch.zeros_like(p)
        optimizer.step()
        points.append(p.detach().clone())
    apart = all((b - 0.95 * a).abs().max() < 1e-14 for a, b in pairwise(points))
    group = optimizer.param_groups[0]
    assert apart == (name in APART)
    assert rates_of(optimizer, [group]).decoupled == apart
    assert decoupled_decay(optimizer, group) == (0.05 if apart else 0.0)


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Lion"])
@pytest.mark.parametrize("kind", ["rescaling", "logit shift", "affine"])
def test_what_decay_alone_makes_of_a_charge(kind, name):
    f, law, said = audited_under(kind, APART[name])
    q = f.q0.clone().requires_grad_()
    q.grad = torch.zeros_like(q)
    APART[name]([q]).step()
    before, after = law.charge(f.q0), law.charge(q.detach())
    alone = said.split("decay alone: ")[1].split("; ")[0]
    if kind == "affine":
        values = {"ΔC": after - before, "Q(θ)": law.square(f.q0), "form(θ, θ)": law.form(f.q0)}
        assert balance(alone, values) < 1e-11
        assert (after - 0.95**2 * before).abs().max() > 1e-3  # control: what stood there
    else:
        torch.testing.assert_close(after, float(alone.removeprefix("times ")) * before, rtol=1e-11, atol=1e-15)


def test_parameters_with_rates_of_their_own_have_the_general_form_alone():
    def make(parameters):
        groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:]}]
        return torch.optim.SGD(groups, lr=0.1)

    assert audited_under("affine", make)[2] == "form(g, θ) = 0 at every step; ΔC = 2 form(d, θ) + Q(d)"
