"""The long runs behind ``book/results`` (private): each a function registered with ``results.result``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nlcompanion.datasets import Dataset, kmnist
from nlcompanion.descent import descend
from nlcompanion.laws import Law, homogeneous
from nlcompanion.learning_rules import LearningRule, nesterov, newtonian, sgd
from nlcompanion.networks import FlatLoss, flat_loss, mlp
from nlcompanion.results import describe, result, thin


@result("GU Fig. 1 on KMNIST: the squared norms of two layers and their balance under GD, ND and NAGD")
def gu_fig1_kmnist() -> dict:
    return two_layer_norms(kmnist("test").first(1000), widths=(784, 200, 200, 200, 10))


def two_layer_norms(
    data: Dataset, widths: tuple[int, ...], *, lr: float = 0.01, steps: int = 1500, accelerated_steps: int = 400
) -> dict:
    """GU Fig. 1 for any data set: the norms of W^(2) and W^(3) under gradient descent, ND and NAGD, full batch.

    The accelerated rules run for fewer steps: Newtonian dynamics has no friction, and the weights fly off.
    """
    settings = {
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
    law = homogeneous(f, settings["layer"]).total
    gd = _run(sgd(lr=lr), f, steps, _descent_record(f, law, lr))
    nd = _run(newtonian(lr=lr), f, accelerated_steps, _accelerated_record(f, law, lr, "nd"))
    nagd = _run(nesterov(lr=lr), f, accelerated_steps, _accelerated_record(f, law, lr, "nagd"))
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


def _accelerated_record(f: FlatLoss, law: Law, lr: float, kind: str):
    r"""Both norms, and both sides of Table 2's balance: <W, e> with e = -g as the steps themselves tell it.

    For ND, e is the second difference of the steps over eta, at w. For NAGD it is (w_(n+1) - y_n) / eta at y_n, where
    the gradient was taken; the differences of w alone balance only in the limit of small steps.
    """
    dt, n, before = lr**0.5, 0, None

    def record(t, q, v):
        nonlocal n, before
        if kind == "nd":
            at, force = q, (2 * v if n == 0 else v - before) / dt
        else:
            ahead = 0.0 if n == 0 else (n - 1) / (n + 2) * dt * before
            at, force = q + ahead, (dt * v - ahead) / lr
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
