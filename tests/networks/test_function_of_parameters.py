"""A flat loss is a function of its vector and has its own gradient; what cannot be one is refused by name."""

import functools

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn
from torch.utils.checkpoint import checkpoint

from nlcompanion.networks import flat_loss
from nlcompanion.networks.recomputation import plain_checkpoints

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(8, 6, generator=RANDOM)
SEQUENCES = torch.randn(8, 5, 6, generator=RANDOM)
Y = torch.arange(8) % 4


def loss_of(model, inputs=X, loss=F.cross_entropy):
    torch.manual_seed(0)
    return flat_loss(model, inputs, Y, loss)


def slope(f, q):
    q = q.clone().requires_grad_()
    return torch.autograd.grad(f(q), q)[0]


def away(f):
    return f.q0 + 0.3 * torch.randn(len(f), generator=torch.Generator().manual_seed(1)).double()


# --- checkpoints ----------------------------------------------------------------------------------------------------


class Recomputing(nn.Module):
    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head, self.how = nn.Linear(8, 4), how

    def forward(self, x):
        if self.how is None:
            return self.head(self.body(x))
        if self.how == "by hand":
            return self.head(RecomputeByHand.apply(x, self.body, *self.body.parameters()))
        return self.head(checkpoint(self.body, x, use_reentrant=self.how == "reentrant"))


class RecomputeByHand(torch.autograd.Function):
    """What checkpoints of other libraries do: the backward pass runs the module again, as it stands then."""

    @staticmethod
    def forward(ctx, x, body, *weights):
        ctx.body = body
        ctx.save_for_backward(x)
        return body(x)

    @staticmethod
    def backward(ctx, g):
        with torch.enable_grad():
            (x,) = ctx.saved_tensors
            out = ctx.body(x.detach())
        return None, None, *torch.autograd.grad(out, list(ctx.body.parameters()), g)


@pytest.mark.parametrize("how", ["reentrant", "not reentrant"])
def test_checkpointed_models_have_the_gradient_of_plain_ones(how):
    f, plain = loss_of(Recomputing(how)), loss_of(Recomputing(None))
    q = away(f)
    assert torch.equal(f(q), plain(q))
    torch.testing.assert_close(slope(f, q), slope(plain, q), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(torch.func.grad(f)(q), slope(plain, q), rtol=1e-12, atol=1e-15)
    small = torch.autograd.functional.hvp(f, q, slope(plain, q))[1]
    torch.testing.assert_close(
        small, torch.autograd.functional.hvp(plain, q, slope(plain, q))[1], rtol=1e-10, atol=1e-14
    )


def test_control_a_checkpoint_recomputes_under_the_modules_own_weights():
    """Without the plain checkpoints the gradient is wrong, and by how much; this is what the trial must find."""
    model = Recomputing("not reentrant").double()
    f = loss_of(model)
    q = away(f)
    leaf = q.clone().requires_grad_()
    outputs = torch.func.functional_call(f.model, f.unflatten(leaf), (X.double(),))
    (wrong,) = torch.autograd.grad(F.cross_entropy(outputs, Y), leaf)
    assert (wrong - slope(f, q)).norm() > 0.05 * slope(f, q).norm()


def test_other_ways_to_recompute_are_refused():
    with pytest.raises(ValueError, match=r"gradient away from q0 is off .* computed anew in the backward pass"):
        loss_of(Recomputing("by hand"))


def test_checkpoints_go_on_elsewhere():
    """In other losses, after the call and in the midst of it, but for this thread's own."""
    runs = []

    class Counted(nn.Linear):
        def forward(self, x):
            runs.append(1)
            return super().forward(x)

    layer = Counted(6, 4)
    original = torch.utils.checkpoint.CheckpointFunction
    for plain, expected in ((False, 2), (True, 1)):
        runs.clear()
        if plain:
            with plain_checkpoints, plain_checkpoints:
                out = checkpoint(layer, X, use_reentrant=False)
        else:
            out = checkpoint(layer, X, use_reentrant=False)
        out.sum().backward()
        assert len(runs) == expected
    assert torch.utils.checkpoint.CheckpointFunction is original


# --- no function of q ---------------------------------------------------------------------------------------------


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRU(6, 4, batch_first=True), None

    def forward(self, x):
        out, state = self.cell(x, self.state)
        self.state = state.detach()
        return out[:, -1]


class HeldInAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4, dtype=torch.float64)
        self.weights = [self.layer.weight]

    def forward(self, x):
        return x @ self.weights[0].T + self.layer.bias


