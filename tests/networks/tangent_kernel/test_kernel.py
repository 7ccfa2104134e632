"""The tangent kernel, against its definition."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nlcompanion.networks import ensemble, flat_loss, mlp, ntk
from nlcompanion.networks.tangent_kernel import kernel

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=G, dtype=torch.float64)
Z = torch.randn(3, 4, generator=G, dtype=torch.float64)
Y = torch.randn(6, 2, generator=G, dtype=torch.float64)
HALF_SUM = lambda u, y: 0.5 * (u - y).square().sum()  # noqa: E731


def by_hand(net, x1, x2):
    """The definition, with one plain backward pass per output."""

    def rows(x):
        out = []
        for sample in x:
            for u in net(sample[None]).reshape(-1):
                slopes = torch.autograd.grad(u, list(net.parameters()), retain_graph=True)
                out.append(torch.cat([s.reshape(-1) for s in slopes]))
        return torch.stack(out).view(len(x), -1, sum(p.numel() for p in net.parameters()))

    return torch.einsum("icn,jdn->ijcd", rows(x1), rows(x2)).detach()


class Convolutional(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)
        )
        self.double()


class Branching(nn.Module):
    """Cannot be vmapped: it looks at values."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 2).double()

    def forward(self, x):
        return torch.stack([self.line(row) if row[0].item() > 0 else self.line(row) ** 2 for row in x])


NETWORKS = {
    "mlp": mlp((4, 7, 2), "tanh", bias=True, seed=1),
    "ntk scaling": mlp((4, 7, 5, 2), "relu", init="ntk", seed=1),
    "swish": mlp((4, 7, 2), "swish", seed=2),
    "convolution": Convolutional(),
}


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_the_definition(net):
    for other in (None, Z):
        H = ntk(net, X, other)
        assert H.dtype == torch.float64
        assert torch.allclose(H, by_hand(net, X, X if other is None else other), rtol=1e-12, atol=1e-12)
        assert torch.allclose(ntk(net, X, other, output="trace"), H.diagonal(dim1=2, dim2=3).sum(-1), rtol=1e-12)
        assert torch.allclose(ntk(net, X, other, output=1), H[..., 1, 1], rtol=1e-12, atol=1e-14)
        for vectorize in (True, False):
            J = ntk(net, X, other, method="jacobian", vectorize=vectorize)
            assert torch.allclose(J, H, rtol=1e-12, atol=1e-13)


