"""A ledger in loops as other people write them: scalers, closures, wrappers, several optimizers, wrapped models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from loops import flat, laws_of, network, samples, train
from torch import nn

from nlcompanion.monitoring import Ledger, LedgerError

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
FAULT = r"gradient of 3\.weight is 1\.001 times"


@pytest.fixture(scope="module")
def data():
    return samples()


def broken(ledger, model, optimizer, data, match=FAULT):
    """The control of every loop: a fault of a thousandth in one layer is still found."""
    train(model, optimizer, data, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    with pytest.raises(LedgerError, match=match):
        ledger.check()


def adds_up(ledger, start, model):
    for law, account in zip(ledger.laws, ledger, strict=True):
        change = law.charge(flat(model)) - law.charge(start)
        torch.testing.assert_close(account.change.sum(0), change.double(), rtol=1e-5, atol=1e-6)


# --- gradient scalers -----------------------------------------------------------------------------------------------

SCALED = {
    "SGD": lambda p, fused: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, fused=fused),
    "SGD, nesterov": lambda p, fused: SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=fused),
    "SGD, rates of their own": lambda p, fused: SGD(
        [{"params": [x], "lr": 0.02 * (k + 1)} for k, x in enumerate(p)], momentum=0.9, weight_decay=1e-3, fused=fused
    ),
    "AdamW": lambda p, fused: AdamW(p, lr=0.01, fused=fused),
}


def scaled_steps(model, optimizer, data, scaler, overflows, steps=20, before=None):
    x, y = data[0].float(), data[1]
    for n in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[n * 16 : n * 16 + 16]), y[n * 16 : n * 16 + 16])
        scaler.scale(loss * float("inf") if n in overflows else loss).backward()
        if before is not None:
            before(n)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("kind", SCALED)
def test_steps_that_a_scaler_leaves_out(data, kind, fused):
    model = network(dtype=torch.float32)
    optimizer = SCALED[kind](list(model.parameters()), fused)
    ledger = Ledger(laws_of(model, data), model, optimizer, every=1)
    scaler, start = torch.amp.GradScaler("cpu", init_scale=1024.0), flat(model)
    scaled_steps(model, optimizer, data, scaler, overflows=(3, 7, 8))
    assert ledger.check() < 1e-6
    adds_up(ledger, start, model)
    assert ledger.steps == (20 if fused else 17)
    assert ledger.skipped == (3 if fused else 0)
    if fused:
        for name in ("change", "finite_step", "momentum", "decay", "rates", "optimizer"):
            assert not getattr(ledger[0], name)[[3, 7, 8]].any()
    scaled_steps(model, optimizer, data, scaler, (), steps=1, before=lambda n: model[3].weight.grad.mul_(1.01))
    with pytest.raises(LedgerError, match=r"gradient of 3\.weight is 1\.01 times"):
        ledger.check()


def test_the_first_step_may_be_left_out(data):
    model = network(dtype=torch.float32)
    optimizer = AdamW(model.parameters(), lr=0.01, fused=True)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    scaled_steps(model, optimizer, data, torch.amp.GradScaler("cpu", init_scale=1024.0), overflows=(0,), steps=4)
    assert ledger.check() < 1e-6
    assert ledger.skipped == 1


def test_a_step_that_leaves_itself_out(data):
    class Careful(SGD):
        def step(self, closure=None):
            if all(p.grad.isfinite().all() for group in self.param_groups for p in group["params"]):
                return super().step(closure)

    model = network()
    optimizer = Careful(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, before=lambda n: model[1].weight.grad.fill_(torch.nan) if n in (3, 9) else None)
    assert ledger.check() < 1e-12
    assert (ledger.steps, ledger.skipped) == (20, 2)


# --- half precision -------------------------------------------------------------------------------------------------

HALF_PRECISION = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "SGD without momentum": lambda p: SGD(p, lr=0.05),
    "AdamW": lambda p: AdamW(p, lr=1e-3),
}


def under_autocast(model, optimizer, data, steps, before=None):
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(data[0].float()), data[1])
        loss.backward()
        if before is not None:
            before()
        optimizer.step()


@pytest.mark.parametrize("kind", HALF_PRECISION)
def test_autocast_has_the_tolerance_of_its_dtype(data, kind):
    model = network(dtype=torch.float32)
    optimizer = HALF_PRECISION[kind](model.parameters())
    ledger = Ledger(laws_of(model, data), model, optimizer)
    under_autocast(model, optimizer, data, 60)
    assert 1e-5 < ledger.check() < ledger.tolerance == 8 * torch.finfo(torch.bfloat16).eps
    model[3].requires_grad_(False)  # what is frozen shows nevertheless
    under_autocast(model, optimizer, data, 5)
    with pytest.raises(LedgerError, match=r"3\.weight( was| and 3\.bias were) frozen .* from step 61 on"):
        ledger.check()
    plain = network(dtype=torch.float32)
    optimizer = HALF_PRECISION[kind](plain.parameters())
    ledger = Ledger(laws_of(plain, data), plain, optimizer)
    train(plain, optimizer, data, steps=3)
    assert ledger.check() < ledger.tolerance == 1e-6


def test_autocast_that_begins_later_is_named(data):
    model = network(dtype=torch.float32)
    optimizer = SGD(model.parameters(), lr=0.1)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=4)
    under_autocast(model, optimizer, data, 6)
    with pytest.raises(LedgerError, match=r"first at step 5 .*no more than the digits of bfloat16 \(autocast\)"):
        ledger.check()


# --- closures and subclasses ----------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "SGD, rates of their own": lambda p: SGD([{"params": [x], "lr": 0.02 * (k + 1)} for k, x in enumerate(p)]),
    "AdamW": lambda p: AdamW(p, lr=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01, weight_decay=1e-2, decoupled_weight_decay=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=1e-2),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.05, max_iter=4),
}


@pytest.mark.parametrize("how", ["whole", "empty", "positional"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_with_a_closure(data, kind, how):
    if kind == "LBFGS" and how == "empty":
        pytest.skip("LBFGS needs the loss from its closure")
    model, (x, y) = network(), data
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    ledger, start, fault = Ledger(laws_of(model, data), model, optimizer), flat(model), [1.0]

    def whole():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[:64]), y[:64])
        loss.backward()
        model[3].weight.grad.mul_(fault[0])
        return loss

    def step():
        if how == "empty":  # as Lightning's manual optimisation has it
            whole()
            optimizer.step(closure=lambda: None)
        elif how == "positional":
            optimizer.step(whole)
        else:
            optimizer.step(closure=whole)

    for _ in range(5):
        step()
    assert ledger.check() < 1e-12
    assert ledger.steps == 5
    adds_up(ledger, start, model)
    fault[0] = 1.001
    step()
    with pytest.raises(LedgerError):
        ledger.check()


def test_a_step_that_calls_its_parents_is_booked_once(data):
    SGD([torch.zeros(1, requires_grad=True)], lr=0.1)  # whose step runs hooks from now on

    class Clipping(SGD):
        def step(self, closure=None):
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
            return super().step(closure)

    model = network()
    optimizer = Clipping(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data)
    assert ledger.check() < 1e-12
    assert ledger.steps == 20

    class Shrinking(SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["params"][0].mul_(0.99)

    optimizer = Shrinking(model.parameters(), lr=0.1)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=1)
    with pytest.raises(LedgerError, match=r"Shrinking has a step of its own, which moved 1\.weight otherwise"):
        ledger.check()


def test_a_step_that_ends_in_an_exception_is_no_step(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=2)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(stop)
    train(model, optimizer, data, steps=2)
    assert ledger.steps == 4
    assert ledger.check() < 1e-12
    broken(ledger, model, optimizer, data)


# --- optimizers within optimizers -----------------------------------------------------------------------------------


class Delegating(torch.optim.Optimizer):
    """As accelerate's, SWA's and Lookahead's wrappers are made: without Optimizer.__init__."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Lookahead(Delegating):
    """Every third step the weights go half the way back, written through .data as the published code does."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.slow = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        self.count = 0

    def step(self, closure=None):
        super().step(closure)
        self.count += 1
        if self.count % 3 == 0:
            fast = [p for group in self.optimizer.param_groups for p in group["params"]]
            for p, slow in zip(fast, self.slow, strict=True):
                slow.add_(p.detach() - slow, alpha=0.5)
                p.data.copy_(slow)


@pytest.mark.parametrize("inner", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, lr=0.01)])
@pytest.mark.parametrize("wrap", [Delegating, Lookahead, lambda o: Delegating(Delegating(o))])
def test_a_wrapped_optimizer_is_followed(data, wrap, inner):
    model = network()
    optimizer = wrap(inner(model.parameters()))
    ledger, start = Ledger(laws_of(model, data), model, optimizer, every=1), flat(model)
    train(model, optimizer, data, steps=10)
    assert ledger.check() < 1e-12
    assert ledger.steps == 10
    assert bool(ledger[0].outside.any()) == (wrap is Lookahead)
    if wrap is Lookahead:
        assert ledger[0].outside.abs().amin(1).nonzero().flatten().tolist() == [3, 6, 9]
    adds_up(ledger, start, model)
    broken(ledger, model, optimizer, data)


def test_a_wrapper_that_hides_what_is_inside_is_refused(data):
    class Two(Delegating):
        def __init__(self, one, other):
            self.one, self.other = one, other

        param_groups = property(lambda self: self.one.param_groups + self.other.param_groups)

    model = network()
    parameters = list(model.parameters())
    with pytest.raises(ValueError, match=r"Two never ran Optimizer.__init__.*holds 2 optimizers; pass the ones inside"):
        Ledger(laws_of(model, data), model, Two(SGD(parameters[:2], lr=0.1), SGD(parameters[2:], lr=0.1)))


# --- several optimizers ---------------------------------------------------------------------------------------------


def in_two(model, data, one, other, steps=10, before=None, skip_other=()):
    x, y = data
    for n in range(steps):
        for optimizer in (one, other):
            optimizer.zero_grad()
        F.cross_entropy(model(x[n * 8 : n * 8 + 8]), y[n * 8 : n * 8 + 8]).backward()
        if before is not None:
            before(n)
        one.step()
        if n not in skip_other:
            other.step()


def split(model):
    return [p for p in model.parameters() if p.ndim == 2], [p for p in model.parameters() if p.ndim != 2]


PAIRS = {
    "SGD and SGD": lambda a, b: (SGD(a, lr=0.1, momentum=0.9), SGD(b, lr=0.02, momentum=0.5, weight_decay=1e-2)),
    "AdamW and SGD": lambda a, b: (AdamW(a, lr=1e-3), SGD(b, lr=0.1, momentum=0.9, weight_decay=1e-2)),
    "Muon and AdamW": lambda a, b: (torch.optim.Muon(a, lr=0.02), AdamW(b, lr=0.01)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_several_optimizers_for_one_model(data, kind):
    if "Muon" in kind and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    model = network()
    one, other = PAIRS[kind](*split(model))
    ledger, start = Ledger(laws_of(model, data), model, [one, other], every=1), flat(model)
    in_two(model, data, one, other, skip_other=(4, 7))
    assert ledger.steps == 10
    assert ledger.check() < 1e-12
    assert str(ledger).splitlines()[0] == f"10 steps of {' and '.join(dict.fromkeys(kind.split(' and ')))}"
    adds_up(ledger, start, model)
    assert ledger[0].decay.any()
    assert ledger[0].rates.any() == (kind == "SGD and SGD")
    in_two(model, data, one, other, steps=1, before=lambda n: model[3].weight.grad.mul_(1.001))
    with pytest.raises(LedgerError, match=FAULT):
        ledger.check()


CLEARED = {  # when gradients are cleared, and whether to None
    "all before the pass": (False, True),
    "all before the pass, in place": (False, False),
    "each after its step": (True, True),
    "each after its step, in place": (True, False),
}


@pytest.mark.parametrize("cleared", CLEARED)
@pytest.mark.parametrize("kind", ["SGD and SGD", "AdamW and SGD"])
def test_a_round_in_which_the_first_optimizer_is_skipped_is_a_step_of_its_own(data, kind, cleared):
    """As a scaler skips it that found an overflow in its gradients: the next round is not taken for the same one."""
    (x, y), model, (each, to_none) = data, network(), CLEARED[cleared]
    one, other = PAIRS[kind](*split(model))
    ledger, start = Ledger(laws_of(model, data), model, [one, other], every=1), flat(model)
    for n in range(10):
        if not each:
            one.zero_grad(to_none)
            other.zero_grad(to_none)
        F.cross_entropy(model(x[n * 8 : n * 8 + 8]), y[n * 8 : n * 8 + 8]).backward()
        for optimizer in (one, other):
            if optimizer is other or n not in (3, 6, 7):
                optimizer.step()
            if each:
                optimizer.zero_grad(to_none)
    assert ledger.steps == 10
    assert ledger.check() < 1e-12
    adds_up(ledger, start, model)


def test_a_scaler_skips_the_first_of_two_optimizers(data):
    model = network(dtype=torch.float32)
    one, other = PAIRS["SGD and SGD"](*split(model))
    ledger, scaler = Ledger(laws_of(model, data), model, [one, other]), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = data[0].float(), data[1]
    for n in range(12):
        one.zero_grad()
        other.zero_grad()
        scaler.scale(F.cross_entropy(model(x[n * 8 : n * 8 + 8]), y[n * 8 : n * 8 + 8])).backward()
        if n in (4, 8):
            model[1].weight.grad[0, 0] = torch.inf
        scaler.step(one)
        scaler.step(other)
        scaler.update()
    assert ledger.steps == 12
    assert ledger.check() < 1e-6


def test_a_gradient_that_is_written_to_between_two_optimizers_divides_the_step_and_raises_no_alarm(data):
    """Clipping everything before each of them looks like a new gradient: two steps are booked, and both add up."""
    (x, y), model = data, network()
    one, other = PAIRS["SGD and SGD"](*split(model))
    ledger, start = Ledger(laws_of(model, data), model, [one, other], every=1), flat(model)
    for n in range(4):
        one.zero_grad()
        other.zero_grad()
        F.cross_entropy(model(x[n * 8 : n * 8 + 8]), y[n * 8 : n * 8 + 8]).backward()
        for optimizer in (one, other):
            nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            optimizer.step()
    assert ledger.steps >= 4
    assert ledger.check() < 1e-12
    adds_up(ledger, start, model)


def test_an_optimizer_of_other_parameters_is_left_alone(data):
    model = network()
    optimizer, foreign = SGD(model.parameters(), lr=0.1), SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
    ledger = Ledger(laws_of(model, data), model, [foreign, optimizer])
    train(model, optimizer, data, steps=3)
    assert ledger.steps == 3
    foreign.step()
    assert ledger.steps == 3


# --- AdamW ----------------------------------------------------------------------------------------------------------

DECOUPLED = {
    "AdamW": lambda p, k: AdamW(p, lr=0.01, weight_decay=k),
    "Adam, decoupled": lambda p, k: torch.optim.Adam(p, lr=0.01, weight_decay=k, decoupled_weight_decay=True),
    "RAdam, decoupled": lambda p, k: torch.optim.RAdam(p, lr=0.01, weight_decay=k, decoupled_weight_decay=True),
    "Adafactor": lambda p, k: torch.optim.Adafactor(p, lr=0.01, weight_decay=k),
}


@pytest.mark.parametrize("kind", DECOUPLED)
def test_decoupled_decay_is_a_cause_of_its_own(data, kind):
    """One step from the same gradient with and without decay: what differs is what the ledger books as decay."""
    k, booked = 0.5, []
    for decay in (k, 0.0):
        model = network()
        optimizer = DECOUPLED[kind](model.parameters(), decay)
        ledger = Ledger(laws_of(model, data), model, optimizer)
        charges = [law.charge(flat(model)) for law in ledger.laws]
        train(model, optimizer, data, steps=1)
        booked.append([(account.decay[0], account.optimizer[0]) for account in ledger])
    for charge, (decay, rest), (none, rest_without) in zip(charges, *booked, strict=True):
        torch.testing.assert_close(decay, -2 * 0.01 * k * charge, rtol=1e-12, atol=0)
        assert not none.any()
        torch.testing.assert_close(rest, rest_without, rtol=1e-9, atol=1e-14)


def test_coupled_decay_of_adam_is_not_told_apart(data):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    ledger = Ledger(laws_of(model, data), model, optimizer)
    train(model, optimizer, data, steps=2)
    assert not ledger[0].decay.any()


# --- wrapped models -------------------------------------------------------------------------------------------------


class Task(nn.Module):
    """As a LightningModule has its network: under a name of its own, beside other things."""

    def __init__(self, net, **others):
        super().__init__()
        self.net = net
        for name, part in others.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.net(x)


def test_a_network_within_a_model_is_found(data):
    for wrap in (Task, nn.DataParallel, lambda net: nn.DataParallel(Task(net)), lambda net: Task(nn.Sequential(net))):
        net = network()
        model = wrap(net)
        optimizer = SGD(model.parameters(), lr=0.1)
        ledger = Ledger(laws_of(net, data), model, optimizer)
        train(net, optimizer, data, steps=2)
        assert ledger.check() < 1e-12
        broken(ledger, net, optimizer, data)


def test_a_compiled_model_is_found(data):
    net = network()
    laws = laws_of(net, data)
    compiled = torch.compile(net, backend="eager")
    optimizer = SGD(compiled.parameters(), lr=0.1)
    for model in (compiled, Task(compiled)):
        ledger = Ledger(laws, model, optimizer)
        train(compiled, optimizer, data, steps=2)
        assert ledger.steps == 2
        assert ledger.check() < 1e-12
    within = nn.Sequential(network())
    laws = laws_of(within, data)
    within[0] = torch.compile(within[0], backend="eager")
    optimizer = SGD(within.parameters(), lr=0.1)
    ledger = Ledger(laws, within, optimizer)
    train(within, optimizer, data, steps=2)
    assert ledger.check() < 1e-12


def test_a_replica_of_ddp_is_found(data, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        net = network()
        model = nn.parallel.DistributedDataParallel(Task(net))
        optimizer = AdamW(model.parameters(), lr=0.01)
        ledger = Ledger(laws_of(net, data), model, optimizer)
        train(model, optimizer, data, steps=3)
        assert ledger.check() < 1e-12
        broken(ledger, net, optimizer, data)
    finally:
        torch.distributed.destroy_process_group()


def test_of_two_alike_the_trained_one_is_taken(data):
    net = network()
    teacher = copy.deepcopy(net).requires_grad_(False)
    model, laws = Task(net, teacher=teacher), laws_of(net, data)
    optimizer = SGD(net.parameters(), lr=0.1)
    ledger = Ledger(laws, model, optimizer)
    train(net, optimizer, data, steps=2)
    assert ledger.check() < 1e-12
    broken(ledger, net, optimizer, data)
    both = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"several parts of the model have the laws' parameters: net, teacher; pass"):
        Ledger(laws, model, both)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_ledger_keeps_no_more_after_many_steps_unless_asked(data):
    kept = {}
    for every in (None, 1):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        ledger = Ledger(laws_of(model, data), model, optimizer, every=every)
        train(model, optimizer, data, steps=3)
        kept[every] = [len(ledger[0].steps)]
        train(model, optimizer, data, steps=30)
        kept[every].append(len(ledger[0].steps))
        assert ledger._entries == [] or every == 1
    assert kept == {None: [1, 1], 1: [3, 33]}
