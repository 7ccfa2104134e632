"""A law is confirmed by the gradient, not read off types; what fails is refused by name and takes no other along."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nlcompanion.laws import homogeneous_law, homogeneous_laws, law_of, linear_law
from nlcompanion.networks import flat_loss
from nlcompanion.symmetries import rescale, scale

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 4


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), *(between or (nn.ReLU(),)), nn.Linear(5, 4)).double()


def loss_of(model, loss=F.cross_entropy):
    return flat_loss(model, X, Y, loss)


# --- what changes a layer without changing its type -----------------------------------------------------------------


def clamped(model):
    model[0].register_forward_hook(lambda module, args, out: out.clamp(-0.5, 0.5))


def steered(model):
    model[0].register_forward_hook(lambda module, args, out: out + 1.0)


def normalised_before(model):
    model[2].register_forward_pre_hook(lambda module, args: (F.layer_norm(args[0], (5,)),))


def patched(model):
    model[1].forward = torch.tanh


def quantised_by_a_model_hook(model):
    model.register_forward_pre_hook(lambda module, args: None)
    model[1].register_forward_hook(lambda module, args, out: torch.sinh(out))


CHANGES = {
    clamped: r"forward hook on Linear \(0\)",
    steered: r"forward hook on Linear \(0\)",
    normalised_before: r"forward pre-hook on Linear \(2\)",
    patched: r"forward set on the instance of ReLU \(1\)",
    quantised_by_a_model_hook: r"forward hook on ReLU \(1\)",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_network_has_no_law_by_its_types(change):
    model = network()
    change(model)
    f = loss_of(model)
    with pytest.raises(ValueError, match=f"does not hold for this loss.*{CHANGES[change]}"):
        homogeneous_law(f, 1)
    with pytest.raises(ValueError, match="does not hold"):
        homogeneous_laws(f)
    sham = homogeneous_law(f, 1, p=1.0, verify=False)  # the control: what was refused does not hold
    assert sham.cosine(torch.func.grad(f)(f.q0), f.q0).abs().max() > 1e-3


def test_control_hooks_that_only_look_on_are_no_obstacle():
    model, seen = network(), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.detach().abs().max()))
    model[1].forward = torch.relu
    (law,) = homogeneous_laws(loss_of(model))
    assert law.shape == (5,)
    assert seen


def test_a_linear_pair_with_a_hook():
    model = network(nn.Identity())
    assert linear_law(loss_of(model), 1).shape == (5, 5)
    model[1].register_forward_hook(lambda module, args, out: out.relu())
    with pytest.raises(ValueError, match=r"forward hook on Identity \(1\)"):
        linear_law(loss_of(model), 1)


def test_a_penalty_in_the_loss_breaks_the_law():
    model = network()

    def penalised(m, batch):
        return F.cross_entropy(m(batch[0]), batch[1]) + 1e-3 * m[0].weight.square().sum()

    with pytest.raises(ValueError, match="penalty on weights in the loss"):
        homogeneous_laws(flat_loss(model, (X, Y), loss=penalised))
    clean = flat_loss(model, (X, Y), loss=lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))
    assert len(homogeneous_laws(clean)) == 1


def test_a_special_start_hides_nothing():
    """With the last layer at 0 the gradient of the first vanishes, and any law would pass at the start."""
    model = network(nn.Tanh())
    with torch.no_grad():
        model[2].weight.zero_()
    f = loss_of(model)
    pair = rescale(f.slices["0.weight"], f.slices["2.weight"])
    with pytest.raises(ValueError, match=r"not invariant|does not hold"):
        law_of(pair, f)
    with pytest.raises(ValueError, match=r"not invariant|does not hold"):
        law_of(scale(f.slices["0.weight"]), f)


def test_a_loss_that_is_not_finite_confirms_nothing():
    f = flat_loss(network(), X * float("nan"), Y, F.cross_entropy)
    with pytest.raises(ValueError, match=r"not finite.*cannot be confirmed"):
        homogeneous_law(f, 1)


# --- partial results ------------------------------------------------------------------------------------------------


def three_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU()).append(
        nn.Linear(4, 4)
    )


def frozen(model):
    model[0].requires_grad_(False)


def normalised(model):
    nn.utils.parametrizations.weight_norm(model[0])


def pruned(model):
    import torch.nn.utils.prune as prune

    prune.l1_unstructured(model[0], "weight", 0.3)


def hooked(model):
    model[0].register_forward_hook(lambda module, args, out: out + 1.0)


PARTLY = {frozen: "0.weight is frozen", normalised: "weight_norm", pruned: "pruning", hooked: "forward hook"}


@pytest.mark.parametrize("change", PARTLY, ids=lambda change: change.__name__)
def test_one_layer_does_not_take_the_laws_of_the_others(change):
    model = three_layers().double()
    change(model)
    f = loss_of(model)
    with pytest.warns(UserWarning, match=f"no law of hidden layer 1, the others hold: .*{PARTLY[change]}"):
        laws = homogeneous_laws(f)
    assert [law.parameters[0] for law in laws] == ["2.weight", "4.weight"]
    q = f.q0 + 0.1 * torch.randn(len(f), generator=torch.Generator().manual_seed(1)).double()
    assert all(law.cosine(torch.func.grad(f)(q), q).abs().max() < 1e-12 for law in laws)


def test_control_nothing_is_said_where_all_hold():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(homogeneous_laws(loss_of(three_layers().double()))) == 3


def test_shared_weights_take_their_own_layers_only():
    torch.manual_seed(0)
    shared = nn.Linear(5, 5)
    model = nn.Sequential(
        nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(5, 4)
    ).double()
    with pytest.warns(UserWarning, match="more than one place"):
        laws = homogeneous_laws(loss_of(model))
    assert [law.parameters[0] for law in laws] == ["0.weight"]
