"""The long runs behind ``book/results`` (private): each a function registered with ``results.result``."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nlcompanion.book.results import thin
from nlcompanion.datasets.dataset import Dataset, describe
from nlcompanion.datasets.kmnist import kmnist
from nlcompanion.dynamics.descent import descend
from nlcompanion.dynamics.learning_rules import LearningRule, nesterov, newtonian, sgd
from nlcompanion.laws.law import Law
from nlcompanion.laws.of_layers import homogeneous_law
from nlcompanion.networks.activations import RePU
from nlcompanion.networks.flat_loss import FlatLoss, flat_loss
from nlcompanion.networks.mlp import mlp
from studies.recipes import result


@result("GU Fig. 1 on KMNIST: the squared norms of two layers and their balance under GD, ND and NAGD")
def gu_fig1_kmnist() -> dict:
    return two_layer_norms(kmnist("test").first(1000), widths=(784, 200, 200, 200, 10))


def two_layer_norms(
    data: Dataset, widths: tuple[int, ...], *, lr: float = 0.01, steps: int = 1500, accelerated_steps: int = 400
) -> dict:
    """GU Fig. 1 for any data set: the norms of W^(2) and W^(3) under gradient descent, ND and NAGD, full batch.

    The accelerated rules run for fewer steps: Newtonian dynamics has no friction, and the weights fly off.
    """
    settings: dict[str, Any] = {
        "widths": list(widths),
        "activation": "relu",
        "bias": False,
        "init": "default",
        "seed": 0,
        "layer": 2,
        "loss": "cross entropy, mean over the samples",
        "batch": "all samples",
        "inputs": "standardised by the mean and deviation of all pixels",
        "lr": lr,
        "dtype": "float64",
        "steps": {"gd": steps, "nd": accelerated_steps, "nagd": accelerated_steps},
    }
    model = mlp(widths, settings["activation"], seed=settings["seed"])
    f = flat_loss(model, *data.tensors(flatten=True), F.cross_entropy)
    law = homogeneous_law(f, settings["layer"]).total
    gd = _run(sgd(lr=lr), f, steps, _descent_record(f, law, lr))
    nd, nagd = (
        _run(rule, f, accelerated_steps, _accelerated_record(f, law, rule))
        for rule in (newtonian(lr=lr), nesterov(lr=lr))
    )
    moved = min((gd[side] - gd[side][0]).abs().max() for side in ("reads", "writes"))
    drift = gd["drift"].abs().max()
    return {
        "settings": settings,
        "data": describe(data),
        "curves": {"gd": thin(gd), "nd": thin(nd), "nagd": thin(nagd)},
        "numbers": {
            "gd_drift_over_move": drift / moved,
            "gd_prediction_error_over_drift": (gd["drift"] - gd["predicted"]).abs().max() / drift,
            "nd_imbalance": _imbalance(nd),
            "nagd_imbalance": _imbalance(nagd),
        },
    }


@result("GU Fig. 2 on KMNIST: the squared norms of layers 2 and 4 with two layers of RePU(2) between them")
def gu_fig2_kmnist() -> dict:
    return layers_apart(kmnist("test").first(1000), widths=(784, 200, 200, 200, 200, 10))


def layers_apart(data: Dataset, widths: tuple[int, ...], *, lr: float = 1e-3, steps: int = 1500) -> dict:
    r"""GU Fig. 2 for any data set: gradient descent with ReLU, RePU(2), RePU(2), ReLU between five linear layers.

    What stays is :math:`|W^{(2)}|^2 - 2^2 |W^{(4)}|^2`. RePU(2) does not train from PyTorch's own initialisation, and
    from Kaiming's the loss starts so steep that the paper's rate of 0.01 breaks the law within a few steps.
    """
    p, k, h = 2, 2, 2
    settings: dict[str, Any] = {
        "widths": list(widths),
        "activations": ["relu", f"repu({p})", f"repu({p})", "relu"],
        "bias": False,
        "init": "kaiming",
        "seed": 0,
        "layers": [h, h + k],
        "p": p,
        "k": k,
        "loss": "cross entropy, mean over the samples",
        "batch": "all samples",
        "inputs": "standardised by the mean and deviation of all pixels",
        "lr": lr,
        "steps": steps,
        "dtype": "float64",
    }
    model = mlp(widths, ["relu", RePU(p), RePU(p), "relu"], init=settings["init"], seed=settings["seed"])
    f = flat_loss(model, *data.tensors(flatten=True), F.cross_entropy)
    law = homogeneous_law(f, h, across=k)
    run = _run(sgd(lr=lr), f, steps, _apart_record(f, law, lr))
    return {
        "settings": settings,
        "data": describe(data),
        "curves": {"gd": thin(run)},
        "numbers": {
            "slope": slope_of(run["writes"], run["reads"]),
            "slope_one_layer": slope_of(run["between"], run["reads"]),
            "prediction_error_over_drift": (run["drift"] - run["predicted"]).abs().max() / run["drift"].abs().max(),
        },
    }


def slope_of(x: Tensor, y: Tensor) -> Tensor:
    """The slope of ``y`` over ``x`` by least squares: in which ratio the two move, whatever their ups and downs."""
    x, y = x - x.mean(), y - y.mean()
    return (x @ y) / (x @ x)


def _apart_record(f: FlatLoss, law: Law, lr: float):
    """The squared norms of layers 2, 3 and 4 beside what :func:`_descent_record` keeps of the law across them."""
    record = _descent_record(f, law, lr)

    def wider(t, q, v):
        reads, between, writes = (f.unflatten(q)[f.names[h]].square().sum() for h in (1, 2, 3))
        return {**record(t, q, v), "reads": reads, "between": between, "writes": writes}

    return wider


def _imbalance(run: dict[str, Tensor]) -> Tensor:
    """The largest difference between the two sides of Table 2's balance, over the largest side; every step counts."""
    return (run["pull_reads"] - run["pull_writes"]).abs().max() / run["pull_reads"].abs().max()


