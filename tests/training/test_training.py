"""train: torch's SGD to the last bit, the same run after an interruption, records that are what they say."""

import io
import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from contextlib import contextmanager, nullcontext

import attrs
import damages
import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from nlcompanion._storage import Damaged
from nlcompanion.datasets import Dataset, digits
from nlcompanion.networks import conv_bn
from nlcompanion.training import Run, TrainConfig, train
from nlcompanion.training import checkpoint as checkpoints
from nlcompanion.training.batches import Batches, load
from nlcompanion.training.loop import _Training
from nlcompanion.training.step import _sgd

SMALL = TrainConfig(subset=96, batch_size=32, epochs=4, lr_drops=(), lr=0.05)
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def filters(model: nn.Module) -> list[torch.Tensor]:
    return [module.weight for module in model if isinstance(module, nn.Conv2d)]


def assert_same(a: Run, b: Run) -> None:
    """The same weights, buffers, records and evaluations, to the last bit."""
    assert (a.status, a.steps, a.layers) == (b.status, b.steps, b.layers)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x.nan_to_num(), y.nan_to_num())
    for one, other in ((a.records, b.records), (a.epochs, b.epochs)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name].nan_to_num(), other[name].nan_to_num()) for name in one)


def photographs(n: int = 24, side: int = 16, seed: int = 0) -> Dataset:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, side, side), generator=g, dtype=torch.uint8)
    return Dataset("noise", images, torch.arange(n) % 4, ("a", "b", "c", "d"))


