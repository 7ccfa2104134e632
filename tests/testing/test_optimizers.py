"""Every law of an update rule: PyTorch's optimisers hold theirs, planted faults break them."""

import functools

import pytest
import torch
from grids import covering
from kernels_with_faults import ByHand, FaultyAdafactor, FaultyAveraging, Shampoo, Soap
from torch import optim

from nlcompanion import LawError, OptimizerLaws, assert_optimizer_lawful, check_optimizer
from nlcompanion.testing.optimizer_families import known_laws

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
ADAMW = OptimizerLaws(
    "decoupled", 0, lambda group, g: group["lr"] * g.sign(), None, ("signs", "permutations"),
    lambda group, n: group["lr"] * (0.1 / 1.9) ** 0.5,
)  # fmt: skip
LION = OptimizerLaws("decoupled", 0, lambda group, g: group["lr"] * g.sign(), None, ("signs", "permutations"))
SHAMPOO = OptimizerLaws("decoupled", 0.0, equivariance=("orthogonal",), elementwise=False, ndim=2)

MUON = getattr(optim, "Muon", None)  # since PyTorch 2.9
FAMILIES = {
    "SGD": (optim.SGD, {}, "fused"),
    "momentum": (optim.SGD, {"momentum": 0.9}, "fused"),
    "Nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}, "fused"),
    "dampening": (optim.SGD, {"momentum": 0.9, "dampening": 0.3}, "fused"),
    "maximize": (optim.SGD, {"maximize": True}, "fused"),
    "Adam": (optim.Adam, {}, "fused"),
    "AMSGrad": (optim.Adam, {"amsgrad": True}, "fused"),
    "AdamW": (optim.AdamW, {}, "fused"),
    "Adagrad": (optim.Adagrad, {}, "fused"),
    "NAdam": (optim.NAdam, {}, "foreach"),
    "NAdam, decoupled": (optim.NAdam, {"decoupled_weight_decay": True}, "foreach"),
    "RAdam": (optim.RAdam, {}, "foreach"),
    "RMSprop": (optim.RMSprop, {}, "foreach"),
    "centered": (optim.RMSprop, {"centered": True}, "foreach"),
    "Adamax": (optim.Adamax, {}, "foreach"),
    "Adadelta": (optim.Adadelta, {}, "foreach"),
    "Rprop": (optim.Rprop, {}, "foreach"),
    "ASGD": (optim.ASGD, {}, "foreach"),
    "Adafactor": (optim.Adafactor, {}, "foreach"),
}
if MUON is not None:
    FAMILIES |= {"Muon": (MUON, {}, ""), "Muon, RMS": (MUON, {"adjust_lr_fn": "match_rms_adamw"}, "")}


def ways(name: str) -> list[dict]:
    """One by one, foreach, and fused where the CPU has it; with weight decay and without."""
    _, settings, most = FAMILIES[name]
    how = [{}] if not most else [{"foreach": False}, {"foreach": True}]
    how += [{"fused": True}] if most == "fused" else []
    decays = [{}] if name == "Rprop" else [{"weight_decay": 0.0}, {"weight_decay": 0.1}]
    return [{"lr": 0.01, **settings, **way, **decay} for way in how for decay in decays]


def parameters(seed: int, dtype, matrices: bool):
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randint(1, 9, (5,), generator=generator).tolist()
    shapes = [sides[:2], sides[2:4]] if matrices else [sides[:2], sides[2:3], sides[3:5]]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def fused_sgd_moves(dtype) -> bool:
    """PyTorch 2.13's fused SGD leaves half-precision weights where they are, sixteen at a time, on some CPUs."""
    p = torch.nn.Parameter(torch.zeros(64, dtype=dtype))
    p.grad = torch.ones_like(p)
    optim.SGD([p], lr=0.5, fused=True).step()
    return bool((p == -0.5).all())


def no_false_alarm(name: str, dtype: torch.dtype, seed: int) -> None:
    """One of the ways of a family, on shapes of its own."""
    kind, settings = FAMILIES[name][0], ways(name)[seed]
    if kind is optim.SGD and settings.get("fused") and not fused_sgd_moves(dtype):
        return
    factory = functools.partial(kind, **settings)
    check_optimizer(factory, parameters(seed, dtype, kind is MUON), seed=seed, raise_error=True)


