"""Each cause of a breach is named, and no other: planted one by one, in float64 and float32."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from grids import covering
from loops import laws_of, network, samples
from torch import nn

from nlcompanion.monitoring import Ledger, LedgerError

SGD, AdamW = torch.optim.SGD, torch.optim.AdamW
SINCE = 6  # the step, counted from 1, at which something begins to go wrong


def overflow(model, n):
    model[1].weight.grad[0, 0] = math.inf


def clip_each(model, n):
    for p in model.parameters():
        nn.utils.clip_grad_norm_(p, 0.05)


def clip_one(model, n):
    nn.utils.clip_grad_norm_(model[3].weight, 0.05)


def clip_values(model, n):
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


def scale_one(model, n):
    model[5].weight.grad.mul_(0.5)


def drop_gradient(model, n):
    model[3].weight.grad = None
    model[3].bias.grad = None


def blank_gradient(model, n):
    model[3].weight.grad.zero_()
    model[3].bias.grad.zero_()


def rectify(model, n):  # no multiple of a gradient, no penalty
    model[3].weight.grad.clamp_(min=0.0)


def freeze(model, n):
    model[3].requires_grad_(False)
    drop_gradient(model, n)


def write_through_data(model, n):
    model[3].weight.data.mul_(0.99)


def write_from_numpy(model, n):
    model[3].weight.detach().numpy()[0] *= 1.01


PLANTED = {
    overflow: r"gradient of 1\.weight is not finite",
    clip_each: r"norm of 0\.05: clipped tensor by tensor",
    clip_one: r"gradient of 3\.weight has a norm of 0\.05: clipped tensor by tensor",
    clip_values: r"0\.01 in size and none is larger: clipped by value",
    scale_one: r"gradient of 5\.weight is 0\.5 times what belongs to that of 3\.weight and 3\.bias",
    drop_gradient: rf"3\.weight and 3\.bias were without a gradient from step {SINCE} on|"
    rf"3\.weight was without a gradient from step {SINCE} on",
    blank_gradient: r"every entry of the gradient of 3\.weight( and 3\.bias)? is 0",
    freeze: rf"3\.weight( was| and 3\.bias were) frozen \(requires_grad is off\) from step {SINCE} on",
    rectify: "gradients themselves lack the symmetry: a hook",
}
BETWEEN = {
    write_through_data: r"3\.weight moved by more than the step of SGD: written to through \.data or from NumPy",
    write_from_numpy: r"3\.weight moved by more than the step of SGD: written to through \.data or from NumPy",
}
CAUSES = (
    "not finite", "clipped tensor", "clipped by value", "times what belongs", "without a gradient", "is 0 there",
    "frozen", "lack the symmetry", "through .data", "penalty", "no more than the digits", "step of its own",
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return samples()


def run(data, make, plant=None, penalty=None, *, dtype=torch.float64, steps=10, model=None):
    model = model or network(dtype=dtype)
    optimizer = make(model.parameters())
    ledger = Ledger(laws_of(model, data), model, optimizer)
    x, y = data[0].to(dtype), data[1]
    for n in range(steps):
        optimizer.zero_grad()
        batch = slice(20 * n, 20 * n + 20)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        if penalty is not None and n + 1 >= SINCE:
            loss = loss + penalty(model)
        loss.backward()
        if plant is not None and n + 1 >= SINCE:
            plant(model, n)
        optimizer.step()
    return ledger


def found(ledger):
    with pytest.raises(LedgerError) as caught:
        ledger.check()
    text = str(caught.value)
    assert re.search(rf"broken( first)? at step {SINCE} of 10", text), text
    assert sum(cause in text for cause in CAUSES) == 1, text
    return text


RULES = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "heavy ball": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda p: AdamW(p, lr=1e-3),
}


DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize(
    ("plant", "rule", "dtype"), covering(PLANTED, RULES, DTYPES), ids=lambda x: getattr(x, "__name__", str(x))
)
def test_what_was_done_to_the_gradients(data, plant, rule, dtype):
    assert re.search(PLANTED[plant], found(run(data, RULES[rule], plant, dtype=dtype)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", ["SGD", "heavy ball", "nesterov"])
@pytest.mark.parametrize("plant", BETWEEN, ids=lambda plant: plant.__name__)
def test_weights_written_to_without_a_trace(data, plant, rule, dtype):
    assert re.search(BETWEEN[plant], found(run(data, RULES[rule], plant, dtype=dtype)))


PENALTIES = {
    "L2 of one layer": (lambda m: 0.05 * m[3].weight.square().sum(), r"\|w\|²/2, of strength 0\.1 on 3\.weight;"),
    "L2 of all": (
        lambda m: 0.005 * sum(p.square().sum() for p in m.parameters()),
        r"\|w\|²/2, of strength 0\.01 on "
        r"(?:1\.weight, 0\.01 on 1\.bias, 0\.01 on 3|3\.weight, 0\.01 on 3\.bias, 0\.01 on 5)\.weight;",
    ),
    "L1": (lambda m: 0.01 * m[3].weight.abs().sum(), r"\|w\|, of strength 0\.01 on 3\.weight;"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", ["SGD", "heavy ball", "AdamW"])
@pytest.mark.parametrize("kind", PENALTIES)
def test_a_penalty_in_the_loss(data, kind, rule, dtype):
    penalty, match = PENALTIES[kind]
    text = found(run(data, RULES[rule], penalty=penalty, dtype=dtype))
    assert re.search("the loss holds a penalty on", text), text
    assert re.search(match, text), text


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_a_healthy_run_and_a_clip_of_the_whole_gradient_pass(data, rule, dtype):
    def clip_all(model, n):
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    for plant in (None, clip_all):
        ledger = run(data, RULES[rule], plant, dtype=dtype)
        assert ledger.check() <= ledger.tolerance
        assert ledger._diagnosis is None


def test_a_law_of_one_number_says_what_it_cannot_tell(data):
    def total_laws(f):
        from nlcompanion.laws import homogeneous_laws

        return [law.total for law in homogeneous_laws(f)]

    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    ledger = Ledger(laws_of(model, data, total_laws), model, optimizer)
    for n in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        if n:
            scale_one(model, n)
        optimizer.step()
    with pytest.raises(LedgerError, match=r"scaled or clipped by itself.*a ledger of the laws of all neurons tells"):
        ledger.check()


def test_the_first_breach_is_told_and_then_the_worst(data):
    def worse_and_worse(model, n):
        model[3].weight.grad.mul_(1 + 10.0 ** (n - 9))

    text = found(run(data, RULES["SGD"], worse_and_worse))
    first, most = re.search(
        r"by (\S+), and most.* at step 10 of 10, by (\S+) of its parameters' squares", text
    ).groups()
    assert float(most) > 100 * float(first)


def test_a_wider_tolerance_is_heard(data):
    ledger = run(data, RULES["SGD"], scale_one)
    worst = ledger.check(1.0)
    assert ledger.check(worst) == worst
    with pytest.raises(LedgerError):
        ledger.check(0.99 * worst)


# --- which of the tensors -------------------------------------------------------------------------------------------


def scaled(*places):
    def plant(model, n):
        for place in places:
            model[place].weight.grad.mul_(1.25)

    return plant


SCALED = {
    "one law of two tensors cannot tell": (
        (64, 24, 10), (3,),
        r"gradient of 3\.weight is 1\.25 times what belongs to that of 1\.weight, or that of 1\.weight is 0\.8 times "
        r"what belongs to that of 3\.weight: one of them",
    ),
    "nor which of two it was": (
        (64, 24, 10), (1,),
        r"gradient of 3\.weight is 0\.8 times what belongs to that of 1\.weight, or that of 1\.weight is 1\.25 times",
    ),
    "the law of the next layer holds, so it is the first": (
        (64, 24, 16, 10), (1,), r"gradient of 1\.weight is 1\.25 times what belongs to that of 3\.weight: it was"
    ),
    "the law of the layer before holds, so it is the last": (
        (64, 24, 16, 10), (5,), r"gradient of 5\.weight is 1\.25 times what belongs to that of 3\.weight: it was"
    ),
    "the law of the second half holds, so it is in the first": (
        (64, 24, 16, 12, 10), (1,), r"gradient of 1\.weight is 1\.25 times what belongs to that of 3\.weight: it was"
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", SCALED)
def test_which_of_the_tensors_was_scaled(data, case, rule):
    widths, places, match = SCALED[case]
    text = found(run(data, RULES[rule], scaled(*places), model=network(bias=False, widths=widths)))
    assert re.search(match, text), text
    assert (" or that of " in text) == ("cannot" in case or "nor" in case)


def test_a_weight_and_its_bias_scaled_together(data):
    """The reader keeps the next law, so that both sides' majority, weight and bias, was scaled."""

    def plant(model, n):
        model[1].weight.grad.mul_(1.25)
        model[1].bias.grad.mul_(1.25)

    text = found(run(data, RULES["SGD"], plant))
    assert "the gradients of 1.weight and 1.bias are 1.25 times what belongs to that of 3.weight: they were" in text