@given(st.integers(1, 7), st.sampled_from(["full", "trace", 0]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_chunks_do_not_show(chunk, output, symmetric):
    net = NETWORKS["mlp"]
    whole, pieces = (ntk(net, X, None if symmetric else Z, output=output, chunk=c) for c in (None, chunk))
    assert torch.allclose(whole, pieces, rtol=1e-13, atol=1e-14)
    if symmetric:
        assert torch.equal(pieces, pieces.transpose(0, 1).transpose(-2, -1) if output == "full" else pieces.T)


@pytest.mark.parametrize("chunk", [1, 2, 4, None])
def test_outputs_change_places_with_their_samples(chunk):
    """Entry (i, j, c, d) is entry (j, i, d, c): in mirrored blocks and in those on the diagonal."""
    net = mlp(
        (4, 7, 5, 2), "tanh", init="ntk", seed=1
    )  # of one hidden layer only, each block is symmetric in its outputs
    H, want = ntk(net, X, chunk=chunk), by_hand(net, X, X)
    assert torch.allclose(H, want, rtol=1e-12, atol=1e-12)
    assert torch.equal(H, H.transpose(0, 1).transpose(2, 3))
    lopsided = (want - want.transpose(2, 3)).abs()  # the control: the order of outputs matters off the diagonal
    assert lopsided.max() > 0.01


def test_symmetry_is_made(monkeypatch):
    """Products A A^T come out with different last bits on either side of the diagonal on some processors."""
    exact = kernel.add_product

    def careless(target, left, right, strip):
        exact(target, left, right, strip)
        upper = torch.ones(target.shape[:2]).triu(1).view(*target.shape[:2], *(1,) * (target.ndim - 2))
        target *= 1 + 1e-16 * upper * 4

    monkeypatch.setattr(kernel, "add_product", careless)
    for output in ("full", "trace", 0):
        for chunk in (None, 4):
            H = ntk(NETWORKS["mlp"], X, output=output, chunk=chunk)
            assert torch.equal(H, H.transpose(0, 1).transpose(2, 3) if output == "full" else H.T)


def test_a_flat_loss_at_another_point():
    f = flat_loss(NETWORKS["mlp"], X, Y, HALF_SUM)
    assert torch.equal(ntk(f, X), ntk(NETWORKS["mlp"], X))
    q = f.q0 + 0.3
    moved = mlp((4, 7, 2), "tanh", bias=True)
    nn.utils.vector_to_parameters(q, moved.parameters())
    assert torch.allclose(ntk(f, X, q=q), ntk(moved, X), rtol=1e-13)
    assert not torch.allclose(ntk(f, X, q=q), ntk(f, X), rtol=1e-2)
    single = ntk(f, X, q=f.q0.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), ntk(f, X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"q has shape \(3,\)"):
        ntk(f, X, q=torch.ones(3))


def test_frozen_parameters_do_not_count():
    net = mlp((4, 7, 1), "tanh")
    net[1].weight.requires_grad_(False)
    hidden = torch.tanh(X @ net[1].weight.detach().T)
    assert torch.allclose(ntk(net, X, output=0), hidden @ hidden.T, rtol=1e-12)


def test_a_kernel_that_would_not_fit():
    net = mlp((4, 100, 10))
    rows = {"method": "jacobian"}
    stated = r"\(6, 6, 10, 10\) takes 28,800 bytes, .* 1 sample\(s\) 672,000 and .* 12,500 more, .* = 100,000"
    with pytest.raises(MemoryError, match=stated):
        ntk(net, X, max_memory=100_000, **rows)
    with pytest.raises(MemoryError, match="take output='trace' or one output, a smaller chunk"):
        ntk(net, X, max_memory=1_000_000, chunk=6, **rows)
    assert ntk(net, X, max_memory=1_000_000, **rows).shape == (6, 6, 10, 10)
    assert ntk(net, X, max_memory=100_000, output=0, **rows).shape == (6, 6)  # what the message advises
    assert ntk(net, X, max_memory=100_000).shape == (6, 6, 10, 10)  # its layers need less
    with pytest.raises(MemoryError, match=r"takes 28,800 bytes, .* = 40,000; take output='trace'"):
        ntk(net, X, max_memory=40_000)
    many = torch.empty(10**6, 4).expand(10**6, 4)
    with pytest.raises(MemoryError, match=r"takes 8,000,000,000,000 bytes"):
        ntk(net, many, output="trace")


@pytest.mark.parametrize("method", ["auto", "jacobian"])
def test_a_trace_over_many_outputs_is_taken_in_pieces(method):
    """As of a language model, whose outputs are positions times tokens: no single sample's gradients would fit."""
    net = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7)).double()
    ids = torch.arange(3 * 16).reshape(3, 16) % 7
    whole = ntk(net, ids, output="trace", method=method)
    assert torch.allclose(whole, torch.einsum("ijcc->ij", ntk(net, ids, method="jacobian")), rtol=1e-12)
    with pytest.raises(MemoryError, match=r"take output='trace' or one output"):
        ntk(net, ids, method=method, max_memory=100_000)
    assert torch.allclose(ntk(net, ids, output="trace", method=method, max_memory=100_000), whole, rtol=1e-12)
    with pytest.raises(MemoryError, match=r"more memory with max_memory=: one sample alone needs it"):
        ntk(net, ids, output="trace", method=method, max_memory=1_000)


LARGE = {
    "rows of the Jacobian": (
        'mlp((50, 300, 300, 1), "tanh"), torch.randn(150, 50, dtype=torch.float64)',
        'output=0, method="jacobian"',
    ),
    "patches of convolutions": (
        "nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), "
        "nn.Flatten(), nn.Linear(8, 1)).double(), torch.randn(300, 1, 28, 28, dtype=torch.float64)",
        "output=0",
    ),
    "slopes of layers": (
        'mlp((10, 500, 500, 10), "tanh"), torch.randn(1300, 10, dtype=torch.float64)',
        'output="trace"',
    ),
}
# each kernel in a child of one process that has loaded torch: a child's peak begins at what its parent holds
PEAKS = """
import os, sys, torch
from torch import nn
from nlcompanion import mlp, ntk
torch.set_num_threads(1)

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def measure(net, x, **settings):
    ntk(net, x[:2], **settings)
    before = peak()
    for allowed in (2**27, 2**31):
        ntk(net, x, **settings, max_memory=allowed)
        print(peak() - before, end=" ")
    print(flush=True)

for model, settings in LARGE:
    child = os.fork()
    if not child:
        eval(f"measure(*({model}), {settings})")
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
"""


