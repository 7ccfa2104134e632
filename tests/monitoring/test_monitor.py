"""What a monitor records: each figure against its definition, in constant memory, and what it hands on."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watched import OPTIMIZERS, convnet, groups, layers, samples, train, watched

from nlcompanion.adaptivity import forecast
from nlcompanion.monitoring import Monitor

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


@pytest.fixture(scope="module")
def data():
    return samples(torch.float64)


def rows(x):
    return x.flatten(1) if x.ndim > 1 else x.reshape(1, -1)


class ByHand:
    """The figures of one tensor by their definitions, step by step."""

    def __init__(self, p, group):
        self.p, self.group, self.steps = p, group, []

    def before(self, n):
        self.weight, self.gradient = rows(self.p.detach().clone()), rows(self.p.grad.clone())

    def after(self, n):
        after, lr, decay = rows(self.p.detach()), self.group["lr"], self.group["weight_decay"]
        old = self.weight
        tangent = (after / after.norm(dim=1, keepdim=True) - old / old.norm(dim=1, keepdim=True)).norm(dim=1)
        turns = 2 * torch.asin(tangent / 2)
        if not turns.isnan().any():  # a row of 0 has no direction
            assert torch.allclose(F.cosine_similarity(old, after, dim=1), turns.cos())
        decoupled = decay if self.group.get("decoupled_weight_decay") else 0.0
        update = ((1 - lr * decoupled) * old - after) / lr
        lengths = old.norm(dim=1) * self.gradient.norm(dim=1)
        self.steps.append(
            {
                "norm": old.norm(),
                "step_norm": (after - old).norm(),
                "angle": turns.square().mean().sqrt(),
                "update": update.norm(),
                "alignment": (old * update).sum() / (old.norm() * update.norm()),
                "gradient": self.gradient.norm(),
                "gradient_per_weight": self.gradient.norm() / old.norm(),
                "effective_lr": (turns.square().sum() / lengths.square().sum()).sqrt(),
                "lr": lr,
                "weight_decay": decay,
                "row_norm_min": old.norm(dim=1).min(),
                "row_norm_max": old.norm(dim=1).max(),
            }
        )


RULES = {
    "SGD with momentum": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
    "SGD, dampened": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, dampening=0.5, weight_decay=1e-3),
    "SGD, maximize": lambda model: SGD(model.parameters(), lr=1e-3, momentum=0.9, maximize=True),
    "SGD, Nesterov": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "SGD": lambda model: SGD(model.parameters(), lr=0.05),
    "AdamW": lambda model: AdamW(model.parameters(), lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("every", [1, 20])
@pytest.mark.parametrize("make", [layers, convnet])
@pytest.mark.parametrize("kind", RULES)
def test_the_figures_are_those_of_their_definitions(data, kind, make, every):
    """At every step SGD's buffers tell the step; at a stride a copy of the weights does."""
    torch.manual_seed(0)
    model = make().double()
    optimizer = RULES[kind](model)
    monitor = Monitor(model, optimizer, every=every, ignore=["decay"])
    hands = {name: ByHand(p, optimizer.param_groups[0]) for name, p in model.named_parameters()}

    def schedule(n):
        for hand in hands.values():
            hand.after(n)
        optimizer.param_groups[0]["lr"] *= 0.99

    train(
        model, optimizer, data, steps=45, after=schedule,
        before=lambda n: [hand.before(n) for hand in hands.values()],
    )  # fmt: skip
    records = monitor.records()
    steps = set(range(1, 46)) if every == 1 else {1, 2, 3, 4, 20, 40}
    assert {row["step"] for row in records} == steps
    for row in records:
        for figure, value in hands[row["tensor"]].steps[row["step"] - 1].items():
            expected = float(value) if math.isfinite(value) else math.nan  # of a vector of 0
            assert row[figure] == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True), (row, figure)
    assert not monitor.alerts


