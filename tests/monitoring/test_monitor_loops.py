"""A monitor in loops as other people write them: scalers, accumulation, closures, wrappers, compiled, in processes."""

import logging
import multiprocessing
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from watched import OPTIMIZERS, convnet, groups, kinds, layers, samples, train, watched

from nlcompanion.monitoring import Monitor

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def data():
    return samples()


def breaks(monitor, model, optimizers, data, layer):
    """The control of every loop: a fault in one layer is still found."""
    assert not monitor.alerts, monitor.report()
    assert monitor.stopped is None
    train(model, optimizers, data, steps=60, before=lambda n: layer.weight.grad.mul_(1.01))
    assert kinds(monitor) == ["broken gradient"]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_steps_that_a_scaler_leaves_out(data, kind, fused):
    model = layers()
    monitor, optimizers = watched(model, kind(groups(model, 1e-3), lr=1e-2, fused=fused), every=5)
    scaler, x, y = torch.amp.GradScaler("cpu", init_scale=1024.0), *data
    overflows = {19, 59, 60}
    for n in range(100):
        optimizers[0].zero_grad()
        loss = F.cross_entropy(model(x[n : n + 32]), y[n : n + 32])
        scaler.scale(loss * float("inf") if n in overflows else loss).backward()
        scaler.step(optimizers[0])
        scaler.update()
    assert monitor.skipped == (3 if fused else 0)  # one that is not fused is not called
    assert monitor.steps == (100 if fused else 97)
    steps = {row["step"] for row in monitor.records()}
    assert (20 in steps) is not fused  # nothing was moved there
    gradients = [row["gradient"] for row in monitor.records() if row["tensor"] == "3.weight"]
    assert max(gradients) < 10  # the scale is taken off
    assert ("left out after an overflow" in monitor.report()) is fused
    breaks(monitor, model, optimizers, data, model[3])


def test_accumulated_gradients(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["AdamW"](model))
    for n in range(240):
        F.cross_entropy(model(data[0][n : n + 16]), data[1][n : n + 16]).backward()
        if n % 4 == 3:
            optimizers[0].step()
            optimizers[0].zero_grad()
    assert monitor.steps == 60
    breaks(monitor, model, optimizers, data, model[3])


def test_a_closure(data):
    model = layers()
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model))

    def closure():
        optimizers[0].zero_grad()
        loss = F.cross_entropy(model(data[0]), data[1])
        loss.backward()
        return loss

    for _ in range(60):
        optimizers[0].step(closure)
    breaks(monitor, model, optimizers, data, model[3])


