"""What cannot be audited is an error that says why, or a limit; never a wrong law."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from nlcompanion import AuditError, audit

X, Y = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 2])


def relu(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def lines(found):
    return {(line.kind, frozenset(line.moves), line.size) for line in found.lines}


def without_place(found):
    return {(kind.removeprefix("logit "), size) for kind, _, size in found}


EXPECTED = lines(audit(relu(), X, Y, F.cross_entropy))


class Through(nn.Module):
    """A function beside a network: ``then(outputs, inputs)``."""

    def __init__(self, then):
        super().__init__()
        self.net, self.then = relu(), then

    def forward(self, x):
        return self.then(self.net(x), x)


class Sign(torch.autograd.Function):
    """A step with a straight-through gradient: what backward() gives is not the derivative."""

    @staticmethod
    def forward(ctx, x):
        return x + 0.5 * torch.sign(x)

    @staticmethod
    def backward(ctx, g):
        return 3.0 * g


def raising(out, x):
    raise RuntimeError("no such device")


calls = []


def counting(out, x):
    calls.append(1)
    return out * len(calls)


ERRORS = {
    "a function": (torch.relu, X, Y, F.cross_entropy, TypeError, "wrap a function in a Module"),
    "no parameters": (nn.ReLU(), X, Y, F.cross_entropy, AuditError, "no trained parameter"),
    "a frozen model": (relu().requires_grad_(False), X, Y, F.cross_entropy, AuditError, "no trained parameter"),
    "a forward that fails": (Through(raising), X, Y, F.cross_entropy, AuditError, "RuntimeError: no such device"),
    "wrong shapes": (relu(), X[:, :3], Y, F.cross_entropy, AuditError, "fails on the given data"),
    "a loss of several numbers": (relu(), X, Y, lambda o, y: o.sum(0), AuditError, "laws belong to one number"),
    "a loss that is no tensor": (relu(), X, Y, lambda o, y: 3.0, AuditError, "the loss is float"),
    "a loss without the model": (relu(), X, Y, lambda o, y: X.sum(), AuditError, "does not depend on the model"),
    "a detached model": (Through(lambda o, x: o.detach()), X, Y, F.cross_entropy, AuditError, "does not depend on"),
    "a loss that is no function": (relu(), X, Y, "mse", TypeError, "loss must be a function"),
    "NaN in the data": (relu(), X * float("nan"), Y, F.cross_entropy, AuditError, "nan"),
    "a state between calls": (Through(counting), X, Y, F.cross_entropy, AuditError, "two calls"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_an_error_names_the_cause(what):
    *given, error, says = ERRORS[what]
    with pytest.raises(error, match=says):
        audit(*given)


class Closure(nn.Module):
    """Reads one of its layers through a function, which a copy shares with the model."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
        last = self.last
        self.read = lambda x: last(x)

    def forward(self, x):
        return self.read(torch.relu(self.first(x)))


def locked():
    model = relu()
    model.lock = threading.Lock()
    return model


NO_COPY = {
    "weights in a closure": (Closure, "forward reads last.bias, last.weight of the model itself and not of its copy"),
    "what cannot be copied": (locked, "cannot be copied"),
    "a lazy module": (lambda: nn.Sequential(nn.LazyLinear(3)), "run the model on a batch once"),
    "no values": (lambda: relu().to("meta"), "on the meta device"),
}


@pytest.mark.parametrize("what", NO_COPY)
def test_what_has_no_copy_to_examine_is_an_error(what):
    make, says = NO_COPY[what]
    with pytest.raises(AuditError, match=says):
        audit(make(), X, Y, F.cross_entropy)


def test_tensors_beside_the_parameters_are_a_limit():
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
    found = audit(Through(lambda outputs, x: outputs * scale), X, Y, F.cross_entropy)
    assert lines(found) == lines(audit(Through(lambda outputs, x: outputs), X, Y, F.cross_entropy))
    assert any("1 trainable tensor beside the parameters" in limit for limit in found.limits)


def test_complex_parameters_are_a_limit():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.phase = relu(), nn.Parameter(torch.randn(3, dtype=torch.complex64))

        def forward(self, x):
            return (self.net(x) * self.phase).real

    found = audit(Rotated(), X, Y, F.cross_entropy)
    assert any("not real numbers: phase" in limit for limit in found.limits)
    assert ("rescaling", 5) in {(line.kind, line.size) for line in found.lines}


def test_a_criterion_with_weights_of_its_own():
    assert lines(audit(relu(), X, Y, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5])))) == EXPECTED