class Detached(nn.Sequential):
    def forward(self, x):
        return self[1](torch.tanh(self[0](x)).detach() * torch.tanh(self[0](x)))


class StraightThrough(nn.Linear):
    def forward(self, x):
        rounded = (8 * self.weight).round() / 8
        return F.linear(x, self.weight + (rounded - self.weight).detach(), self.bias)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


class WithoutGradient(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


def spectral(train):
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 4))
    return model.train(train)


REFUSED = {
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)), ValueError, r"Dropout \(1\).*model\.eval\(\)"),
    "noise": (lambda: Noisy(6, 4), ValueError, "two calls at the same parameters"),
    "list": (HeldInAList, ValueError, "Python list"),
    "detach": (lambda: Detached(nn.Linear(6, 5), nn.Linear(5, 4)), ValueError, "gradient is not that of the value"),
    "straight through": (lambda: StraightThrough(6, 4), ValueError, "straight-through"),
    "spectral norm": (lambda: spectral(True), ValueError, r"spectral norm in train mode"),
    "complex": (Complex, TypeError, r"weight is complex \(torch\.complex64\).*view_as_complex"),
    "no gradient": (lambda: WithoutGradient(6, 4), ValueError, "does not depend on the parameters"),
    "scripted": (lambda: nn.Sequential(torch.jit.script(nn.Linear(6, 4))), TypeError, "0 is a scripted or traced"),
    "traced": (lambda: torch.jit.trace(nn.Linear(6, 4), X), TypeError, "scripted or traced"),
    "lazy": (lambda: nn.LazyLinear(4), ValueError, "lazy module"),
    "meta": (lambda: nn.Linear(6, 4, device="meta"), ValueError, "meta device"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:Lazy modules")
def test_what_is_no_function_of_the_parameters_is_refused(kind):
    torch.manual_seed(0)
    make, error, match = REFUSED[kind]
    with pytest.raises(error, match=match):
        loss_of(make())


def test_a_state_that_is_remembered_is_refused():
    with pytest.raises(ValueError, match="remembers the last one"):
        loss_of(Remembering(), SEQUENCES)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 4)).eval(),
        nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)),
        nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 4)).half(),
        spectral(False),
        nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4)),
    ],
    ids=[
        "dropout in evaluation mode",
        "batch norm",
        "half precision",
        "spectral norm in evaluation mode",
        "many kinks",
    ],
)
def test_control_functions_of_the_parameters_are_taken(model):
    f = loss_of(model)
    assert f(f.q0).dtype == torch.float64
    assert f(f.q0) == f(f.q0)


def test_the_trial_draws_nothing_from_the_random_state_of_others_and_runs_without_gradients_around():
    before = torch.get_rng_state()
    with torch.no_grad():
        f = flat_loss(nn.Sequential(nn.Linear(6, 4)), X, Y, F.cross_entropy)
    with torch.inference_mode():
        g = flat_loss(f.model, X.clone(), Y.clone(), F.cross_entropy)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    nn.Linear(6, 4)
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(slope(f, away(f)), slope(g, away(f)), rtol=1e-12, atol=1e-15)