def test_the_effective_rate_of_plain_sgd(data):
    """Of a scale-invariant weight it is lr / |w|^2 by TK; for a weight that is not, the control, it is another."""
    torch.manual_seed(0)
    model = convnet().double()
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[0].weight.div_(model[0].weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1) / 2)
    monitor = Monitor(model, SGD(model.parameters(), lr=1e-3), every=1)
    train(model, monitor.optimizers, data, steps=3)
    of_filters, of_head = (
        next(row for row in monitor.records() if row["tensor"] == name) for name in ("0.weight", "4.weight")
    )
    assert of_filters["effective_lr"] == pytest.approx(1e-3 / 4, rel=1e-3)
    head = model[4].weight.detach()
    assert of_head["effective_lr"] != pytest.approx(1e-3 / float(head.square().sum() / len(head)), rel=1e-2)


def test_charges_and_defects_of_laws(data):
    torch.manual_seed(0)
    model = layers().double()
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model))
    before = []
    train(
        model, optimizers, data, steps=40,
        before=lambda n: before.append([p.detach().clone() for p in model.parameters()]),
    )  # fmt: skip
    assert [law.statement.partition(" =")[0] for law in monitor.laws] == [
        "|1.weight[i, :]|² + |1.bias[i]|² - |3.weight[:, i]|²",
        "|3.weight[i, :]|² + |3.bias[i]|² - |5.weight[:, i]|²",
    ]
    row = monitor.records("laws")[0]
    assert row["step"] == 4  # the first step after three that told the laws
    first, bias, second = before[3][:3]
    charge = first.square().sum() + bias.square().sum() - second.square().sum()
    assert row["charge"] == pytest.approx(float(charge), rel=1e-12)
    assert all(row["defect"] < 1e-14 for row in monitor.records("laws"))


# --- constant memory ------------------------------------------------------------------------------------------------


def test_the_record_stays_as_small_as_it_was_told():
    model = nn.Linear(3, 2)
    optimizer = SGD(model.parameters(), lr=1e-3)
    monitor = Monitor(model, optimizer, every=1, keep=32)
    for _ in range(1000):
        model(torch.ones(3)).sum().backward()
        optimizer.step()
    steps = sorted({row["step"] for row in monitor.records()})
    assert 16 <= len(steps) <= 33
    assert steps[-1] == 1000
    assert set(np.diff(steps[:-1])) == {32}
    everything = Monitor(model, optimizer, every=1, keep=None)
    for _ in range(100):
        optimizer.step()
    assert len(everything.records()) == 200


# --- what it hands on -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data):
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = AdamW(groups(model, 0.5), lr=2e-2)
    monitor = Monitor(model, optimizer, every=10)
    train(model, optimizer, data, steps=400)
    return monitor


def test_a_forecast_is_that_of_the_record(run):
    ahead = run.forecast(100)
    of_filters = next(one for one in ahead if one.tensor == "0.weight")
    mine = [row for row in run.records() if row["tensor"] == "0.weight"]
    column = {name: [row[name] for row in mine] for name in mine[0]}
    expected = forecast(
        column["step"], column["norm"], rule="normalized", lr=2e-2, weight_decay=0.5, decoupled=True,
        lrs=column["lr"], update_norms=column["update"], horizons=[100],
    )  # fmt: skip
    assert of_filters.possible
    assert of_filters.norm == expected.norm.item()
    assert (of_filters.norm_low, of_filters.norm_high) == (expected.norm_low.item(), expected.norm_high.item())
    assert of_filters.equilibrium_norm == expected.equilibrium_norm.item()
    falling = run.forecast(100, schedule=lambda step: 2e-2 / 10)
    other = next(one for one in falling if one.tensor == "0.weight")
    assert other.effective_rate < of_filters.effective_rate
    assert "0.weight" in str(ahead)
    assert "100 steps after step 400" in str(ahead)


