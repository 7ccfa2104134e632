"""The kernel as a map, against its matrix."""

import pytest
import torch
from torch import nn

from nlcompanion.networks import flat_loss, mlp, ntk, ntk_product

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 4, generator=G, dtype=torch.float64)
Z = torch.randn(3, 4, generator=G, dtype=torch.float64)


def recurrent():
    """torch gives it no forward differentiation on every version; either way must do."""

    class Last(nn.LSTM):
        def forward(self, x):
            return super().forward(x[:, :, None])[0][:, -1]

    return Last(1, 2, batch_first=True).double()


class Doubling(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


class Backwards(nn.Linear):
    def forward(self, x):
        return torch.tanh(Doubling.apply(super().forward(x)))


NETWORKS = {
    "mlp": mlp((4, 7, 2), "tanh", bias=True, seed=1),
    "recurrent": recurrent(),
    "no forward derivative": Backwards(4, 2).double(),
    "convolution": nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("other", [None, Z])
def test_it_is_the_matrix(name, other):
    net = NETWORKS[name].double()
    H = ntk(net, X, other, method="jacobian", vectorize=False)
    product = ntk_product(net, X, other)
    v = torch.randn(product.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(product(v), torch.einsum("ijcd,jd->ic", H, v), rtol=1e-11, atol=1e-12)
    single = ntk_product(net, X, other, output=1)
    assert torch.allclose(single(v[:, 1]), H[..., 1, 1] @ v[:, 1], rtol=1e-11, atol=1e-12)
    narrow = ntk_product(net, X, other)
    narrow.chunk = 2  # in blocks
    assert torch.allclose(narrow(v), product(v), rtol=1e-12, atol=1e-13)


def test_at_another_point():
    f = flat_loss(NETWORKS["mlp"], X, X[:, :2], nn.functional.mse_loss)
    q, v = f.q0 + 0.3, torch.ones(6, 2, dtype=torch.float64)
    there = torch.einsum("ijcd,jd->ic", ntk(f, X, q=q), v)
    assert torch.allclose(ntk_product(f, X, q=q)(v), there, rtol=1e-12)
    assert not torch.allclose(ntk_product(f, X)(v), there, rtol=1e-2)  # the control
    assert ntk_product(f, X, q=q.float())(v).dtype == torch.float32


def test_what_it_refuses():
    net = NETWORKS["mlp"]
    with pytest.raises(ValueError, match=r"v has shape \(6,\), this kernel takes \(6, 2\)"):
        ntk_product(net, X)(torch.ones(6))
    with pytest.raises(ValueError, match="'trace' is no map"):
        ntk_product(net, X, output="trace")
    with pytest.raises(ValueError, match="output must be"):
        ntk_product(net, X, output=2)
    with pytest.raises(MemoryError, match=r"one sample takes .* above max_memory = 100"):
        ntk_product(net, X, max_memory=100)
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        ntk_product(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double(), X)