# --- settings -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    config = TrainConfig(dataset="tiny_imagenet", model="vgg11")
    assert (config.batch_size, config.momentum, config.weight_decay, config.epochs) == (128, 0.9, 1e-4, 100)
    assert config.lr_drops == (30, 60, 80)
    assert TrainConfig(epochs=25).lr_drops == (8, 15, 20)  # three tenths of 25 are seven and a half
    rates = [config.lr_at(epoch) / config.lr for epoch in (0, 29, 30, 59, 60, 79, 80, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rel=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr is a number > 0, got 0.0"),
        ({"lr": math.nan}, "lr is a number > 0, got nan"),
        ({"lr": "0.1"}, "lr is a number > 0, got '0.1'"),
        ({"lr": True}, "lr is a number > 0, got True"),
        ({"momentum": 1.0}, "momentum is a number >= 0 and < 1, got 1.0"),
        ({"weight_decay": -1e-4}, "weight_decay is a number >= 0"),
        ({"filter_weight_decay": -1.0}, "filter_weight_decay is a number >= 0"),
        ({"filter_lr": 0}, "filter_lr is a number > 0"),
        ({"eps": math.inf}, "eps is a number >= 0"),
        ({"label_noise": 1.5}, "label_noise is a number >= 0 and <= 1"),
        ({"init_scale": 0}, "init_scale is a number > 0"),
        ({"batch_size": 1}, 'integer >= 2, or "full" .* got 1; BatchNorm cannot normalise a batch of one'),
        ({"batch_size": 2.5}, "batch_size is an integer"),
        ({"batch_size": "all"}, "batch_size is an integer"),
        ({"batch_size": 2000}, "1438 training samples hold no batch of 2000; take batch_size=1438 or less"),
        ({"subset": 100}, "100 training samples hold no batch of 128"),
        ({"subset": 1439}, "digits has 1438 training samples, got subset=1439"),
        ({"subset": 1, "batch_size": "full"}, "subset is an integer >= 2"),
        ({"epochs": 0}, "epochs is an integer >= 1"),
        ({"epochs": 15, "lr_drops": (5, 15)}, r"between 0 and epochs = 15, got \(5, 15\)"),
        ({"lr_drops": (60, 30)}, "lr_drops rise"),
        ({"lr_drops": (30, 30)}, "lr_drops rise"),
        ({"lr_drops": 30}, "lr_drops are numbers of epochs"),
        ({"dataset": "tiny-imagenet"}, "dataset is one of .* did you mean 'tiny_imagenet'"),
        ({"model": "vgg"}, "did you mean 'vgg11'"),
        ({"model": []}, "model is one of"),
        ({"precision": "fp32"}, "precision is one of"),
        ({"precision": "tf32"}, 'take "float32", or device="cuda"'),
        ({"device": "gpu"}, 'device is "cpu", "cuda"'),
        ({"width": 0.01}, "width 0.01 leaves the first layer of conv_bn no channel"),
        ({"augment": True}, "a mirrored character of digits"),
        ({"augment": 1, "dataset": "tiny_imagenet"}, "augment is True or False"),
        ({"seed": -1}, "seed is an integer >= 0"),
        ({"seed": 0.5}, "seed is an integer >= 0"),
        ({"seed": 2**64}, "seed is an integer >= 0 and <= 18446744073709551615, got 18446744073709551616"),
        ({"epochs": 10**400}, "epochs is an integer >= 1 and <= 1000000000"),
        ({"device": "cuda:99999999999"}, 'device is "cpu", "cuda"'),
        ({"lr": 1e39}, r'lr = 1e\+39 is beyond float32, .* or precision="float64"'),
        (
            {"filter_weight_decay": 4e38, "precision": "bf16"},
            r"filter_weight_decay = 4e\+38 is beyond float32",
        ),
        ({"init_scale": 1e-310}, "init_scale is below 2.2e-308, .* got 1e-310"),
        ({"momentum": 1e-310, "precision": "float64"}, "momentum is below 2.2e-308"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_what_float32_holds_is_possible():
    assert TrainConfig(lr=3.4e38).lr == 3.4e38
    assert TrainConfig(lr=1e39, eps=1e-300, precision="float64").lr == 1e39
    assert TrainConfig(seed=2**64 - 1).seed == 2**64 - 1
    train(evolve(SMALL, epochs=1, seed=2**64 - 1))


def test_unknown_settings_are_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="'learning_rate' is no setting of a run; there are dataset, subset"):
        TrainConfig.from_dict({"learning_rate": 0.1})
    with pytest.raises(ValueError, match="'weightdecay' is no setting of a run; did you mean 'weight_decay'"):
        TrainConfig.from_dict({"weightdecay": 0.1})
    with pytest.raises(ValueError, match="a mapping"):
        TrainConfig.from_dict([("lr", 0.1)])


@settings(max_examples=30, deadline=None)
@given(
    lr=st.floats(1e-6, 10),
    momentum=st.floats(0, 0.999, allow_subnormal=False),
    epochs=st.integers(1, 200),
    batch_size=st.sampled_from([None, "full", 2, 64, np.int64(32)]),
    subset=st.sampled_from([None, 64, 1438]),
    constrain_norm=st.booleans(),
    filter_lr=st.sampled_from([None, 0.5]),
)
def test_settings_survive_json_and_name_their_run(**chosen):
    config = TrainConfig(**chosen)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config
    assert again.key == config.key
    assert evolve(config, seed=1).key != config.key
    assert all(0 < drop < config.epochs for drop in config.lr_drops)


def test_equal_settings_have_one_key():
    config = TrainConfig(lr=1, epochs=100, batch_size=None)
    assert config.key == TrainConfig(lr=np.float64(1.0), lr_drops=[30, 60, 80], batch_size="full").key
    assert len(config.key) == 16
    assert int(config.key, 16) >= 0


# --- the learning rule --------------------------------------------------------------------------------------------


def by_hand(config: TrainConfig) -> tuple[nn.Module, list[float]]:
    """The same run with torch's plain SGD, a Python float as its rate, and inputs made beforehand."""
    train_set, _ = load(config, None)
    inputs, labels = train_set.tensors(torch.float32)
    feed = Batches(train_set, config, CPU, torch.float32)
    model = conv_bn(seed=config.seed, eps=config.eps).to(memory_format=torch.channels_last).train()
    initial = [q.detach().flatten(1).norm(dim=1).clone() for q in filters(model)]
    sgd = torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    losses = []
    for epoch in range(config.epochs):
        feed.draw(epoch)
        for group in sgd.param_groups:
            group["lr"] = config.lr_at(epoch)
        for index in feed.order:
            sgd.zero_grad()
            loss = cross_entropy(model(inputs[index].to(memory_format=torch.channels_last)), labels[index])
            loss.backward()
            sgd.step()
            if config.constrain_norm:
                for q, r0 in zip(filters(model), initial, strict=True):
                    q.data.mul_((r0 / q.detach().flatten(1).norm(dim=1))[:, None, None, None])
            losses.append(loss.item())
    return model, losses


@pytest.mark.parametrize(
    "changes",
    [{}, {"momentum": 0.0}, {"weight_decay": 0.0}, {"lr_drops": (1, 3)}, {"batch_size": "full"}],
    ids=lambda changes: ", ".join(map(str, changes)) or "default",
)
def test_a_run_is_torchs_sgd_to_the_last_bit(changes):
    config = evolve(SMALL, **changes)
    run = train(config, stride=1)
    model, losses = by_hand(config)
    assert run.records["loss"].tolist() == losses
    for a, b in zip(run.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other, _ = by_hand(evolve(config, lr=config.lr * (1 + 1e-6)))  # the control: this comparison sees a millionth
    assert not torch.equal(run.model.head.weight, other.head.weight)


def test_the_projection_keeps_every_filters_norm():
    config = evolve(SMALL, constrain_norm=True)
    start = [q.detach().flatten(1).norm(dim=1) for q in filters(conv_bn(seed=config.seed))]
    moved = {}
    for constrained in (True, False):
        run = train(evolve(config, constrain_norm=constrained))
        end = [q.detach().flatten(1).norm(dim=1) for q in filters(run.model)]
        moved[constrained] = max((b / a - 1).abs().max().item() for a, b in zip(start, end, strict=True))
    assert moved[True] < 1e-6
    assert moved[False] > 1e-3
    model, _ = by_hand(config)
    for a, b in zip(train(config).model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_covariance_of_scale_rate_and_decay_is_exact():
    # (q, eta, k) -> (2 q, 4 eta, k / 4) for the filters changes not one bit of the loss
    config = evolve(SMALL, eps=0.0, weight_decay=2.0**-7, epochs=6, lr=0.25)
    scaled = {"init_scale": 2.0, "filter_lr": 1.0, "filter_weight_decay": 2.0**-9}
    plain, moved = train(config, stride=1), train(evolve(config, **scaled), stride=1)
    assert torch.equal(plain.records["loss"], moved.records["loss"])
    assert torch.equal(2 * plain.records["filter_norm"], moved.records["filter_norm"])
    assert torch.equal(4 * plain.records["lr"], moved.records["lr"])  # so that lr / |q|^2 is the same
    alone = train(evolve(config, init_scale=2.0), stride=1)
    assert alone.records["loss"][0] == plain.records["loss"][0]
    assert (alone.records["loss"] - plain.records["loss"]).abs().max() > 0.01


def test_the_full_batch_is_one_step_per_epoch():
    run = train(evolve(SMALL, batch_size="full", epochs=5), stride=1)
    assert run.steps == 5
    assert torch.equal(run.records["loss"], run.epochs["train_loss"])


# --- what is recorded ---------------------------------------------------------------------------------------------


class Witness:
    """Norms, gradients and directions as a hook sees them, in float64."""

    def __init__(self):
        self.q, self.g, self.steps = [], [], []

    def __call__(self, moment):
        self.steps.append(moment.step)
        self.q.append([q.detach().double().clone() for q in filters(moment.model)])
        self.g.append([q.grad.double().clone() for q in filters(moment.model)])


@pytest.mark.parametrize("constrained", [False, True])
def test_records_are_what_a_hook_sees(constrained):
    witness = Witness()
    run = train(evolve(SMALL, constrain_norm=constrained), stride=1, watch=witness)
    assert witness.steps == list(range(12)) == run.records["step"].tolist()
    norms = torch.tensor([[q.norm() for q in qs] for qs in witness.q], dtype=torch.float64)
    gradients = torch.tensor([[g.norm() for g in gs] for gs in witness.g], dtype=torch.float64)
    assert torch.allclose(run.records["filter_norm"], norms, rtol=1e-6)
    assert torch.allclose(run.records["gradient_norm"], gradients, rtol=1e-6)
    chords = [
        [(b / b.norm() - a / a.norm()).norm() for a, b in zip(one, other, strict=True)]
        for one, other in zip(witness.q, witness.q[1:], strict=False)
    ]
    assert torch.allclose(run.records["angular_update"][:-1], torch.tensor(chords, dtype=torch.float64), rtol=1e-4)


def test_the_radius_grows_by_the_square_of_the_step():
    # plain SGD on a scale-invariant weight: r'^2 - r^2 = eta^2 |g|^2, an identity of every mini-batch
    defects = {}
    for eps in (0.0, 1e-5):
        config = evolve(SMALL, eps=eps, momentum=0.0, weight_decay=0.0, precision="float64", lr=0.1)
        records = train(config, stride=1).records
        r2, kick = records["filter_norm"].square(), (config.lr * records["gradient_norm"]).square()
        defects[eps] = ((r2[1:] - r2[:-1] - kick[:-1]) / r2[1:]).abs().max().item()
    assert defects[0.0] < 1e-14
    assert defects[1e-5] > 1e-8


@pytest.mark.parametrize("stride", [1, 2, 5, 7, 100])
def test_a_stride_thins_the_records_and_changes_nothing_else(stride):
    every, some = train(SMALL, stride=1), train(SMALL, stride=stride)
    for name, values in every.records.items():
        assert torch.equal(some.records[name], values[::stride])
    assert torch.equal(every.model.head.weight, some.model.head.weight)
    assert torch.equal(every.epochs["test_accuracy"], some.epochs["test_accuracy"])


def test_rates_drop_in_the_records():
    run = train(evolve(SMALL, lr_drops=(1, 3), filter_lr=0.2), stride=1)
    assert run.records["lr"].tolist() == [0.2] * 3 + [0.2 / 10] * 6 + [0.2 / 100] * 3


def test_evaluations():
    run = train(evolve(SMALL, epochs=5), evaluate_every=2)
    assert run.epochs["epoch"].tolist() == [2, 4, 5]
    train_set, test_set = digits("train").balanced(96), digits("test")
    inputs, labels = test_set.tensors(torch.float32, standardize=train_set)
    with torch.no_grad():
        right = (run.model.eval()(inputs).argmax(1) == labels).double().mean().item()
        assert run.accuracy == right
        for module in run.model:
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        run.model.train()(train_set.tensors(torch.float32)[0])
        again = (run.model.eval()(inputs).argmax(1) == labels).double().mean().item()
    assert run.epochs["test_accuracy_recalibrated"][-1] == again != right


def test_recalibration_mends_statistics_that_lag():
    # a dozen steps move the running averages by 1 - 0.9^12 of the way
    run = train(evolve(SMALL, subset=None, batch_size=256, epochs=2, lr=0.3))
    assert run.epochs["test_accuracy_recalibrated"][-1] > run.accuracy + 0.1


def test_a_run_survives_json():
    run = train(SMALL)
    again = Run.from_dict(json.loads(json.dumps(run.to_dict(), allow_nan=False)))
    assert again.to_dict() == run.to_dict()
    assert again.config == SMALL
    assert again.model is None
    assert run.data["train"]["samples"] == 96
    assert run.environment["torch"] == torch.__version__
    assert 0 < run.duration < 60


def test_content_that_is_no_runs_is_refused():
    content = train(SMALL).to_dict()
    for broken, message in (
        ({k: v for k, v in content.items() if k != "records"}, "lacks records"),
        ({**content, "status": "fine"}, "finished or diverged"),
        ({**content, "records": {**content["records"], "loss": [1.0]}}, "the curve loss .* does not fit"),
        ({**content, "layers": ["conv1"]}, "does not fit"),
        ({**content, "epochs": {}}, "lacks the curves epoch"),
        ([], "lacks config"),
    ):
        with pytest.raises(ValueError, match=message):
            Run.from_dict(broken)


# --- runs that diverge --------------------------------------------------------------------------------------------


def test_a_run_that_diverges_stops_and_says_so(tmp_path):
    # decay that overshoots: q -> (1 - eta k) q with eta k = 50 multiplies the head's weights until they overflow
    config = evolve(SMALL, lr=50.0, weight_decay=1.0, momentum=0.0, epochs=40)
    run = train(config, stride=1, checkpoint=tmp_path / "run.pt")
    assert run.status == "diverged"
    assert 0 < run.steps < 40 * 3
    assert len(run.records["step"]) == run.steps
    assert run.records["loss"].isfinite().all()
    assert math.isnan(run.accuracy)
    again = Run.from_dict(json.loads(json.dumps(run.to_dict(), allow_nan=False)))
    assert again.status == "diverged"
    assert_same(train(config, stride=1, checkpoint=tmp_path / "run.pt"), run)


def test_a_run_that_diverges_at_once():
    config = evolve(SMALL, init_scale=3e38)  # the first convolution overflows
    run = train(config, stride=1)
    assert (run.status, run.steps, len(run.records["loss"])) == ("diverged", 0, 0)
    assert Run.from_dict(run.to_dict()).records["filter_norm"].shape == (0, 3)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_diverges_in_its_last_step(tmp_path, epochs):
    """No loss comes after it, and the loss before it is fine: its weights tell."""
    config = evolve(SMALL, batch_size="full", epochs=epochs, lr=1e38, weight_decay=1e3)
    run = train(config, checkpoint=tmp_path / "run.pt")
    assert (run.status, run.steps, len(run.epochs["epoch"])) == ("diverged", 1, 0)
    assert run.records["loss"].isfinite().tolist() == [True]
    assert math.isnan(run.accuracy)
    assert not run.model.head.weight.isfinite().all()
    assert_same(train(config, checkpoint=tmp_path / "run.pt"), run)
    assert train(evolve(config, lr=0.1, weight_decay=0.0)).status == "finished"


# --- interruptions ------------------------------------------------------------------------------------------------


class Interruption(Exception):
    pass


class Killer:
    """Ends the run at a step."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, moment):
        if moment.step == self.step:
            raise Interruption


def interrupted(config: TrainConfig, path, at: list[int], **options) -> Run:
    for step in at:
        with pytest.raises(Interruption):
            train(config, checkpoint=path, watch=Killer(step), **options)
    return train(config, checkpoint=path, **options)


EVERYTHING = evolve(SMALL, epochs=6, lr_drops=(3,), constrain_norm=True, label_noise=0.3, seed=5)


@pytest.mark.parametrize("at", [[0], [8], [4, 5, 16, 16]])
@pytest.mark.parametrize("changes", [{}, {"constrain_norm": False, "momentum": 0.0, "batch_size": None, "epochs": 18}])
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, at, changes):
    config = evolve(EVERYTHING, **changes)
    options = {"stride": 1 + at[0] // 2, "evaluate_every": 2}
    run = interrupted(config, tmp_path / "run.pt", at, **options)
    assert_same(run, train(config, **options))
    with pytest.raises(AssertionError):
        assert_same(run, train(evolve(config, seed=6), **options))


def test_a_finished_run_comes_back_without_a_step(tmp_path):
    run = train(EVERYTHING, checkpoint=tmp_path / "run.pt")
    assert_same(train(EVERYTHING, checkpoint=tmp_path / "run.pt", watch=Killer(0)), run)
    with pytest.raises(Interruption):
        train(EVERYTHING, checkpoint=tmp_path / "run.pt", resume=False, watch=Killer(0))


def test_photographs_augmented_and_interrupted(tmp_path):
    config = TrainConfig(dataset="custom", batch_size=8, epochs=4, augment=True, model="vgg11", width=0.05)
    data = (photographs(24), photographs(8, seed=1))
    run = interrupted(config, tmp_path / "run.pt", [5, 10], data=data)
    assert_same(run, train(config, data=data))
    plain = train(evolve(config, augment=False), data=data)
    assert not torch.equal(plain.records["loss"], run.records["loss"])


class Counter(Killer):
    """A watch with a state, like an online estimate."""

    def __init__(self, step: int):
        super().__init__(step)
        self.losses = []

    def __call__(self, moment):
        super().__call__(moment)
        self.losses.append(moment.loss.item())

    def state_dict(self):
        return {"losses": list(self.losses)}

    def load_state_dict(self, state):
        self.losses = list(state["losses"])


def test_a_watchs_state_travels_with_the_checkpoint(tmp_path):
    with pytest.raises(Interruption):
        train(SMALL, checkpoint=tmp_path / "run.pt", watch=Counter(7), stride=1)
    rest = Counter(-1)
    run = train(SMALL, checkpoint=tmp_path / "run.pt", watch=rest, stride=1)
    assert rest.losses == run.records["loss"].tolist()


def test_a_watch_with_a_state_cannot_join_or_leave_on_the_way(tmp_path):
    with pytest.raises(Interruption):
        train(SMALL, checkpoint=tmp_path / "without.pt", watch=Killer(7))
    with pytest.raises(ValueError, match=r"this call has a watch with a state and the run so far has none"):
        train(SMALL, checkpoint=tmp_path / "without.pt", watch=Counter(-1))
    with pytest.raises(Interruption):
        train(SMALL, checkpoint=tmp_path / "with.pt", watch=Counter(7))
    with pytest.raises(ValueError, match=r"it has a watch with a state and this call has none"):
        train(SMALL, checkpoint=tmp_path / "with.pt")
    run = train(SMALL, checkpoint=tmp_path / "with.pt", watch=Counter(-1))
    assert_same(train(SMALL, checkpoint=tmp_path / "with.pt"), run)  # it is over: there is nothing to miss


def test_a_watchs_state_that_no_checkpoint_can_give_back_is_refused(tmp_path):
    """At once, and not as a damaged checkpoint after the run was cut off."""
    path, watch = tmp_path / "run.pt", Counter(-1)
    watch.state_dict = lambda: {"mean": np.float64(0.5)}
    with pytest.raises(TypeError, match=r"the state_dict of watch holds more than .*scalar.*convert it"):
        train(SMALL, checkpoint=path, watch=watch)
    assert not list(tmp_path.iterdir())
    watch.state_dict = lambda: {"losses": [0.5], "more": (torch.ones(2), None, "text", {"a": True})}
    train(SMALL, checkpoint=path, watch=watch)
    train(SMALL, checkpoint=path, watch=watch)
    assert watch.losses == [0.5]


def test_a_watch_can_hook_the_optimiser():
    """As a ledger does: attached in the first call, it sees every step, the first one too."""
    seen = []

    def watch(moment):
        if moment.step == 0:
            moment.optimizer.register_step_pre_hook(lambda *_: seen.append(moment.model.head.weight.clone()))

    run = train(SMALL, watch=watch)
    assert len(seen) == run.steps
    assert torch.equal(seen[0], conv_bn().head.weight)
    assert not torch.equal(seen[-1], run.model.head.weight)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    train(SMALL, checkpoint=path)
    with pytest.raises(ValueError, match=r"run.pt is of another run: lr is 0.05 there and 0.06 here"):
        train(evolve(SMALL, lr=0.06), checkpoint=path)
    with pytest.raises(ValueError, match="stride and evaluate_every"):
        train(SMALL, checkpoint=path, stride=3)
    other = (digits("test"), digits("train"))
    with pytest.raises(ValueError, match="the checksum of the train set is"):
        train(SMALL, checkpoint=path, data=other)


@pytest.mark.parametrize("part", ["model", "momentum", "norms"])
def test_a_checkpoint_of_another_network_is_named(tmp_path, part):
    path = tmp_path / "run.pt"
    train(SMALL, checkpoint=path)
    content = torch.load(path, weights_only=True)
    other = {"weight": torch.ones(2)} if part == "model" else [torch.ones(7)] * len(content[part])
    torch.save({**content, part: other}, path)
    with pytest.raises(ValueError, match=r"the tensors in the checkpoint .*run\.pt are not those of this network"):
        train(SMALL, checkpoint=path)
    torch.save({**content, part: content[part]}, path)  # the control
    train(SMALL, checkpoint=path)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"is no file; name one inside it: .*run\.pt"):
        train(SMALL, checkpoint=tmp_path)
    assert tmp_path.is_dir()


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no checkpoint")
    elif how == "one bit":
        with zipfile.ZipFile(path) as parts:  # in the middle of the largest tensor
            largest = max(parts.infolist(), key=lambda part: part.file_size)
        content[largest.header_offset + 200 + largest.file_size // 2] ^= 1
        path.write_bytes(content)
    elif how == "code":
        path.write_bytes(pickle.dumps(Run.from_dict))  # anything that pickle would have to import
    elif how == "another torch file":
        torch.save({"weights": torch.ones(3)}, path)
    elif how == "a piece less":  # zipfile of Python 3.11 then goes to a negative place, which the system refuses
        path.write_bytes(content[:1000] + content[1010:])
    else:
        stored = torch.load(path, weights_only=True)
        torch.save(stored | FORGED[how](stored), path)


HOWS = ["cut", "a piece less", "empty", "text", "one bit", "code", "another torch file"]

# files that are whole, with what no run leaves
FORGED = {
    "an epoch in words": lambda stored: {"epoch": "x"},
    "a negative step": lambda stored: {"steps": -1},
    "a status of its own": lambda stored: {"status": "odd"},
    "an epoch past the end": lambda stored: {"status": "running", "epoch": 99},
    "running at the end": lambda stored: {"status": "running"},
    "finished before the end": lambda stored: {"epoch": 1, "steps": stored["steps"] // SMALL.epochs},
    "a thousand million steps": lambda stored: {"steps": 10**9},
    "a step less": lambda stored: {"steps": stored["steps"] - 1},
    "no evaluation": lambda stored: {"epochs": []},
    "an accuracy of 7": lambda stored: {"epochs": [[*row[:2], 7.0, 7.0] for row in stored["epochs"]]},
    "a loss that is none": lambda stored: {"epochs": [[row[0], math.nan, *row[2:]] for row in stored["epochs"]]},
    "evaluations in words": lambda stored: {"epochs": ["all", "good"]},
    "a record less": lambda stored: {"records": {name: x[:-1] for name, x in stored["records"].items()}},
    "records of other steps": lambda stored: {"records": stored["records"] | {"step": stored["records"]["step"] + 1}},
    "records of another rate": lambda stored: {"records": stored["records"] | {"lr": stored["records"]["lr"] * 2}},
    "losses below zero": lambda stored: {"records": stored["records"] | {"loss": -stored["records"]["loss"]}},
    "weights that are none": lambda stored: {"model": stored["model"] | {"head.bias": torch.full((10,), math.nan)}},
    "no records": lambda stored: {"records": {}},
    "lists for records": lambda stored: {"records": {name: x.tolist() for name, x in stored["records"].items()}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run and the checkpoint that it leaves."""
    path = tmp_path_factory.mktemp("finished") / "run.pt"
    return train(SMALL, checkpoint=path), path.read_bytes()


@pytest.mark.parametrize("how", [*HOWS, *FORGED])
def test_a_damaged_checkpoint_is_set_aside_by_name(tmp_path, finished, how):
    path = tmp_path / "run.pt"
    run, left = finished
    path.write_bytes(left)
    damage(path, how)
    damaged = path.read_bytes()
    with pytest.warns(UserWarning, match=r"run.pt is damaged .* renamed to run.pt.corrupt, and the run starts"):
        again = train(SMALL, checkpoint=path)
    assert_same(again, run)
    assert (tmp_path / "run.pt.corrupt").read_bytes() == damaged
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt", "run.pt.corrupt"]


def test_a_second_damaged_checkpoint_takes_another_name(tmp_path):
    for name in ("run.pt.corrupt", "run.pt.1.corrupt"):
        (tmp_path / "run.pt").write_text("no checkpoint")
        with pytest.warns(UserWarning, match=f"renamed to {name}"):
            train(SMALL, checkpoint=tmp_path / "run.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.pt", "run.pt.1.corrupt", "run.pt.corrupt"]


def plain(checkpoint: checkpoints.Checkpoint) -> dict:
    """A checkpoint's entries, its tensors as their bytes."""

    def inside(value):
        if isinstance(value, torch.Tensor):
            return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
        if isinstance(value, dict):
            return {name: inside(item) for name, item in value.items()}
        return [inside(item) for item in value] if isinstance(value, list | tuple) else value

    return inside(attrs.asdict(checkpoint, recurse=False))


def without_checksums(content: bytes) -> dict | None:
    """The control: what torch makes of a file, which does not compare the checksums of its parts."""
    try:
        found = torch.load(io.BytesIO(content), weights_only=True)
        return plain(checkpoints.Checkpoint(**{name: value for name, value in found.items() if name != "format"}))
    except Exception:
        return None


def test_no_damage_of_a_checkpoint_is_read_as_sound(tmp_path):
    path = tmp_path / "run.pt"
    train(SMALL, checkpoint=path)
    content, sound = path.read_bytes(), plain(checkpoints.read(path))
    assert without_checksums(content) == sound
    refused, mistaken = 0, 0
    for kind, other in damages.damaged(content, damages.OF_BYTES, each=60, seed="checkpoint"):
        path.write_bytes(other)
        try:
            assert plain(checkpoints.read(path)) == sound, kind  # in a gap between two parts
        except Damaged:
            refused += 1
        mistaken += without_checksums(other) not in (None, sound)
    assert refused > 300  # of 420
    assert mistaken > 30  # so many would be taken for good without the comparison


def test_a_checkpoint_is_replaced_in_one_move(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "run.pt"
    saved, real = [], torch.save

    def failing(content, file):
        real(content, file)
        saved.append(content["epoch"])
        if content["epoch"] == 3:
            raise OSError("no space left")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="no space"):
        train(SMALL, checkpoint=path)
    assert saved == [1, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]
    assert torch.load(path, weights_only=True)["epoch"] == 2
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("unexpected pos 128 vs 0\nat")))
    with pytest.raises(OSError, match=r"run\.pt could not be written \(unexpected pos 128 vs 0\); is the disk full"):
        train(SMALL, checkpoint=path)
    monkeypatch.undo()
    (path.parent / ".run.pt.0123.part").write_bytes(b"half of a checkpoint, from a process that was killed")
    assert_same(train(SMALL, checkpoint=path), train(SMALL))
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


# --- what is drawn ------------------------------------------------------------------------------------------------


def feed(config: TrainConfig) -> Batches:
    return Batches(load(config, None)[0], config, CPU, torch.float32)


def test_runs_of_one_seed_share_their_batches():
    one, noisy, other = feed(SMALL), feed(evolve(SMALL, label_noise=0.5, lr=1.0)), feed(evolve(SMALL, seed=1))
    orders = set()
    for epoch in range(3):
        for f in (one, noisy, other):
            f.draw(epoch)
        assert torch.equal(one.order, noisy.order)
        assert not torch.equal(one.order, other.order)
        assert one.order.flatten().sort().values.tolist() == list(range(96))
        orders.add(tuple(one.order.flatten().tolist()))
    assert len(orders) == 3


def test_what_is_left_of_an_epoch_is_dropped():
    f = feed(evolve(SMALL, batch_size=40))
    f.draw(0)
    assert f.order.shape == (2, 40)
    assert len(set(f.order.flatten().tolist())) == 80


def test_label_noise_draws_labels_anew_each_epoch():
    config = TrainConfig(label_noise=0.3, batch_size="full", lr_drops=())
    f, clean = feed(config), digits("train").labels
    changed = []
    for epoch in range(20):
        f.draw(epoch)
        changed.append((f.labels != clean).double())
    share = torch.stack(changed).mean().item()
    # nine of ten drawn labels are other ones; 5 standard deviations of 20 * 1438 draws
    assert share == pytest.approx(0.27, abs=5 * math.sqrt(0.27 * 0.73 / (20 * 1438)))
    assert not torch.equal(changed[0], changed[1])
    assert torch.equal(digits("train").labels, clean)
    f.draw(0)
    assert torch.equal((f.labels != clean).double(), changed[0])


def test_augmented_images_are_mirrored_and_shifted():
    data = photographs(24)
    f = Batches(data, TrainConfig(dataset="custom", augment=True, batch_size=24), CPU, torch.float32)
    f.draw(0)
    images, labels = f.batch(torch.zeros(1, dtype=torch.int64))
    padded = pad(data.tensors(torch.float32)[0], (2, 2, 2, 2), mode="reflect")
    for image, label, n in zip(images, labels, f.order[0], strict=True):
        down, right = (f.offsets[:, n] + 2).tolist()
        flipped = padded[n].flip(-1) if f.flips[n] else padded[n]
        assert torch.equal(image, flipped[:, down : down + 16, right : right + 16])
        assert label == data.labels[n]
    assert 0 < f.flips.sum() < 24
    assert f.offsets.min() == -2
    assert f.offsets.max() == 2


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    train(EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)


# --- data and devices ---------------------------------------------------------------------------------------------


def test_data_that_do_not_fit_are_refused():
    custom = TrainConfig(dataset="custom", batch_size=8, epochs=1)
    good = photographs()
    oblong = Dataset("oblong", good.images[..., :8], good.labels, good.classes)
    for data, message in (
        (None, r"call train\(config, data=\(train, test\)\)"),
        (good, "data is a pair"),
        ((good, digits("test")), "no training and test set of one kind"),
        ((good, good[:0]), "or empty"),
        ((oblong, oblong), "square images"),
        ((good[:7], good), "7 training samples hold no batch of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            train(custom, data=data)
    with pytest.raises(ValueError, match="the full batch of 1 training sample is a batch of one, which BatchNorm"):
        train(evolve(custom, batch_size="full"), data=(good[:1], good))
    assert train(evolve(custom, batch_size="full"), data=(good[:2], good)).status == "finished"
    with pytest.raises(ValueError, match=r"got dict; TrainConfig\.from_dict"):
        train({"lr": 0.1})
    with pytest.raises(ValueError, match="stride is an integer >= 1"):
        train(SMALL, stride=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(RuntimeError, match=r'device is "cuda" .* take device="cpu"'):
        train(evolve(SMALL, device="cuda"))


def test_precisions_on_a_cpu():
    single = train(SMALL, stride=1)
    double = train(evolve(SMALL, precision="float64"), stride=1)
    half = train(evolve(SMALL, precision="bf16"), stride=1)
    assert double.model.head.weight.dtype == torch.float64
    assert half.model.head.weight.dtype == torch.float32
    first = single.records["loss"][:4], double.records["loss"][:4], half.records["loss"][:4]
    assert torch.allclose(first[0], first[1], rtol=1e-5)
    assert torch.allclose(first[0], first[2], rtol=2e-2)
    assert not torch.equal(first[0], first[2])


def test_backend_flags_are_put_back():
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    seen = []
    train(SMALL, watch=lambda moment: seen.append(cudnn.allow_tf32))
    assert set(seen) == {False}
    assert before == (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark)


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_what_is_switched_around_a_run_does_not_reach_it(around):
    run = train(SMALL)
    with around():
        assert_same(train(SMALL), run)
        loss = conv_bn()(torch.randn(4, 1, 8, 8)).sum()  # the control
    assert loss.dtype != torch.float32 or not loss.requires_grad


SWITCHES = {
    "none": "",
    "all": "b.fp32_precision = 'tf32'\n",
    "products": "b.cuda.matmul.fp32_precision = 'tf32'\n",
    "convolutions": "b.cudnn.conv.fp32_precision = 'ieee'\n",
}


# each in a child of one process that has loaded torch, whose switches nobody has touched; it computes nothing itself,
# since children of a process whose threads have worked wait for these for ever
SWITCHED = """
import os, sys, traceback, torch, torch._dynamo
from nlcompanion import TrainConfig, train
b = torch.backends
places = (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv)

def state():
    return [place.fp32_precision for place in places]

def look(name, switch):
    default, seen = state(), []
    exec(switch)
    before = state()
    train(TrainConfig(subset=64, batch_size=32, epochs=1), watch=lambda moment: seen.append(state()))
    assert state() == before, (before, state())
    assert (before == default) is (name == "none")
    assert seen and not any("tf32" in inside[1:2] + inside[3:4] for inside in seen), seen

for name, switch in SWITCHES.items():
    child = os.fork()
    if not child:
        try:
            look(name, switch)
        except BaseException:
            print(traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(name, os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def switched():
    """The exit status of each child, and what all of them said."""
    program = SWITCHED.replace("SWITCHES", repr(SWITCHES))
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300)
    return dict(line.split() for line in run.stdout.splitlines()), run.stderr


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")
@pytest.mark.parametrize("which", SWITCHES)
def test_torchs_newer_switches_are_put_back(switched, which):
    """They make torch refuse to tell the older ones; unset ones stay unset."""
    ended, said = switched
    assert ended.get(which) == "0", said


def test_a_bar_where_it_is_asked_for(capsys):
    train(SMALL, progress=False)
    assert capsys.readouterr().err == ""
    train(SMALL, progress=True)
    assert "12/12" in capsys.readouterr().err


class Operations(TorchDispatchMode):
    """What a step asks of the device, with the shapes; asking for a number would stall a GPU and break a capture."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(x.shape) for x in args if isinstance(x, torch.Tensor)]
        self.calls.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(
    "config",
    [EVERYTHING, TrainConfig(dataset="custom", batch_size=8, epochs=4, augment=True, model="vgg11", width=0.05)],
    ids=["digits", "photographs"],
)
def test_a_step_can_be_captured(config, record):
    """The same operations in every step, none of which waits for a number, on tensors that keep their places."""
    data = (photographs(24), photographs(8, seed=1)) if config.dataset == "custom" else None
    job = _Training(config, load(config, data), CPU, 1, 1, None)
    stepper = job.stepper
    fixed = [*stepper.model.state_dict().values(), *stepper.buffers(), stepper.rows, stepper.losses, job.feed.order]
    places, runs = [x.data_ptr() for x in fixed], []
    for epoch in range(2):
        stepper.start_epoch(epoch)
        for _ in range(job.feed.steps):
            with Operations() as seen:
                stepper(record)
            runs.append(seen.calls)
    assert all(calls == runs[0] for calls in runs)
    assert len(runs[0]) > 50
    stalls = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "equal.default")
    assert not [name for name, _ in runs[0] if any(stall in name for stall in stalls)]
    assert places == [x.data_ptr() for x in fixed]
    stepper.watch = lambda moment: moment.loss.item()  # the control
    stepper.start_epoch(2)
    with Operations() as seen:
        stepper(record)
    assert any("_local_scalar_dense" in name for name, _ in seen.calls)


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(
    "changes", [{"augment": True, "filter_lr": 0.3}, {"constrain_norm": True, "label_noise": 0.2}, {"momentum": 0.0}]
)
def test_a_step_stays_on_its_device(changes, record):
    """torch's meta device has no numbers to give, and what is computed from its tensors lies there too."""
    config = TrainConfig(dataset="custom", batch_size=8, epochs=2, model="vgg11", width=0.05, **changes)
    job = _Training(config, (photographs(24), photographs(8, seed=1)), torch.device("meta"), 1, 1, None)
    stepper = job.stepper
    stepper.start_epoch(0)
    stepper(record)
    assert {x.device.type for x in (*stepper.model.state_dict().values(), stepper.rows, stepper.losses)} == {"meta"}
    stepper.watch = lambda moment: moment.loss.item()  # the control
    stepper.start_epoch(1)
    with pytest.raises(RuntimeError, match="meta"):
        stepper(record)


def test_the_step_size_on_a_gpu_is_of_the_type_that_its_kernel_reads(monkeypatch):
    """float32 in a tensor, whatever torch's default; in float64 a number, which rounds nothing and is not captured."""
    zeros, model = torch.zeros, conv_bn()
    monkeypatch.setattr(torch, "zeros", lambda *args, device=None, **rest: zeros(*args, **rest))
    torch.set_default_dtype(torch.float64)
    try:
        for precision, dtype in (("float32", torch.float32), ("bf16", torch.float32), ("float64", None)):
            config = evolve(SMALL, precision=precision, device="cuda", filter_lr=0.5)
            sgd = _sgd(model, filters(model), config, torch.device("cuda"))
            rates = [group["lr"] for group in sgd.param_groups]
            assert [getattr(rate, "dtype", None) for rate in rates] == [dtype] * 2
            assert {group["fused"] or False for group in sgd.param_groups} == {dtype is not None}
    finally:
        torch.set_default_dtype(torch.float32)


class Pretence:
    """CUDA's streams and graphs for a CPU: a capture runs its body, and a replay does again what the body did."""

    def __init__(self, monkeypatch, stepper):
        self.stepper, self.captured = stepper, []
        original = stepper._step

        def step(record):
            self.last = record
            original(record)

        stepper._step = step
        nothing = lambda *args, **kwargs: nullcontext()  # noqa: E731
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", nothing)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda *args: self)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(original))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    def wait_stream(self, other):
        pass

    def stream(self, stream):
        self.warm = stream
        return nullcontext()

    @contextmanager
    def graph(self, graph, pool, stream):
        assert stream is self.warm  # torch's own would be on the device of the first capture of the process
        yield
        graph.record = self.last


class Graph:
    def __init__(self, step):
        self.step, self.record = step, None

    def replay(self):
        self.step(self.record)


@pytest.mark.parametrize("taken", [0, 2])
def test_a_capture_leaves_no_trace(monkeypatch, taken):
    """Warming up and capturing take eight steps; weights, statistics, momentum and places are as before."""
    runs = []
    for captured in (False, True):
        job = _Training(EVERYTHING, load(EVERYTHING, None), CPU, 2, 1, None)
        with tqdm(disable=True) as bar:
            for _ in range(taken):
                job.epoch(bar)
            if captured:
                with monkeypatch.context() as patch:
                    Pretence(patch, job.stepper)
                    job.stepper.capture()
                assert isinstance(job.stepper._plain.__self__, Graph)
            while not job.done:
                job.epoch(bar)
        runs.append(job.run())
    assert_same(*runs)


def test_a_compiled_run_compiles_the_loss_and_nothing_else(monkeypatch):
    """A compiler that changes nothing changes no bit; one that doubles the loss is seen."""
    plain, given = train(SMALL), []

    def compiler(factor):
        def compile_(function, **options):
            given.append(function.__name__)
            return lambda: factor * function()

        return compile_

    monkeypatch.setattr(torch, "compile", compiler(1))
    assert_same(train(SMALL, compiled=True), plain)
    assert_same(train(SMALL), plain)
    assert given == ["_loss"]
    monkeypatch.setattr(torch, "compile", compiler(2))  # the control
    assert not torch.equal(train(SMALL, compiled=True).model.head.weight, plain.model.head.weight)


# --- on a GPU -----------------------------------------------------------------------------------------------------


@needs_cuda
@pytest.mark.parametrize("model", ["conv_bn", "vgg11"])
def test_cpu_and_gpu_agree_in_the_first_steps(model):
    # float32 sums in another order: 1e-6 relative per step, amplified by training
    config = TrainConfig(
        model=model, width=1.0 if model == "conv_bn" else 0.25, subset=256, batch_size=64, epochs=2, lr=0.05
    )
    cpu, gpu = train(config, stride=1), train(evolve(config, device="cuda"), stride=1)
    for name in ("loss", "filter_norm", "gradient_norm", "angular_update"):
        assert torch.allclose(cpu.records[name][:5], gpu.records[name][:5], rtol=1e-3), name
    other = train(evolve(config, lr=1.1 * config.lr), stride=1)  # the control
    assert not torch.allclose(cpu.records["angular_update"][:5], other.records["angular_update"][:5], rtol=1e-3)


@needs_cuda
def test_cpu_and_gpu_agree_in_double_precision():
    """Also in the step size: float32's 0.05 is off by 1.5e-8, and so would be every turn."""
    config = evolve(SMALL, precision="float64")
    cpu, gpu = train(config, stride=1), train(evolve(config, device="cuda"), stride=1)
    for name in ("loss", "filter_norm", "gradient_norm", "angular_update"):
        assert torch.allclose(cpu.records[name][:5], gpu.records[name][:5], rtol=1e-10), name


@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_captured_run_is_the_eager_one(monkeypatch, precision):
    """To the last bit, where cuDNN takes only algorithms that always sum in the same order."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = evolve(EVERYTHING, device="cuda", precision=precision, momentum=0.9)
    graph, eager = train(config, stride=2), train(config, stride=2, capture=False)
    assert_same(graph, eager)
    other = train(evolve(config, lr=config.lr * (1 + 1e-6)), stride=2)  # the control
    assert not torch.equal(other.model.head.weight, eager.model.head.weight)


@needs_cuda
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bf16", 1e-2)])
def test_a_compiled_run_begins_like_the_plain_one(precision, tolerance):
    """Its first step, sums in another order; a bfloat16 activation has two to three digits. Then rounding grows."""
    config = evolve(EVERYTHING, device="cuda", precision=precision, momentum=0.9)
    compiled, plain = train(config, stride=1, compiled=True), train(config, stride=1)
    other = train(evolve(config, seed=1), stride=1)  # the control
    for name in ("loss", "filter_norm", "gradient_norm", "angular_update"):
        assert torch.allclose(compiled.records[name][0], plain.records[name][0], rtol=tolerance), name
    for name in ("loss", "gradient_norm"):
        assert not torch.allclose(other.records[name][0], plain.records[name][0], rtol=tolerance), name
    assert compiled.steps == plain.steps


@needs_cuda
def test_a_captured_run_resumes(tmp_path):
    config = evolve(EVERYTHING, device="cuda")
    run = interrupted(config, tmp_path / "run.pt", [8])
    whole = train(config)
    assert torch.allclose(run.records["loss"], whole.records["loss"], rtol=1e-2)