def test_packed_sequences():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.h = nn.RNN(4, 6, nonlinearity="relu", batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.h(self.r(x)[1][-1])

    torch.manual_seed(0)
    packed = pack_padded_sequence(torch.randn(7, 5, 4), torch.tensor([5, 4, 4, 3, 2, 2, 1]), batch_first=True)
    found = audit(Reader(), packed, Y, F.cross_entropy)
    kinds = {(line.kind, line.size) for line in found.lines}
    assert kinds == {("rescaling", 6), ("duplicate", 6), ("logit shift", 6), ("logit shift", 1)}
    assert not found.limits


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3))

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=reentrant)

    kinds = {(line.kind, line.size) for line in audit(Checkpointed(), X, Y, F.cross_entropy).lines}
    assert kinds == {("source", 5), ("logit shift", 5), ("logit shift", 1)}


def test_parameters_that_are_not_finite():
    model = relu()
    with torch.no_grad():
        model[0].bias[1] = torch.inf
    with pytest.raises(AuditError, match=r"0\.bias: NaN or infinity"):
        audit(model, X, Y, F.cross_entropy)


def test_an_optimizer_that_is_none():
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        audit(relu(), X, Y, F.cross_entropy, optimizer=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_have_the_same_laws(dtype):
    assert lines(audit(relu().to(dtype), X.to(dtype), Y, F.cross_entropy)) == EXPECTED


def test_an_activation_whose_output_nothing_uses_changes_no_law():
    unused = Through(lambda outputs, x: (F.silu(outputs), outputs)[1])
    assert without_place(lines(audit(unused, X, Y, F.cross_entropy))) == without_place(EXPECTED)


def test_wrapped_and_compiled_models_are_looked_through(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        in_processes = nn.parallel.DistributedDataParallel(relu())
        for wrapped in (nn.DataParallel(relu()), torch.compile(relu()), in_processes, torch.compile(in_processes)):
            found = audit(wrapped, X, Y, F.cross_entropy)
            assert lines(found) == EXPECTED
            assert any("looked through" in limit for limit in found.limits)
    finally:
        torch.distributed.destroy_process_group()


SIGNATURES = {
    "a tuple": ((X,), Y, F.cross_entropy),
    "a mapping": ({"input": X}, Y, F.cross_entropy),
    "loss of model and batch": ((X, Y), None, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])),
}


@pytest.mark.parametrize("how", SIGNATURES)
def test_any_call_signature(how):
    found = lines(audit(relu(), *SIGNATURES[how]))
    if how == "loss of model and batch":  # what the model puts out is not seen, nor where a shift acts
        assert without_place(found) == without_place(EXPECTED)
    else:
        assert found == EXPECTED


def test_a_model_with_a_loss_of_its_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = relu()

        def forward(self, x, labels):
            return {"loss": F.cross_entropy(self.net(x), labels)}

    found = lines(audit(Own(), {"x": X, "labels": Y}))
    assert without_place(found) == without_place(EXPECTED)


def test_a_frozen_layer_is_a_limit_and_leaves_the_others_their_laws():
    model = relu()
    model[0].requires_grad_(False)
    found = audit(model, X, Y, F.cross_entropy)
    assert {line.kind for line in found.lines} == {"logit shift"}
    assert any("frozen" in limit for limit in found.limits)


def test_a_gradient_that_is_no_derivative_is_a_limit():
    found = audit(Through(lambda o, x: Sign.apply(o)), X, Y, F.cross_entropy)
    assert any("does not give the derivative" in limit for limit in found.limits)
    assert not any(line.kind == "logit shift" for line in found.lines)  # the step sees a shift
    assert any(line.kind == "rescaling" for line in found.lines)  # and this holds before it


def test_a_hook_on_a_gradient_is_a_limit():
    model = relu()
    model[0].weight.register_hook(lambda g: 2 * g)
    found = audit(model, X, Y, F.cross_entropy)
    assert lines(found) == EXPECTED
    assert any("hooks on the gradient of 0.weight" in limit for limit in found.limits)


def test_integer_inputs_and_rows_that_were_never_looked_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3))
    found = audit(model, torch.tensor([[0, 1], [2, 3], [1, 4]]), torch.tensor([0, 1, 2]), F.cross_entropy)
    assert any("4 rows never looked up" in limit for limit in found.limits)
    assert not any(line.kind == "dead" for line in found.lines)


def test_inputs_that_vanish_on_the_given_data_are_no_law():
    x = X.clone()
    x[:, 2] = 0.0
    found = audit(relu(), x, Y, F.cross_entropy)
    assert not any(line.kind == "dead" for line in found.lines)


def test_random_masks_follow_the_seed_and_the_model_is_repeatable():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    kinds = {(line.kind, line.size) for line in audit(model, X, Y, F.cross_entropy).lines}
    assert ("rescaling", 5) in kinds
    assert copy.deepcopy(kinds) == {
        (line.kind, line.size) for line in audit(model, X, Y, F.cross_entropy, seed=3).lines
    }


def test_half_precision_inside_the_model_is_redirected():
    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = relu()

        def forward(self, x):
            return self.net(x.float()).to(torch.float32)

    found = audit(Casting(), X, Y, F.cross_entropy)
    assert all(line.moved < 1e-12 for line in found.lines)
    assert len(found.lines) == len(EXPECTED)
