"""One table of what an optimiser makes of a law: its statements hold in the optimiser's own steps."""

import re
from itertools import pairwise

import pytest
import torch

from nlcompanion import flat_loss, homogeneous_law, linear_law, mlp
from nlcompanion.laws.under_optimizers import statement_under

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
    C = [law.charge(p) for p in points]
    d = [b - a for a, b in pairwise(points)]
    gradient = torch.autograd.grad(f(at := points[2].clone().requires_grad_()), at)[0]
    return {
        "ΔC(n-1)": C[2] - C[1], "ΔC(n)": C[3] - C[2], "C(n)": C[2],
        "Q(d(n-1))": law.form(d[1]), "Q(d(n))": law.form(d[2]), "Q(g)": law.form(gradient),
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