def test_lbfgs(data):
    model = layers().double()
    x, y = samples(torch.float64)
    monitor, (optimizer,) = watched(model, torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(25):
        optimizer.step(closure)
    assert monitor.steps == 25
    assert not monitor.alerts, monitor.report()
    assert len(monitor.laws) == 2
    assert "no law of the norm is known under LBFGS" in str(monitor.forecast(10))


def test_optimizers_that_take_turns(data):
    """As in a GAN: the second steps at every third round only."""
    model = layers()
    first, second = SGD(model[1].parameters(), lr=0.05), AdamW(list(model[3:].parameters()), lr=1e-3)
    monitor, _ = watched(model, [first, second], every=1)
    for n in range(90):
        for optimizer in (first, second):
            optimizer.zero_grad()
        F.cross_entropy(model(data[0][n : n + 32]), data[1][n : n + 32]).backward()
        first.step()
        if n % 3 == 0:
            second.step()
    assert not monitor.alerts
    assert monitor.stopped is None
    assert 89 <= monitor.steps <= 90


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_a_wrapped_model(data, wrap):
    model = layers()
    wrapped = wrap(model)
    monitor, optimizers = watched(wrapped, OPTIMIZERS["SGD"](model))
    train(wrapped, optimizers, data, steps=60)
    assert {row["tensor"] for row in monitor.records()} == {name for name, _ in model.named_parameters()}
    assert len(monitor.laws) == 2
    breaks(monitor, wrapped, optimizers, data, model[3])


def test_channels_last(data):
    model = convnet().to(memory_format=torch.channels_last)
    monitor, optimizers = watched(model, OPTIMIZERS["SGD"](model), every=1)
    twin = convnet()
    twin.load_state_dict(model.state_dict())
    other, of_twin = watched(twin, OPTIMIZERS["SGD"](twin), every=1)
    train(model, optimizers, data, steps=25)
    train(twin, of_twin, data, steps=25)
    for one, same in zip(monitor.records()[:20], other.records()[:20], strict=True):
        assert one.pop("tensor") == same.pop("tensor")
        assert one == pytest.approx(same, rel=1e-3, abs=1e-6, nan_ok=True)


def test_complex_and_empty_weights():
    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn, self.nothing = nn.Parameter(torch.randn(3, dtype=torch.complex64)), nn.Parameter(torch.zeros(0))

        def forward(self, x):
            return (x * self.turn).abs().sum() + self.nothing.sum()

    model = Turn()
    monitor, (optimizer,) = watched(model, torch.optim.Adam(model.parameters(), lr=1e-2))
    for _ in range(25):
        optimizer.zero_grad()
        model(torch.ones(3)).backward()
        optimizer.step()
    assert monitor.stopped is None
    first = monitor.records()[0]
    assert first["tensor"] == "turn"
    assert first["norm"] > 0


# --- two processes ----------------------------------------------------------------------------------------------------


def replicas(rank, address, results):
    """Two runs under DistributedDataParallel: a clean one, and one in which a process decays its weights by itself."""
    torch.set_num_threads(1)
    logging.getLogger("nlcompanion.monitor").setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    found = {}
    for run in ("clean", "out of step"):
        torch.manual_seed(0)
        model = layers()
        parallel = nn.parallel.DistributedDataParallel(model)
        optimizer = OPTIMIZERS["SGD"](model)
        monitor = Monitor(parallel, optimizer)

        def drift(n, run=run, model=model):
            if run == "out of step" and rank == 1 and n >= 22:
                with torch.no_grad():
                    model[3].weight.mul_(1 - 1e-5)

        train(parallel, optimizer, samples(), steps=80 if run == "out of step" else 40, seed=rank, after=drift)
        found[run] = [(alert.kind, alert.tensors, alert.since, alert.seen, str(alert)) for alert in monitor.alerts]
        found[f"{run}, notes"] = [*monitor.notes, monitor.stopped]
        monitor.close()
    results.put((rank, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def forked_from_a_process_that_has_loaded_torch():
    """Two replicas load it once: processes of another start method take seconds each."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed", "torch._dynamo"])
    return context


def test_two_replicas_out_of_step(tmp_path):
    context = forked_from_a_process_that_has_loaded_torch()
    results = context.Queue()
    address = os.path.join(tmp_path, "store")
    processes = [context.Process(target=replicas, args=(rank, address, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    for rank in range(2):
        assert found[rank]["clean"] == []
        assert found[rank]["clean, notes"] == [None]
        first = found[rank]["out of step"][0]
        assert first[0] == "replicas"
        assert first[1] == ("3.weight",)
        assert 22 < first[2] <= first[3] <= 80
        assert "between processes" in first[4]


def test_a_monitor_on_one_process_alone_waits_for_nobody(data, tmp_path):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = layers()
        optimizer = SGD(model.parameters(), lr=0.05)
        monitor = Monitor(model, optimizer, replicas=True)
        replica = next(rule for rule in monitor._inspection._rules if rule.kind == "replicas")
        assert replica._others == []
        replica._others, replica._silent = [1], {1: 0}  # another process that has no monitor
        train(model, optimizer, data, steps=200)
        assert not monitor.alerts
        assert any("process 1 is not heard of" in note for note in monitor.notes)
    finally:
        torch.distributed.destroy_process_group()