@pytest.fixture(scope="module")
def peaks():
    """For each of the kernels the memory that it took, read from the operating system: within 128 MiB, and without."""
    code = PEAKS.replace("LARGE", repr(list(LARGE.values())))
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc hands freed tensors back at once
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment)
    lines = run.stdout.splitlines()
    return {name: tuple(map(int, line.split())) for name, line in zip(LARGE, lines, strict=True)}


@pytest.mark.slow  # kernels of a gibibyte, eight of them
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak that Linux keeps of a process")
@pytest.mark.parametrize("name", LARGE)
def test_memory_stays_within_what_is_stated(peaks, name):
    small, large = peaks[name]
    assert small < 1.05 * 2**27  # a smaller limit would drown in what torch itself loads when first used
    assert large > 1.5 * 2**27  # the control: without the limit it takes more


def test_models_that_couple_samples_are_refused():
    coupled = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double()
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        ntk(coupled, X)
    assert torch.allclose(ntk(coupled.eval(), X), by_hand(coupled, X, X), rtol=1e-12)
    dropout = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double()
    spatial = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten()).double()
    for net, name in ((dropout, r"Dropout \(1\)"), (spatial, r"BatchNorm2d \(2\)")):
        for x in (X, X[:1], X[:1].expand(4, 4)):  # single and equal samples, which do not show it
            for vectorize in (True, False):
                with pytest.raises(ValueError, match=rf"{name} is in train mode.*model.eval\(\)"):
                    ntk(net, x, vectorize=vectorize)
        assert torch.allclose(ntk(net.eval(), X), by_hand(net, X, X), rtol=1e-12)

    class Centred(nn.Linear):  # couples samples in a way of its own
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.raises(ValueError, match=r"differ by .* model.eval\(\)"):
        ntk(Centred(4, 2).double(), X)


def test_modules_that_vmap_cannot_run():
    net = Branching()
    with pytest.raises(ValueError, match="pass vectorize=False"):
        ntk(net, X)
    assert torch.allclose(ntk(net, X, vectorize=False), by_hand(net, X, X), rtol=1e-12)


def test_other_bad_input():
    net = NETWORKS["mlp"]
    for output in ("diagonal", 2, True):
        with pytest.raises(ValueError, match="output must be 'full', 'trace' or an integer from 0 to 1"):
            ntk(net, X, output=output)
    for chunk in (0, 1.5, True):
        with pytest.raises(ValueError, match="chunk is a number of samples"):
            ntk(net, X, chunk=chunk)
    with pytest.raises(ValueError, match="x2 must be a tensor of inputs"):
        ntk(net, X, torch.empty(0, 4))
    with pytest.raises(ValueError, match=r"x1 must be a tensor of inputs.* got ndarray"):
        ntk(net, X.numpy())
    with pytest.raises(ValueError, match=r"cannot run on x1 of shape \(6, 4\) and torch.int64 .*x.double\(\)"):
        ntk(net, X.long())
    with pytest.raises(ValueError, match=r"cannot run on x2 of shape \(1, 3\)"):
        ntk(net, X, X[:1, :3])
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        ntk("net", X)
    with pytest.raises(TypeError, match="returns a tuple"):
        ntk(nn.LSTM(4, 2, batch_first=True), X[:, None])
    with pytest.raises(ValueError, match=r"shape \(5, 3, 2\) for 3 sample\(s\) of x1.*one member"):
        ntk(ensemble((4, 7, 2), seeds=5), X)
    with pytest.raises(ValueError, match="output for x1 is not finite"):
        ntk(net, X * math.nan)
    huge = mlp((4, 7, 2), "relu")
    nn.utils.vector_to_parameters(1e155 * nn.utils.parameters_to_vector(huge.parameters()), huge[3].parameters())
    with pytest.raises(ValueError, match=r"the kernel is not finite in torch\.float64"):
        ntk(huge, X)


def test_integers_for_an_embedding():
    net = nn.Sequential(nn.Embedding(10, 3), nn.Flatten(), nn.Linear(6, 2)).double()
    x = torch.tensor([[0, 1], [1, 2], [9, 9], [0, 1]])
    assert torch.allclose(ntk(net, x), by_hand(net, x, x), rtol=1e-12)
    assert torch.equal(ntk(net, x)[0], ntk(net, x)[3])