def _run(rule: LearningRule, f: FlatLoss, steps: int, record) -> dict[str, Tensor]:
    with tqdm(total=steps + 1, desc=rule.name, disable=None) as bar:

        def counted(t, q, v):
            bar.update()
            return record(t, q, v)

        run = descend(rule, f, f.q0, steps=steps, record=counted)
    return {"t": run.t, **run.record}


def _descent_record(f: FlatLoss, law: Law, lr: float):
    """Both norms, the drift of their difference, and the sum of eta^2 g^T A g that must equal it."""
    predicted = 0.0

    def record(t, q, v):
        nonlocal predicted
        reads, writes = law.sides(q)
        row = {
            "loss": f(q),
            "reads": reads,
            "writes": writes,
            "drift": law.change(f.q0, q),
            "predicted": predicted,
        }
        predicted += float(law.gd_change(-v, lr=lr))  # v is -g for plain gradient descent
        return row

    return record


def _accelerated_record(f: FlatLoss, law: Law, rule: LearningRule):
    r"""Both norms, and both sides of Table 2's balance: <W, e> with e = -g as the steps themselves tell it.

    Step d_n keeps m_n d_(n-1) of the step before it, and the rest of it is eta e. For NAGD that is at y_n, where the
    gradient was taken; the differences of w alone balance only in the limit of small steps.
    """
    steps, n, before = rule.steps, 0, 0.0

    def record(t, q, v):
        nonlocal n, before
        kept = steps.time_step * steps.memory_of(n) * before
        share = steps.first_share if n == 0 else 1.0
        at = q + kept if steps.looks_ahead else q
        force = (steps.time_step * v - kept) / (share * steps.lr)
        reads, writes = law.sides(q)
        pull_reads, pull_writes = law.sides(at, force)
        n, before = n + 1, v
        return {
            "loss": f(q),
            "reads": reads,
            "writes": writes,
            "pull_reads": pull_reads,
            "pull_writes": pull_writes,
        }

    return record