# --- weights computed from others, plain tensors, tensors made on the way ---------------------------------------------


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm of old", "pruned"])
def test_hooks_that_compute_a_weight(kind):
    model, by_hand = two_layers(), two_layers()
    if kind == "pruned":
        torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.3)
    else:
        nn.utils.weight_norm(model[0])
    model(X)  # leaves a weight with a graph behind, which deepcopy refuses
    f = loss_of(model)
    for _ in range(2):
        f = loss_of(f.model)  # and again after calls of the loss itself
    q = away(f)
    own = f.unflatten(q)
    if kind == "pruned":
        mask = dict(f.model.named_buffers())["0.weight_mask"]
        weight = own["0.weight_orig"] * mask
    else:
        v = own["0.weight_v"]
        weight = own["0.weight_g"] * v / v.norm(dim=1, keepdim=True)
    parts = {"0.weight": weight, "0.bias": own["0.bias"], "2.weight": own["2.weight"], "2.bias": own["2.bias"]}
    outputs = torch.func.functional_call(by_hand.double(), parts, (X.double(),))
    torch.testing.assert_close(f(q), F.cross_entropy(outputs, Y), rtol=1e-12, atol=1e-14)


class WithHiddenState(nn.Module):
    def __init__(self, made_in_forward):
        super().__init__()
        self.cell, self.start, self.made = nn.GRU(6, 4, batch_first=True), torch.full((1, 8, 4), 0.5), made_in_forward

    def forward(self, x):
        start = torch.full((1, 8, 4), 0.5) if self.made else self.start
        return self.cell(x, start)[0][:, -1]


def test_a_hidden_state_in_another_precision():
    f = loss_of(WithHiddenState(False), SEQUENCES)
    assert f(f.q0).dtype == torch.float64
    assert f(f.q0.float()).item() == pytest.approx(f(f.q0).item(), rel=1e-5)
    assert f(f.q0).dtype == torch.float64
    with pytest.raises(TypeError, match=r"GRU \(cell\) met a tensor of another precision.*dtype=x\.dtype"):
        loss_of(WithHiddenState(True), SEQUENCES)


def test_class_weights_in_another_precision():
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    criteria = (nn.CrossEntropyLoss(weight=weights), functools.partial(F.cross_entropy, weight=weights))
    losses = [loss_of(two_layers(), loss=criterion) for criterion in criteria]
    plain = loss_of(two_layers())
    assert losses[0](plain.q0) == losses[1](plain.q0) != plain(plain.q0)
    with pytest.raises(TypeError, match=r"the loss function met a tensor of another precision.*outputs\.dtype"):
        loss_of(two_layers(), loss=lambda outputs, targets: F.cross_entropy(outputs, targets, weight=weights))


def test_sparse_gradients_become_dense():
    f = flat_loss(nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten()), torch.arange(8), Y, F.cross_entropy)
    assert (slope(f, f.q0).view(10, 4).abs().sum(1) > 0).tolist() == [True] * 8 + [False] * 2


def test_a_module_in_two_places_keeps_its_weights():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(6, 4), shared, nn.Tanh(), shared)
    f = loss_of(model)
    assert all(p.is_leaf for p in f.model.parameters())
    assert slope(f, away(f))[f.slices["1.weight"]].norm() > 0
    assert len(f) == 6 * 4 + 4 + 4 * 4 + 4


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_wrapped_models_are_the_ones_inside(wrap):
    model = two_layers()
    f = loss_of(wrap(model))
    assert f.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert f(f.q0) == loss_of(model)(f.q0)


# --- inputs of other kinds ----------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, input_ids, attention_mask=None, targets=None):
        outputs = self.layer(input_ids)
        if attention_mask is not None:
            outputs = outputs * attention_mask[:, None]
        return outputs if targets is None else (outputs, F.cross_entropy(outputs, targets))


MASK = (torch.arange(8) % 3 > 0).float()