def test_no_forecast_has_a_reason(data):
    torch.manual_seed(0)
    model = layers().double()
    optimizer = SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, optimizer, every=10)
    with pytest.raises(ValueError, match="nothing is recorded yet"):
        monitor.forecast(100)
    train(model, optimizer, data, steps=100)
    assert all(not one.possible and "a normalisation" in one.reason for one in monitor.forecast(50))
    filters = convnet().double()
    optimizer = SGD(filters.parameters(), lr=0.01, momentum=0.9)
    monitor = Monitor(filters, optimizer, every=10)
    train(filters, optimizer, data, steps=200)
    reasons = {one.tensor: one.reason for one in monitor.forecast(50) if not one.possible}
    assert set(reasons) == {"1.weight", "1.bias", "4.weight", "4.bias"}  # and the filters, before BatchNorm, have one


def test_a_report_and_a_picture(run):
    text = run.report()
    assert "400 steps of AdamW, watched every 10" in text
    assert "no alerts" in text
    assert all(name in text for name in ("0.weight", "turn per step", "|g|/|W|"))
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    figure = run.plot()
    norms = figure.axes[0].get_lines()[0]
    assert list(norms.get_xdata()) == sorted({row["step"] for row in run.records()})
    matplotlib.pyplot.close(figure)


class Writer:
    """TensorBoard's protocol."""

    def __init__(self):
        self.scalars, self.texts = [], []

    def add_scalar(self, tag, value, global_step):
        self.scalars.append((tag, value, global_step))

    def add_text(self, tag, text, global_step):
        self.texts.append((tag, text, global_step))


class Run:
    """wandb's protocol."""

    def __init__(self):
        self.logged = {}

    def log(self, values, step):
        self.logged[step] = values


def test_dashboards_get_each_record_as_it_comes(data):
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    monitor = Monitor(model, optimizer)
    writer, run, calls = Writer(), Run(), []
    for target in (writer, run, lambda values, step: calls.append(step)):
        monitor.log_to(target)
    train(model, optimizer, data, steps=45)
    assert list(run.logged) == calls == [1, 2, 3, 4, 20, 40]
    last = next(row for row in monitor.records() if row["step"] == 40 and row["tensor"] == "0.weight")
    assert run.logged[40]["monitor/norm/0.weight"] == last["norm"]
    assert ("monitor/angle/0.weight", last["angle"], 40) in writer.scalars
    assert all(math.isfinite(value) for _, value, _ in writer.scalars)
    assert "decay" in writer.texts[0][1]
    with pytest.raises(TypeError, match="a target is a SummaryWriter"):
        monitor.log_to(3)


def test_the_real_summary_writer(tmp_path, data):
    """What TensorBoard itself reads from the file that its writer has made."""
    pytest.importorskip("tensorboard", reason="no part of the tests' extra: it brings gRPC and a web server")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    torch.manual_seed(0)
    model = convnet().double()
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    monitor = Monitor(model, optimizer)
    with SummaryWriter(tmp_path) as writer:
        monitor.log_to(writer)
        train(model, optimizer, data, steps=45)
    events = EventAccumulator(str(tmp_path)).Reload()
    rows = [row for row in monitor.records() if row["tensor"] == "0.weight"]
    for figure in ("norm", "angle", "gradient_per_weight", "effective_lr"):
        seen = events.Scalars(f"monitor/{figure}/0.weight")
        assert [event.step for event in seen] == [row["step"] for row in rows]
        assert [event.value for event in seen] == pytest.approx([row[figure] for row in rows], rel=1e-6)
    (alert,) = monitor.alerts
    (text,) = events.Tensors("monitor/alerts/text_summary")
    assert text.step == alert.seen
    assert text.tensor_proto.string_val[0].decode() == str(alert)


def test_records_are_what_pandas_takes(run):
    rows = run.records()
    assert all(set(row) == set(rows[0]) for row in rows)
    assert all(isinstance(value, (int, float, str)) for row in rows for value in row.values())


# --- its end and its state ------------------------------------------------------------------------------------------


def test_it_stops_listening(data):
    torch.manual_seed(0)
    model = layers().double()
    optimizer = SGD(model.parameters(), lr=0.01)
    with Monitor(model, optimizer) as monitor:
        train(model, optimizer, data, steps=5)
    train(model, optimizer, data, steps=5)
    assert monitor.steps == 5
    assert not optimizer._optimizer_step_pre_hooks
    assert not model[1].weight._backward_hooks