def chosen(name: str, dtype: torch.dtype) -> list[int]:
    """Half of the ways: each implementation, with decay or without in turn, and the other way round in the next dtype.

    So a family with decay meets every implementation in every dtype, and each implementation with decay and without.
    """
    first = DTYPES.index(dtype)
    return [n for n in range(len(ways(name))) if (n // 2 + n + first) % 2 == 0]


@pytest.mark.parametrize(("name", "dtype"), covering(FAMILIES, DTYPES))
def test_no_false_alarm_in_pytorchs_optimizers(name, dtype):
    for seed in chosen(name, dtype):
        no_false_alarm(name, dtype, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_nor_in_all_their_ways(name, dtype):
    for seed in set(range(len(ways(name)))) - set(chosen(name, dtype)):
        no_false_alarm(name, dtype, seed)


def test_the_chosen_ways_meet_all():
    for name in FAMILIES:
        assert set().union(*(chosen(name, dtype) for dtype in DTYPES)) == set(range(len(ways(name))))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_false_alarm_over_two_hundred_shapes(dtype):
    for seed in range(200):
        name = list(FAMILIES)[seed % len(FAMILIES)]
        test = [way for way in ways(name) if not (way.get("fused") and FAMILIES[name][0] is optim.SGD)]
        factory = functools.partial(FAMILIES[name][0], **test[seed % len(test)])
        shapes = parameters(seed, dtype, FAMILIES[name][0] is MUON)
        check_optimizer(factory, shapes, seed=seed, raise_error=True)


def test_an_update_that_is_not_made_is_found():
    dtype = torch.bfloat16
    report = check_optimizer(lambda p: optim.SGD(p, lr=0.01, fused=True), [torch.zeros(64, dtype=dtype)])
    assert (report.verdict == "broken") == (not fused_sgd_moves(dtype))


FAULTS = {
    "L2 for decay": "a shift shrinks",
    "decay without lr": "a shift shrinks",
    "decay after the update": "from zero weights",
    "45 times too small": "the first step has",
    "no bias correction": "the first step has",
    "absolute value": "signs commute",
    "shared state": "the shape of a parameter",
    "step not saved": "a state saved",
    "none is zero": "a step without gradients",
    "floor of lr": "a learning rate of 0",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_adamw_is_found(fault):
    def factory(p, fault=""):
        return ByHand(p, weight_decay=0.1, fault=fault)

    assert check_optimizer(factory, laws=ADAMW).verdict == "lawful"
    report = check_optimizer(functools.partial(factory, fault=fault), laws=ADAMW)
    assert any(check.law.startswith(FAULTS[fault]) for check in report.broken)


def test_an_adam_that_decays_like_adamw_is_found():
    """The other way round: L2 promised, decoupled given."""
    laws = OptimizerLaws("coupled", 0)
    report = check_optimizer(lambda p: ByHand(p, weight_decay=0.1), laws=laws)
    assert [check.law for check in report.broken] == ["decay is a gradient decay*weight (L2)"]
    report = check_optimizer(lambda p: ByHand(p, weight_decay=0.1, fault="L2 for decay"), laws=laws)
    assert report.verdict == "lawful"


def test_rules_of_ones_own_are_declared():
    assert_optimizer_lawful(lambda p: ByHand(p, rule="lion", weight_decay=0.1), laws=LION)
    assert_optimizer_lawful(lambda p: Shampoo(p, weight_decay=0.1), laws=SHAMPOO, steps=3)
    report = check_optimizer(lambda p: Shampoo(p, fault="diagonal"), laws=SHAMPOO, steps=3)
    assert [check.law for check in report.broken] == ["orthogonal commute with the step"]


@pytest.mark.parametrize(("kind", "fault"), [(Shampoo, "diagonal"), (Soap, "one side")])
def test_rules_that_torch_lacks_are_rows_of_the_table(kind, fault):
    """PyTorch 2.13 has no Shampoo, SOAP or Lion: a hand-written one is held against the row of its name."""
    name = {Shampoo: "Shampoo", Soap: "SOAP"}[kind]
    assert not hasattr(optim, name)
    report = assert_optimizer_lawful(lambda p: kind(p, weight_decay=0.1), laws=name, steps=3)
    assert {"orthogonal commute with the step", "gradients times c change nothing"} <= {c.law for c in report.checks}
    report = check_optimizer(lambda p: kind(p, fault=fault), laws=name, steps=3)
    assert [check.law for check in report.broken] == ["orthogonal commute with the step"]


def test_a_rule_is_held_against_the_family_that_it_is_meant_to_be():
    assert_optimizer_lawful(lambda p: ByHand(p, rule="lion", weight_decay=0.1), laws="Lion")
    report = check_optimizer(lambda p: ByHand(p, rule="lion", fault="45 times too small"), laws="Lion")
    assert {check.law for check in report.broken} == {
        "the first step has the family's size",
        "white gradients give the family's update RMS",
    }
    assert_optimizer_lawful(lambda p: ByHand(p, betas=(0.9, 0.999), weight_decay=0.1), laws="AdamW")
    report = check_optimizer(lambda p: ByHand(p, betas=(0.9, 0.999), weight_decay=0.1), laws="Adam")
    assert [check.law for check in report.broken] == ["decay is a gradient decay*weight (L2)"]
    with pytest.raises(ValueError, match="choose from SGD, Adam"):
        check_optimizer(ByHand, laws="Adamm")
    with pytest.raises(ValueError, match="the row NAdam reads 'momentum_decay'"):
        check_optimizer(ByHand, laws="NAdam")


def test_the_decay_of_steps_in_proportion_to_the_weights():
    """A shift changes such steps, so that each step is compared with itself without decay."""
    settings = {"lr": 0.01, "weight_decay": 0.1}
    assert_optimizer_lawful(lambda p: FaultyAdafactor(p, **settings), laws="Adafactor")
    for fault in ("L2 for decay", "decay without lr"):
        broken = check_optimizer(lambda p, f=fault: FaultyAdafactor(p, fault=f, **settings), laws="Adafactor").broken
        assert "a step shrinks the weights by lr*decay, beside what it does without" in {check.law for check in broken}
    shifted = OptimizerLaws("decoupled", 0, elementwise=False)
    assert check_optimizer(lambda p: optim.Adafactor(p, **settings), laws=shifted).verdict == "broken"


def test_what_averaging_keeps_of_the_weights():
    settings = {"lr": 0.1, "lambd": 0.2, "weight_decay": 0.1}
    assert_optimizer_lawful(lambda p: FaultyAveraging(p, **settings), laws="ASGD")
    found = {}
    for fault in ("lambd twice", "decoupled"):
        report = check_optimizer(lambda p, f=fault: FaultyAveraging(p, fault=f, **settings), laws="ASGD")
        found[fault] = {check.law for check in report.broken}
    assert "a shift shrinks by what each step keeps" in found["lambd twice"]
    assert "decay is a gradient decay*weight (L2)" in found["decoupled"]


WHITE = {
    "Adam": {"betas": (0.9, 0.999)},
    "AMSGrad": {"betas": (0.9, 0.99)},
    "NAdam": {"betas": (0.95, 0.99)},
    "RAdam": {"betas": (0.9, 0.99)},
    "RMSprop": {"momentum": 0.9},
    "centered": {"alpha": 0.97},
    "Adamax": {"betas": (0.9, 0.9)},
    "Adagrad": {"lr_decay": 0.01},
    "Adadelta": {"rho": 0.95},
    "ASGD": {"lambd": 0.05, "lr": 0.1},
    "Adafactor": {"lr": 0.1},
}


@pytest.mark.parametrize("name", [*WHITE, *(["Muon", "Muon, RMS"] if MUON else [])])
def test_white_gradients_give_the_size_that_the_table_computes(name):
    """To two per cent; the control is the rule at another setting, whose size is another."""
    kind, settings, _ = FAMILIES[name]
    settings = {"lr": 0.01, **settings, **WHITE.get(name, {})}
    other = {**settings, "lr": 1.2 * settings["lr"]}
    start = [torch.zeros(5, 4, dtype=torch.float64)]
    group = kind([torch.nn.Parameter(p.clone()) for p in start], **settings).param_groups[0]
    laws = known_laws(kind([torch.nn.Parameter(start[0].clone())], **settings))
    held = OptimizerLaws("unknown", white_rms=lambda _, n: laws.white_rms(group, n), elementwise=False)
    law = "white gradients give the family's update RMS"
    for tried, verdict in ((settings, "lawful"), (other, "broken")):
        report = check_optimizer(functools.partial(kind, **tried), start, laws=held, steps=1)
        (check,) = [check for check in report.checks if check.law == law]
        assert check.verdict == verdict
        assert verdict == "broken" or check.defect < 0.02


def test_rprop_promises_no_size():
    """Its sizes are a product of 1.2 and 0.5 at random: the mean fourth power grows without bound."""
    assert known_laws(optim.Rprop([torch.nn.Parameter(torch.zeros(2))])).white_rms is None


EPS = [0.0, 1e-7, 1e-6, 1e-5, 1e-2]
WITH_EPS = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "centered", "Adagrad"]


@pytest.mark.parametrize(("name", "eps"), covering(WITH_EPS, EPS))
def test_an_eps_is_part_of_the_rule(name, eps):
    kind, settings, _ = FAMILIES[name]
    factory = functools.partial(kind, lr=1e-3, eps=eps, **settings)
    assert_optimizer_lawful(factory)


def test_an_eps_that_is_off_is_found():
    """By a millionth of the step; and where the law does not name it, what leaving it out changes is allowed for."""
    named = OptimizerLaws(first_step=lambda group, g: group["lr"] * g / (g.abs() + 1e-6), eps_degree=1)
    check_optimizer(lambda p: ByHand(p, eps=1e-6), laws=named, raise_error=True)
    report = check_optimizer(lambda p: ByHand(p, eps=2e-6), laws=named)
    assert [check.law for check in report.broken] == ["the first step has the family's size"]
    report = check_optimizer(lambda p: ByHand(p, eps=1e-3), laws=ADAMW)
    floors = {check.law: check.floor for check in report.checks}
    assert report.verdict == "lawful"
    assert 3e-4 < floors["the first step has the family's size"] < 1.1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("more", [{}, {"dampening": 0.3}, {"nesterov": True}])
def test_the_white_size_of_sgd_is_the_norm_of_what_each_gradient_gives(momentum, more):
    """The n-th gradient is the n-th unit vector, so that a step shows the share of each."""
    if more.get("nesterov") and not momentum:
        return
    count = 9
    p = torch.nn.Parameter(torch.zeros(count, dtype=torch.float64))
    optimizer = optim.SGD([p], lr=0.5, momentum=momentum, **more)
    white = known_laws(optimizer).white_rms
    for n in range(1, count + 1):
        before, p.grad = p.detach().clone(), torch.eye(count, dtype=torch.float64)[n - 1]
        optimizer.step()
        assert float((p.detach() - before).norm()) == pytest.approx(white(optimizer.param_groups[0], n), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(optim.Adam, lr=1e-3, betas=(0.99, 0.999)),
        functools.partial(optim.Adam, lr=1e-3, betas=(0.999, 0.999)),
        functools.partial(optim.Adam, lr=1e-3, betas=(0.9, 0.5)),
        functools.partial(optim.Adam, lr=1e-3, betas=(0.99, 0.9)),
        functools.partial(optim.SGD, lr=1e-3, momentum=0.999),
        functools.partial(optim.SGD, lr=1e-3, momentum=1.0),
    ],
)
def test_a_long_memory_is_judged_at_the_step_it_has_reached(factory, seed):
    assert_optimizer_lawful(factory, seed=seed)


def test_a_learning_rate_in_a_tensor_rounds_in_its_own_dtype():
    for kind in (optim.AdamW, optim.Adam, optim.SGD):
        report = assert_optimizer_lawful(lambda p, kind=kind: kind(p, lr=torch.tensor(1e-2), weight_decay=0.1))
        assert max(check.visible for check in report.checks if check.tensors != "64 x 64") < 0.1
    double = torch.tensor(1e-2, dtype=torch.float64)
    report = assert_optimizer_lawful(lambda p: optim.AdamW(p, lr=double, weight_decay=0.1))
    assert report.checks[0].floor < 1e-11


@pytest.mark.parametrize("decay", [0.5, 1.0, 1.5, 2.0])
def test_a_decay_that_turns_the_weights_around_is_lawful(decay):
    """1 - lr*decay is negative beyond 1; the fault of that size is found."""
    assert_optimizer_lawful(lambda p: optim.AdamW(p, lr=1.0, weight_decay=decay))
    half = lambda p: ByHand(p, lr=1.0, weight_decay=decay, fault="L2 for decay")  # noqa: E731
    assert check_optimizer(half, laws="Lion").verdict == "broken"


ODD = {
    "NAdam": [{"momentum_decay": 0.0}, {"maximize": True, "decoupled_weight_decay": True, "weight_decay": 0.1}],
    "RAdam": [{"betas": (0.9, 0.5)}, {"decoupled_weight_decay": True, "weight_decay": 0.1}],
    "Adam": [{"betas": (0.0, 0.0)}, {"maximize": True, "weight_decay": 0.1}],
    "AMSGrad": [{"maximize": True, "weight_decay": 0.1}],
    "RMSprop": [{"alpha": 0.5}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}],
    "Adagrad": [{"lr_decay": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.1}],
    "Adadelta": [{"rho": 0.5}, {"lr": 1.0, "weight_decay": 0.1}],
    "Rprop": [{"etas": (0.3, 1.5)}, {"maximize": True}],
    "ASGD": [{"t0": 2, "lambd": 0.1, "weight_decay": 0.1}, {"alpha": 0.0, "lambd": 0.1}, {"maximize": True}],
    "Adafactor": [{"d": 2.0, "eps": (1e-3, 1e-2)}, {"lr": 2.0}, {"maximize": True, "weight_decay": 0.1}],
    "SGD": [{"lr": 1e6}, {"lr": 1e-12}, {"maximize": True, "weight_decay": 0.1}],
}


@pytest.mark.parametrize("name", ODD)
def test_settings_at_the_edge_raise_no_alarm(name):
    kind, common, _ = FAMILIES[name]
    for settings in ODD[name]:
        assert_optimizer_lawful(functools.partial(kind, **{"lr": 0.01, **common, **settings}))


def twice(step, params):
    step()
    step()


def noisy(step, params):
    step()
    for p in params:
        p.add_(1e-6 * torch.randn_like(p))


def rounded(step, params):
    step()
    for p in params:
        p.copy_(p.half())


def tail_forgotten(step, params):
    last = [p.flatten()[-1].clone() for p in params]
    step()
    for p, kept in zip(params, last, strict=True):
        p.view(-1)[-1] = kept


def vectors_not_decayed(step, params):
    before = [(p, p.clone()) for p in params if p.ndim < 2]
    step()
    for p, old in before:
        p.add_(old, alpha=0.01 * 0.1)


def clipped_in_secret(step, params):
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    step()


def gradients_zeroed(step, params):
    """No fault: what a step does to the gradients afterwards is its own affair."""
    step()
    for p in params:
        p.grad = None


@pytest.mark.parametrize("fault", [twice, noisy, rounded, tail_forgotten, vectors_not_decayed, clipped_in_secret])
def test_a_step_that_does_something_beside_is_found(fault):
    class Wrapped(optim.AdamW):
        how = staticmethod(fault)

        @torch.no_grad()
        def step(self):
            self.how(super().step, [p for group in self.param_groups for p in group["params"]])

    settings = {"lr": 0.01, "weight_decay": 0.1}
    assert check_optimizer(lambda p: Wrapped(p, **settings), laws="AdamW").verdict == "broken"
    Wrapped.how = staticmethod(gradients_zeroed)
    assert check_optimizer(lambda p: Wrapped(p, **settings), laws="AdamW").verdict == "lawful"


def test_a_rule_that_is_in_no_table_is_said_to_be():
    report = check_optimizer(lambda p: ByHand(p))
    assert "declare its laws" in report.limits[0]
    with pytest.raises(LawError, match="not every law was checked"):
        assert_optimizer_lawful(lambda p: ByHand(p))
    with pytest.raises(LawError, match="the first step has"):
        assert_optimizer_lawful(lambda p: ByHand(p, fault="45 times too small"), laws=ADAMW)


def test_bad_input_gives_an_error_that_names_the_cause():
    with pytest.raises(TypeError, match="closure"):
        check_optimizer(optim.LBFGS)
    with pytest.raises(TypeError, match="sparse gradients"):
        check_optimizer(optim.SparseAdam)
    with pytest.raises(TypeError, match=r"which returns a torch\.optim\.Optimizer"):
        check_optimizer(list)
    with pytest.raises(TypeError, match="floating-point"):
        check_optimizer(optim.SGD, [torch.arange(3)])

    class Closing(optim.SGD):
        def step(self, closure):
            return super().step(closure)

    with pytest.raises(TypeError, match="closure"):
        check_optimizer(Closing)
    with pytest.raises(ValueError, match="lr is 0"):
        check_optimizer(lambda p: optim.SGD(p, lr=0.0))
    with pytest.raises(TypeError, match="as one group"):
        check_optimizer(lambda p: optim.SGD([{"params": [x]} for x in p], lr=0.1))
    with pytest.raises(TypeError, match=r"as one group; .* given two groups, it fails"):
        check_optimizer(lambda p: optim.SGD([x for x in p if x.ndim], lr=0.1))
    with pytest.raises(ValueError, match="not finite"):
        check_optimizer(lambda p: optim.SGD(p, lr=1e308), laws=OptimizerLaws())
    with pytest.raises(ValueError, match=r"raise an eps that torch\.float16 rounds to 0"):
        check_optimizer(lambda p: optim.AdamW(p, lr=0.01), [torch.ones(5, 4).half()])