def test_dicts_tuples_and_losses_of_the_models_own_agree():
    own = lambda model, batch: model(*batch)[1]  # noqa: E731
    losses = [
        flat_loss(Named(), {"input_ids": X, "attention_mask": MASK}, Y, F.cross_entropy),
        flat_loss(Named(), (X, MASK), Y, F.cross_entropy),
        flat_loss(Named(), (X, MASK, Y), loss=own),
        flat_loss(Named(), [X, MASK, Y], loss=own),
        flat_loss(Named(), {"x": (X, MASK), "y": Y}, loss=lambda m, b: F.cross_entropy(m(*b["x"]), b["y"])),
    ]
    q = away(losses[0])
    expected = F.cross_entropy(losses[0].outputs(q), Y)
    assert all(f(q) == expected for f in losses)
    assert all(torch.equal(slope(f, q), slope(losses[0], q)) for f in losses)
    assert losses[0](q) != flat_loss(Named(), X, Y, F.cross_entropy)(q)  # the control: without the mask
    half = losses[2].on((X[:4], MASK[:4], Y[:4]))
    assert half(q) == losses[1].on((X[:4], MASK[:4]), Y[:4])(q)
    assert torch.equal(losses[2].outputs(q, (X.double(), MASK.double())), losses[0].outputs(q))


def test_sequences_with_a_mask():
    """Padded sequences whose loss is over the tokens that count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9))
    ids, lengths = torch.randint(9, (4, 7)), torch.tensor([7, 3, 5, 1])
    mask = torch.arange(7) < lengths[:, None]

    def over_tokens(model, batch):
        outputs = model(batch["ids"])[:, :-1][batch["mask"][:, 1:]]
        return F.cross_entropy(outputs, batch["ids"][:, 1:][batch["mask"][:, 1:]])

    f = flat_loss(model, {"ids": ids, "mask": mask}, loss=over_tokens)
    others = ids.clone()
    others[~mask] = 0
    assert f.on({"ids": others, "mask": mask})(f.q0) == f(f.q0)
    assert f.on({"ids": others, "mask": mask | True})(f.q0) != f(f.q0)


def test_a_loss_with_a_derivative_by_its_inputs():
    """u' = -u on a few points, as physics-informed networks have it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def residual(model, t):
        t = t.detach().requires_grad_()
        u = model(t)
        (rate,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        return (rate + u).square().mean()

    f = flat_loss(net, torch.linspace(0, 1, 9)[:, None], loss=residual)
    assert slope(f, f.q0).norm() > 1e-3


def test_what_does_not_fit_is_told_with_the_form_that_does():
    two_results = lambda outputs, _: outputs[1]  # noqa: E731
    with pytest.raises(TypeError, match=r"forward returns the loss itself.*model\(\*batch\)\[1\]"):
        flat_loss(Named(), (X, None, None), Y, lambda outputs, _: None)
    with pytest.raises(ValueError, match=r"Linear \(0\) raised RuntimeError: mat1 and mat2"):
        loss_of(nn.Sequential(nn.Linear(5, 4)))
    with pytest.raises(TypeError, match=r"the loss function raised TypeError.*not tuple"):
        loss_of(nn.LSTM(6, 4, batch_first=True), SEQUENCES)
    with pytest.raises(ValueError, match=r"5 inputs and 8 targets.*another order: flat_loss\(model, batch"):
        loss_of(nn.Linear(6, 4), SEQUENCES.transpose(0, 1))
    with pytest.raises(TypeError, match=r"loss must be a function, got NoneType"):
        flat_loss(Named(), X, Y)
    f = flat_loss(Named(), (X, None, Y), loss=lambda model, batch: two_results(model(*batch), None))
    with pytest.raises(TypeError, match=r"name the inputs: f\.outputs\(q, inputs\)"):
        f.outputs(f.q0)
    with pytest.raises(TypeError, match=r"give on\(batch\)"):
        f.on(X, Y)
    with pytest.raises(TypeError, match="inputs and targets"):
        loss_of(Named()).on(X)