def test_the_state_goes_through_a_file(data, tmp_path):
    def begin():
        torch.manual_seed(0)
        model = layers().double()
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, optimizer, Monitor(model, optimizer, every=10)

    whole_model, whole_optimizer, whole = begin()
    train(whole_model, whole_optimizer, data, steps=60)
    train(whole_model, whole_optimizer, data, steps=60, seed=1)
    model, optimizer, monitor = begin()
    train(model, optimizer, data, steps=60)
    torch.save([model.state_dict(), optimizer.state_dict(), monitor.state_dict()], tmp_path / "run.pt")
    again, optimizer, resumed = begin()
    of_model, of_optimizer, of_monitor = torch.load(tmp_path / "run.pt", weights_only=True)
    again.load_state_dict(of_model)
    optimizer.load_state_dict(of_optimizer)
    resumed.load_state_dict(of_monitor)
    train(again, optimizer, data, steps=60, seed=1)
    assert resumed.steps == 120
    for one, same in zip(resumed.records(), whole.records(), strict=True):
        assert one.pop("tensor") == same.pop("tensor")
        assert one == pytest.approx(same, rel=1e-9, abs=1e-12, nan_ok=True)
    assert resumed.notes == whole.notes
    assert [law.statement for law in resumed.laws] == [law.statement for law in whole.laws]
    for monitor, net, rule in ((whole, whole_model, whole_optimizer), (resumed, again, optimizer)):
        train(net, rule, data, steps=60, seed=2, before=lambda n, net=net: net[3].weight.grad.mul_(1.01))
        assert [alert.kind for alert in monitor.alerts] == ["broken gradient"]
    one, same = resumed.alerts[0], whole.alerts[0]
    assert (one.tensors, one.since, one.seen) == (same.tensors, same.since, same.seen)
    assert one.size == pytest.approx(same.size, rel=1e-6)
    last = Monitor(again, optimizer)
    last.load_state_dict(resumed.state_dict())
    assert last.alerts == resumed.alerts


# --- other devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Muon"])
def test_tensors_that_numpy_cannot_see_have_the_same_figures(data, kind, monkeypatch):
    """What a GPU runs, on a CPU."""

    def run():
        torch.manual_seed(0)
        model = convnet().double()
        monitor, optimizers = watched(model, OPTIMIZERS[kind](model), every=5)
        train(
            model, optimizers, data, steps=120,
            before=lambda n: model[4].bias.grad.mul_(1.01) if n >= 40 else None,
        )  # fmt: skip
        return monitor

    plain = run()
    for module in ("row_sums", "cut_sums"):
        monkeypatch.setattr(f"nlcompanion.monitoring.watch.{module}.is_plain", lambda p: False)
    other = run()
    for one, same in zip(other.records(), plain.records(), strict=True):
        assert one.pop("tensor") == same.pop("tensor")
        assert one == pytest.approx(same, rel=1e-6, abs=1e-12, nan_ok=True)
    assert [law.statement for law in other.laws] == [law.statement for law in plain.laws]
    assert [str(alert) for alert in other.alerts] == [str(alert) for alert in plain.alerts]
    assert other.stopped is None


def test_sums_that_arrive_late_change_nothing(data, monkeypatch):
    def run():
        torch.manual_seed(0)
        model = layers().double()
        monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model), every=5)
        train(
            model, optimizers, data, steps=200,
            before=lambda n: model[3].weight.grad.mul_(1.01) if n >= 90 else None,
        )  # fmt: skip
        return monitor

    at_once = run()
    # as from a GPU: each is here when the next one was sent
    late = "nlcompanion.monitoring.watch.transfers.Transfers._is_here"
    monkeypatch.setattr(late, lambda transfers, one: len(transfers._queue) > 1)
    delayed = run()
    assert [(a.kind, a.tensors) for a in delayed.alerts] == [(a.kind, a.tensors) for a in at_once.alerts]
    assert {row["step"] for row in delayed.records()} == {row["step"] for row in at_once.records()}
