"""Laws with a source under the ledger: only the passes that a step is made with count."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from grids import covering
from torch import nn
from torch.utils.checkpoint import checkpoint

from nlcompanion.laws import audit
from nlcompanion.laws.sources import ELEMENTWISE, Source, source_of
from nlcompanion.monitoring import Ledger, LedgerError
from nlcompanion.monitoring.sources import SourceReader


@pytest.fixture(scope="module")
def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(64, 4, generator=g).double(), torch.randint(0, 2, (64,), generator=g)


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 3), activation(), nn.Linear(3, 2)).double()


class Loop:
    """A network, its optimizer, and a ledger of its laws, those with sources among them."""

    def __init__(self, data, model=None, rule=torch.optim.SGD, **options):
        self.data, self.model = data, model or network()
        self.optimizer = rule(self.model.parameters(), lr=0.1, **options)
        x, y = data
        laws = audit(self.model, x[:8], y[:8], F.cross_entropy).laws
        assert any(law.sources for law in laws)
        self.ledger = Ledger(laws, self.model, self.optimizer)

    def loss(self, n, x=None):
        """Of the n-th batch; ``x`` may stand for its inputs."""
        batch = slice(8 * n, 8 * n + 8)
        return F.cross_entropy(self.model(self.data[0][batch] if x is None else x), self.data[1][batch])

    def step(self, n):
        self.optimizer.zero_grad()
        self.loss(n).backward()
        self.optimizer.step()

    def finish(self):
        """The books are right so far, and a fault would be seen."""
        assert self.ledger.check() < 1e-12
        self.optimizer.zero_grad()
        self.loss(7).backward()
        self.model[2].weight.grad.mul_(1.01)
        self.optimizer.step()
        with pytest.raises(LedgerError):
            self.ledger.check()


def throw_away(loop, n):
    for p in loop.model.parameters():
        p.grad = None
    loop.loss(n).backward()


def throw_away_zeros(loop, n):
    loop.optimizer.zero_grad(set_to_none=False)
    loop.loss(n).backward()
    loop.optimizer.zero_grad(set_to_none=False)
    loop.loss(n).backward()
    for p in loop.model.parameters():
        p.grad.data.zero_()


def look_at_gradients(loop, n):
    torch.autograd.grad(loop.loss(n), list(loop.model.parameters()))


def look_at_inputs(loop, n):
    x = loop.data[0][8 * n : 8 * n + 8].clone().requires_grad_()
    torch.autograd.grad(loop.loss(n, x), x)


BESIDE = [throw_away, throw_away_zeros, look_at_gradients, look_at_inputs]
RULES = [torch.optim.SGD, torch.optim.Adam]


@pytest.mark.parametrize(("beside", "activation", "rule"), covering(BESIDE, [nn.Tanh, nn.GELU], RULES))
def test_backward_passes_beside_the_steps(data, beside, activation, rule):
    loop = Loop(data, network(activation), rule)
    for n in range(5):
        beside(loop, n)
        loop.step(n)
        beside(loop, n)
    loop.finish()


@pytest.mark.parametrize("beside", [look_at_gradients, look_at_inputs])
def test_passes_between_backward_and_step(data, beside):
    loop = Loop(data, momentum=0.9)
    for n in range(5):
        loop.optimizer.zero_grad()
        loop.loss(n).backward()
        beside(loop, n + 1)
        loop.optimizer.step()
    loop.finish()


def test_a_step_that_a_scaler_leaves_out(data):
    loop, scaler = Loop(data, momentum=0.9), torch.amp.GradScaler("cpu", init_scale=8.0)
    for n in range(6):
        for p in loop.model.parameters():  # as zero_grad(set_to_none=False) does, in some of the steps
            p.grad = None if n % 2 or p.grad is None else p.grad.zero_()
        scaler.scale(loop.loss(n)).backward()
        if n in (2, 3):
            loop.model[0].weight.grad[0, 0] = torch.inf
            loop.model[4].weight.grad[0, 0] = torch.nan
        scaler.step(loop.optimizer)
        scaler.update()
    assert loop.ledger.steps == 4
    loop.finish()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_accumulate(data, set_to_none):
    loop = Loop(data, momentum=0.9)
    for n in range(5):
        loop.optimizer.zero_grad(set_to_none=set_to_none)
        loop.loss(n).backward()
        look_at_inputs(loop, n)
        (0.5 * loop.loss(n + 1)).backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), 0.1)
        loop.optimizer.step()
    loop.finish()


@pytest.mark.parametrize("layer", [2, 4])
def test_a_layer_that_is_frozen_is_named(data, layer):
    loop = Loop(data)
    for n in range(6):
        loop.model[layer].requires_grad_(n < 3)
        loop.step(n)
    with pytest.raises(LedgerError, match=rf"{layer}\.weight.* frozen .* from step 4 on"):
        loop.ledger.check()


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = network()[:4], network()[4:]
        self.reentrant = None

    def forward(self, x):
        if self.reentrant is None:
            return self.head(self.body(x))
        inner = checkpoint(self.body, x.detach().requires_grad_(), use_reentrant=self.reentrant)
        return checkpoint(self.head, inner, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_runs_a_pass_within_the_pass(data, reentrant):
    model = Checkpointed()
    loop = Loop(data, model, momentum=0.9)
    model.reentrant = reentrant
    for n in range(4):
        throw_away(loop, n)
        loop.step(n)
    assert loop.ledger.check() < 1e-12


# --- what a pass itself sends on --------------------------------------------------------------------------------------

FUNCTIONS = {
    "gelu": F.gelu,
    "gelu by tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda z: F.softplus(z, beta=2),
    "elu": lambda z: F.elu(z, alpha=0.7),
    "elu, in place": lambda z: F.elu(z + 0, alpha=0.7, inplace=True),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softsign": F.softsign,  # several nodes, whose slope is taken anew
    "tanhshrink": F.tanhshrink,
}


class OneActivation(nn.Module):
    """A linear map, an activation, and what is done with it: ``after`` sees what came out."""

    def __init__(self, function, after=lambda out: out):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.function, self.after = function, after

    def forward(self, x):
        self.z = self.layer(x)
        return self.after(self.function(self.z))


def read(model, x, weights, passes=1):
    """The sum over samples of the source, for each neuron, as it is read in backward passes."""
    names = [Source("", name, 0, 1, (), 1.0) for name in ELEMENTWISE]
    reader = SourceReader(model, names, model.layer.weight)
    out = (model(x) * weights).sum()
    for _ in range(passes):
        out.backward(retain_graph=True)
    (found,) = reader.sums.take().values()
    return found


def by_hand(function, z, weights):
    return source_of(function, z, weights).sum(0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_source_is_read_off_the_pass(data, name):
    model, x, weights = OneActivation(FUNCTIONS[name]), data[0], torch.randn(64, 3).double()
    for passes in (1, 2):
        found = read(model, x, weights, passes)
        model.zero_grad()
        assert torch.allclose(found, passes * by_hand(model.function, model.z, weights), rtol=1e-12, atol=1e-13)


def test_what_came_out_may_be_written_over(data):
    """GELU keeps what went in, so its output is free to be."""
    model, x, weights = OneActivation(F.gelu, lambda out: out.mul_(3.0)), data[0], torch.randn(64, 3).double()
    found = read(model, x, weights)
    assert torch.allclose(found, by_hand(F.gelu, model.z, 3 * weights), rtol=1e-12)
    assert not torch.allclose(found, by_hand(F.gelu, model.z, weights), rtol=1e-3)


def test_a_node_is_freed_with_its_graph(data):
    """What listens to it must not hold it."""
    model = OneActivation(F.gelu, lambda out: out * 1.0)
    read(model, data[0], torch.ones(64, 3).double())
    seen = weakref.ref(model.z)
    del model.z
    assert seen() is None
