"""Models with known laws: for each the symmetries that it has, all of them, and why it has no others.

A line of what is expected reads ``kind: tensor + tensor - tensor xN``: the kind of symmetry, the tensors it moves
(``-`` for those that go the other way) and how many generators. The order of lines and tensors is free. What is not
listed must not be found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from nlcompanion import RePU, Swish


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Attributes:
        make: gives ``(model, inputs, targets, loss)``, or ``(model, inputs)`` of a model with a loss of its own.
        laws: what must be found, and nothing else.
        why: how one knows.
        slow: takes more than a second or two.
        needs: a library that must be there.
    """

    make: Callable[[], tuple]
    laws: tuple[str, ...]
    why: str
    slow: bool = False
    needs: str | None = None


ZOO: dict[str, Entry] = {}


def entry(*laws: str, why: str, slow: bool = False, needs: str | None = None, **prefixes: str):
    """Put the function below into the zoo; ``{h}`` in a law is one of the prefixes."""

    def put(make):
        ZOO[make.__name__] = Entry(make, tuple(law.format(**prefixes) for law in laws), why, slow, needs)
        return make

    return put


def logits(layer: str, width: int, *, bias: bool = True) -> tuple[str, ...]:
    """What cross-entropy gives any last layer: adding one number to all logits changes nothing."""
    return (f"logit shift: {layer}.weight x{width}", *([f"logit shift: {layer}.bias x1"] if bias else []))


CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 2])


def vectors(model: nn.Module, width: int = 4):
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(len(CLASSES), width, generator=generator), CLASSES, F.cross_entropy


def images(model: nn.Module, channels: int = 2, size: int = 6):
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(len(CLASSES), channels, size, size, generator=generator), CLASSES, F.cross_entropy


def sequences(model: nn.Module, width: int = 8, length: int = 4):
    generator = torch.Generator().manual_seed(1)
    return model, torch.randn(len(CLASSES), length, width, generator=generator), CLASSES, F.cross_entropy


def regression(model: nn.Module, width: int = 4, out: int = 3):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(7, width, generator=generator), torch.randn(7, out, generator=generator)
    return model, x, y, F.mse_loss


def tokens(model: nn.Module, vocabulary: int = 7, length: int = 5):
    generator = torch.Generator().manual_seed(1)
    t = torch.randint(0, vocabulary, (4, length), generator=generator)
    t[0, 0], t[0, 1] = 0, vocabulary - 1
    return model, t, t.roll(-1, 1), lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten())


class Mean(nn.Module):
    """The mean over positions, or over the pixels of an image."""

    def forward(self, x):
        return x.mean(1) if x.ndim == 3 else x.mean((2, 3))


# --- perceptrons ------------------------------------------------------------------------------------------------------


@entry("rescaling: 0.weight + 0.bias - 2.weight x5", *logits("2", 5), why="ReLU is homogeneous: each hidden neuron")
def relu():
    return vectors(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))


@entry("rescaling: 0.weight - 2.weight x5", why="a squared loss sees a shift of the outputs")
def relu_regression():
    return regression(nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)))


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight x5",
    "rescaling: 2.weight + 2.bias - 4.weight x4",
    *logits("4", 4),
    why="leaky ReLU is homogeneous, layer by layer",
)
def leaky_relu_deep():
    layers = [nn.Linear(4, 5), nn.LeakyReLU(0.1), nn.Linear(5, 4), nn.LeakyReLU(0.2), nn.Linear(4, 3)]
    return vectors(nn.Sequential(*layers))


@entry("rescaling: 0.weight + 0.bias - 2.weight x5", *logits("2", 5), why="a trained slope does not scale")
def prelu():
    return vectors(nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 3)))


def _with_source(activation: nn.Module):
    return vectors(nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)))


SOURCE = "source: 0.weight + 0.bias - 2.weight x5"


@entry(SOURCE, *logits("2", 5), why="GELU has no symmetry: its balance has a source")
def gelu():
    return _with_source(nn.GELU())


@entry(SOURCE, *logits("2", 5), why="tanh is odd, a discrete symmetry only")
def tanh():
    return _with_source(nn.Tanh())


@entry(SOURCE, *logits("2", 5), why="SiLU is Swish with a fixed beta")
def silu():
    return _with_source(nn.SiLU())


@entry(SOURCE, *logits("2", 5), why="ELU is homogeneous on one side of 0 only")
def elu():
    return _with_source(nn.ELU())


@entry(SOURCE, *logits("2", 5), why="softplus tends to ReLU far away and is not it")
def softplus():
    return _with_source(nn.Softplus())


@entry(SOURCE, *logits("2", 5), why="what SiLU overwrites is seen before")
def silu_in_place():
    return _with_source(nn.SiLU(inplace=True))


@entry(SOURCE, *logits("2", 5), why="ReLU6 is ReLU for ordinary weights, and a threshold is no symmetry")
def relu6():
    return _with_source(nn.ReLU6())


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight - 1.beta x5", *logits("2", 5), why="each neuron's beta shrinks as z grows"
)
def swish_with_betas():
    return vectors(nn.Sequential(nn.Linear(4, 5), Swish(5), nn.Linear(5, 3)))


class OneBeta(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight - 1.beta x1",
    SOURCE,
    *logits("2", 5),
    why="one beta lets the whole layer scale; of single neurons the balance has a source",
)
def swish_with_one_beta():
    return vectors(nn.Sequential(nn.Linear(4, 5), OneBeta(), nn.Linear(5, 3)))


@entry("rescaling: 0.weight + 0.bias - 2.weight x5", *logits("2", 5), why="degree 2: the reader has the coefficient -2")
def repu():
    return vectors(nn.Sequential(nn.Linear(4, 5), RePU(2), nn.Linear(5, 3)))


@entry(
    "linear: 0.weight + 0.bias - 1.weight x9", "shear: 0.bias + 1.bias x3", *logits("1", 3), why="GL(3), and the shears"
)
def linear_pair():
    return vectors(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)))


@entry(
    "linear: 0.weight - 1.weight x9",
    "linear: 1.weight - 2.weight x4",
    *logits("2", 2, bias=False),
    why="each inner space has its own GL(d)",
)
def linear_three():
    layers = [nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)]
    return vectors(nn.Sequential(*layers))


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight x5", *logits("2", 5), why="a mask of each neuron leaves the diagonal only"
)
def dropout_between():
    return vectors(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.4), nn.Linear(5, 3)))


@entry(
    "linear: 0.weight + 0.bias - 2.weight x25",
    "shear: 0.bias + 2.bias x5",
    *logits("2", 5),
    why="in eval mode dropout is not there",
)
def dropout_in_eval():
    return vectors(nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.4), nn.Linear(5, 3)).eval())


@entry(
    "rescaling: 0.weight + 0.bias - 4.weight x1", *logits("4", 5), why="the frozen matrix commutes with one number only"
)
def frozen_between():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
    model[2].requires_grad_(False)
    return vectors(model)


@entry("scale: 0.weight + 0.bias x1", *logits("4", 5), why="its partner is frozen, yet the norm behind forgets lengths")
def frozen_before_norm():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.RMSNorm(5), nn.Linear(5, 3))
    model[2].requires_grad_(False)
    model[3].requires_grad_(False)
    return vectors(model)


class Twice(nn.Module):
    """One matrix used twice."""

    def __init__(self, bias: bool):
        super().__init__()
        self.a, self.w, self.c = nn.Linear(4, 5), nn.Linear(5, 5, bias=bias), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.c(torch.relu(self.w(torch.relu(self.w(h)))))


@entry(
    "rescaling: a.weight + a.bias + w.weight - w.weight - c.weight x5",
    "rescaling: w.weight - c.weight x1",
    *logits("c", 5),
    why="rows and columns of the shared matrix go together; and a number c with layers times c, 1/c, c",
)
def shared_layer():
    return vectors(Twice(bias=False))


@entry(
    "rescaling: a.weight + a.bias + w.weight + w.bias - w.weight - c.weight x5",
    *logits("c", 5),
    why="the shared bias is added at two scales, which excludes the number c",
)
def shared_layer_with_bias():
    return vectors(Twice(bias=True))


class Tied(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.weight, self.activation = nn.Parameter(torch.randn(4, 6)), activation

    def forward(self, x):
        return F.linear(self.activation(F.linear(x, self.weight)), self.weight.T)


@entry(why="W and its transpose scale together, and ReLU fixes the axes")
def tied_autoencoder():
    return regression(Tied(torch.relu), 6, 6)


@entry("rotation: weight x6", why="without an activation the hidden space may be turned: O(4), no charge")
def tied_autoencoder_linear():
    return regression(Tied(nn.Identity()), 6, 6)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.up, self.down, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        return self.c(h + self.down(torch.relu(self.up(h))))


@entry(
    "rescaling: up.weight + up.bias - down.weight x6",
    "linear: a.weight + a.bias + down.weight + down.bias - up.weight - c.weight x25",
    "shear: a.bias + up.bias + c.bias x5",
    "shear: down.bias + c.bias x5",
    *logits("c", 5),
    why="the residual stream is linear: all writers against all readers, any matrix",
)
def residual_stream():
    return vectors(Residual())


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.gamma, self.c = nn.Linear(4, 4), nn.Parameter(torch.ones(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.c(torch.tanh(x + self.gamma * self.w(x)))


@entry("rescaling: gamma - w.weight - w.bias x4", *logits("c", 4), why="the gain of a branch")
def layer_scale():
    return vectors(LayerScale())


class Mixture(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate_layer, self.gate = nn.Linear(4, 3), gate
        self.experts = nn.Parameter(torch.randn(3, 4, 3))

    def forward(self, x):
        return torch.einsum("ne,nd,edk->nk", self.gate(self.gate_layer(x)), x, self.experts)


@entry("shift: gate_layer.weight x4", "shift: gate_layer.bias x1", why="softmax gates forget what is added to all")
def mixture_softmax():
    return regression(Mixture(lambda z: z.softmax(-1)))


@entry(why="normalised sigmoids do not; with a squared loss nothing is left")
def mixture_sigmoid():
    return regression(Mixture(lambda z: torch.sigmoid(z) / torch.sigmoid(z).sum(-1, keepdim=True)))


# --- normalisation ----------------------------------------------------------------------------------------------------


def _conv_bn() -> nn.Sequential:
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(48, 3))


@entry(
    "scale: 0.weight x4",
    "dead: 0.bias x4",
    "rescaling: 1.weight + 1.bias - 3.weight x4",
    "rescaling: 3.weight + 3.bias - 6.weight x3",
    *logits("6", 48),
    why="batch norm takes each filter's length and its mean; each channel balances with the pixels that read it",
)
def conv_bn():
    return images(_conv_bn())


@entry(
    "affine: 0.weight + 0.bias - 0.bias - 1.weight x3",
    "affine: 0.weight + 0.bias - 1.weight x1",
    "rescaling: 1.weight + 1.bias - 3.weight x4",
    "rescaling: 3.weight + 3.bias - 6.weight x3",
    *logits("6", 48),
    why="in eval mode batch norm is an affine map with a fixed mean m: W and b - m grow as gamma shrinks",
)
def conv_bn_in_eval():
    model = _conv_bn()
    model[1].running_mean.copy_(torch.tensor([0.3, -0.2, 0.5, 0.9]))
    return images(model.eval())


@entry(
    "scale: 0.weight x4", "dead: 0.bias x4", *logits("4", 4), why="instance norm without a gain: each filter by itself"
)
def instance_norm():
    return images(nn.Sequential(nn.Conv2d(2, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), Mean(), nn.Linear(4, 3)))


@entry(
    "scale: 0.weight + 0.bias x2",
    "shift: 0.bias x2",
    "rescaling: 1.weight + 1.bias - 4.weight x4",
    *logits("4", 4),
    why="group norm: one length and one mean for each group, of two",
)
def group_norm():
    return images(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), Mean(), nn.Linear(4, 3)))


@entry(
    "scale: 0.weight + 0.bias x1",
    "shift: 0.weight x4",
    "shift: 0.bias x1",
    "rescaling: 1.weight + 1.bias - 2.weight x5",
    "shear: 1.bias + 2.bias x5",
    *logits("2", 5),
    why="layer norm: one length for all of the layer, and one mean: a number added to a column of the weight",
)
def layer_norm():
    return vectors(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)))


@entry(
    "scale: 0.weight + 0.bias x1",
    "rescaling: 1.weight - 3.weight x5",
    *logits("3", 5),
    why="RMS norm: a length, no mean; its gain passes through ReLU",
)
def rms_norm():
    return vectors(nn.Sequential(nn.Linear(4, 5), nn.RMSNorm(5), nn.ReLU(), nn.Linear(5, 3)))


@entry(
    "scale: 0.parametrizations.weight.original1 x5",
    "rescaling: 0.parametrizations.weight.original0 + 0.bias - 2.weight x5",
    *logits("2", 5),
    why="weight norm: the direction forgets its length, row by row, and the gain balances",
)
def weight_norm():
    return vectors(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)))


@entry(
    "scale: 0.parametrizations.weight.original x1",
    *logits("2", 5),
    why="spectral norm divides the matrix by one number; rows cannot scale alone",
)
def spectral_norm():
    return vectors(nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)))


@entry(
    "rescaling: 0.weight + 0.bias - 1.weight x5",
    "shear: 0.bias + 1.bias x5",
    *logits("1", 5),
    why="gain and bias of a norm against the layer that reads them",
)
def batch_norm_first():
    return vectors(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), 5)


@entry(
    "scale: 0.weight x4",
    "dead: 0.bias x4",
    "scale: 1.weight x4",
    "dead: 1.bias x4",
    "rescaling: 2.weight + 2.bias - 5.weight x4",
    *logits("5", 4),
    why="a depthwise convolution before batch norm: both lengths of a channel are forgotten, and both biases",
)
def depthwise():
    layers = [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU(), Mean()]
    return images(nn.Sequential(*layers, nn.Linear(4, 3)))


@entry(
    "scale: 0.weight + 0.bias x1",
    "rotation: 0.weight + 0.bias + 2.weight x10",
    *logits("2", 5),
    why="F.normalize divides by the length and turns with its input: O(5) has ten planes; a plain function shows too",
)
def normalised_embedding():
    class Normalise(nn.Module):
        def forward(self, x):
            return 3 * F.normalize(x, dim=-1)

    return vectors(nn.Sequential(nn.Linear(4, 5), Normalise(), nn.Linear(5, 3)))


# --- convolutions -----------------------------------------------------------------------------------------------------


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight x4",
    "rescaling: 2.weight + 2.bias - 5.weight x6",
    *logits("5", 6),
    why="the second reads in two groups: input channel i of group j",
)
def grouped_convolution():
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), Mean(), nn.Linear(6, 3)]
    return images(nn.Sequential(*layers))


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight x4",
    "rescaling: 2.weight + 2.bias - 5.weight x5",
    *logits("5", 5),
    why="a transposed convolution has its inputs first",
)
def transposed_convolution():
    layers = [nn.ConvTranspose2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2), nn.ReLU(), Mean(), nn.Linear(5, 3)]
    return images(nn.Sequential(*layers))


@entry(
    "rescaling: 0.weight + 0.bias - 5.weight x4",
    *logits("5", 16),
    why="maxima and means are homogeneous, and a channel is read at each of its pixels",
)
def pooling():
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Identity(), nn.Flatten(), nn.Linear(16, 3)]
    return images(nn.Sequential(*layers))


@entry(
    "source: 0.weight + 0.bias - 3.weight x4",
    *logits("3", 4),
    why="GELU of a convolution: the source is summed over pixels",
)
def convolution_gelu():
    return images(nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), Mean(), nn.Linear(4, 3)))


@entry(
    "scale: 0.weight x4",
    "source: 1.weight + 1.bias - 3.weight x4",
    "rescaling: 3.weight + 3.bias - 6.weight x3",
    *logits("6", 12),
    why="what writes to a SiLU behind a norm is the norm's gain and bias",
)
def conv_bn_silu():
    first = [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU(inplace=True)]
    return images(nn.Sequential(*first, nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)))


# --- recurrent nets ---------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.r, self.h = kind(4, 6, batch_first=True, **options), nn.Linear(6, 3)

    def forward(self, x):
        return self.h(self.r(x)[0][:, -1])


BOTH_BIASES = "duplicate: r.bias_ih_l0 - r.bias_hh_l0"


@entry(f"{BOTH_BIASES} x24", *logits("h", 6), why="two biases of which the sum counts")
def lstm():
    return sequences(Recurrent(nn.LSTM), 4)


@entry(f"{BOTH_BIASES} x12", *logits("h", 6), why="of the third gate one bias stands inside the reset gate")
def gru():
    return sequences(Recurrent(nn.GRU), 4)


@entry(f"{BOTH_BIASES} x6", *logits("h", 6), why="tanh inside the recurrence leaves the biases only")
def rnn():
    return sequences(Recurrent(nn.RNN), 4)


@entry(
    "rescaling: r.weight_ih_l0 + r.weight_hh_l0 + r.bias_ih_l0 + r.bias_hh_l0 - r.weight_hh_l0 - h.weight x6",
    f"{BOTH_BIASES} x6",
    *logits("h", 6),
    why="each neuron scales, what it writes to itself and reads from itself included",
)
def rnn_relu():
    return sequences(Recurrent(nn.RNN, nonlinearity="relu"), 4)


@entry(
    "rescaling: 0.weight + 0.bias - 2.weight x5",
    "duplicate: 2.bias - 2.offset x3",
    *logits("2", 5),
    why="GLU: the first half is linear in what it passes, the gate is not",
)
def glu_packed():
    class Head(nn.Linear):
        def __init__(self):
            super().__init__(5, 3)
            self.offset = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return super().forward(x) + self.offset

    return vectors(nn.Sequential(nn.Linear(4, 10), nn.GLU(), Head()))


@entry(
    "gated: up.weight - down.weight x5",
    "source: gate.weight - down.weight x5",
    why="SwiGLU: the branch without an activation is linear in what it passes, the other one has a source",
)
def swiglu():
    class SwiGLU(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up = nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False)
            self.down = nn.Linear(5, 3, bias=False)

        def forward(self, x):
            return self.down(F.silu(self.gate(x)) * self.up(x))

    return regression(SwiGLU())


# --- attention --------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.a, self.h = nn.MultiheadAttention(8, 2, batch_first=True, **options), nn.Linear(8, 3)

    def forward(self, x):
        return self.h(self.a(x, x, x)[0].mean(1))


@entry(
    "query-key: a.in_proj_weight + a.in_proj_bias - a.in_proj_weight x32",
    "value-output: a.in_proj_weight + a.in_proj_bias - a.out_proj.weight x32",
    "linear: a.out_proj.weight + a.out_proj.bias - h.weight x64",
    "dead: a.in_proj_bias x8",
    "shear: a.in_proj_bias + a.out_proj.bias x8",
    "shear: a.out_proj.bias + h.bias x8",
    *logits("h", 8),
    why="GL(4) in each of two heads, twice; the key's bias adds the same to all scores of a query",
)
def attention():
    return sequences(Attention())


@entry(
    "query-key: a.in_proj_weight - a.in_proj_weight x32",
    "value-output: a.in_proj_weight - a.out_proj.weight x32",
    "linear: a.out_proj.weight - h.weight x64",
    *logits("h", 8),
    why="the same without biases",
)
def attention_without_bias():
    return sequences(Attention(bias=False))


def _encoder(**options):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, **options)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(3, 5, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    return layer, x, y, F.mse_loss


_QK = "query-key: self_attn.in_proj_weight + self_attn.in_proj_bias - self_attn.in_proj_weight x32"
_VO = "value-output: self_attn.in_proj_weight + self_attn.in_proj_bias - self_attn.out_proj.weight x32"
_DEAD_KEY = "dead: self_attn.in_proj_bias x8"


@entry(
    _QK,
    _VO,
    _DEAD_KEY,
    "source: linear1.weight + linear1.bias - linear2.weight x12",
    "rescaling: norm1.weight + norm1.bias - self_attn.in_proj_weight x8",
    "rescaling: norm2.weight + norm2.bias - linear1.weight x8",
    "shear: norm1.bias + self_attn.in_proj_bias x8",
    "shear: norm2.bias + linear1.bias x8",
    "shear: self_attn.in_proj_bias + self_attn.out_proj.bias x8",
    "duplicate: self_attn.out_proj.bias - linear2.bias x1",
    why="gain and bias of each norm against what reads them",
)
def encoder_layer():
    return _encoder(activation="gelu", norm_first=True, dropout=0.0)


# --- transformers, by people who did not write this -------------------------------------------------------------------

_HF = "transformers"
_TIMM = "timm"  # imports torchvision, of which there must be the build that belongs to this torch
_SMALL = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def _text(model: nn.Module):
    """A language model that returns its own loss; both ends of the vocabulary are there."""
    t = torch.randint(0, 11, (3, 5), generator=torch.Generator().manual_seed(1))
    t[0, 0], t[0, 1] = 0, 10
    return model.train(), {"input_ids": t, "labels": t}


@entry(
    "rescaling: {h}ln_1.weight + {h}ln_1.bias - {h}attn.c_attn.weight x8",
    "rescaling: {h}ln_2.weight + {h}ln_2.bias - {h}mlp.c_fc.weight x8",
    "rescaling: transformer.wte.weight + transformer.wpe.weight + {h}attn.c_proj.weight + {h}attn.c_proj.bias"
    " + {h}mlp.c_proj.weight + {h}mlp.c_proj.bias - transformer.ln_f.weight - transformer.ln_f.bias x1",
    "query-key: {h}attn.c_attn.weight + {h}attn.c_attn.bias - {h}attn.c_attn.weight x32",
    "value-output: {h}attn.c_attn.weight + {h}attn.c_attn.bias - {h}attn.c_proj.weight x32",
    "shift: transformer.wpe.weight x4",
    "shift: {h}attn.c_proj.weight x8",
    "shift: {h}mlp.c_proj.weight x32",
    "shift: {h}attn.c_proj.bias x1",
    "shift: {h}mlp.c_proj.bias x1",
    "logit shift: transformer.wte.weight x1",
    "duplicate: transformer.wte.weight - transformer.wpe.weight x8",
    "dead: {h}attn.c_attn.bias x8",
    "shear: {h}ln_1.bias + {h}attn.c_attn.bias x8",
    "shear: {h}ln_2.bias + {h}mlp.c_fc.bias x8",
    "shear: {h}attn.c_attn.bias + {h}attn.c_proj.bias x8",
    why="tied: the stream's length is read off by the last norm, whose gain the embedding at the end undoes; its GELU "
    "is made of powers and tanh, whose source is not elementwise in one call",
    slow=True,
    needs=_HF,
    h="transformer.h.0.",
)
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    off = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return _text(
        GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8, **off, **ends))
    )


_GATED = (
    "gated: {h}mlp.up_proj.weight - {h}mlp.down_proj.weight x12",
    "source: {h}mlp.gate_proj.weight - {h}mlp.down_proj.weight x12",
    "value-output: {h}self_attn.v_proj.weight - {h}self_attn.o_proj.weight x16",
)
_NORMS = (
    "rescaling: model.norm.weight - lm_head.weight x8",
    "rescaling: {h}post_attention_layernorm.weight - {h}mlp.gate_proj.weight - {h}mlp.up_proj.weight x8",
    "rescaling: {h}input_layernorm.weight - {h}self_attn.q_proj.weight - {h}self_attn.k_proj.weight"
    " - {h}self_attn.v_proj.weight x8",
    "logit shift: lm_head.weight x8",
)


@entry(
    *_GATED,
    *_NORMS,
    "scale: model.embed_tokens.weight + {h}self_attn.o_proj.weight + {h}mlp.down_proj.weight x1",
    "query-key: {h}self_attn.q_proj.weight - {h}self_attn.k_proj.weight x2",
    "rotation: {h}self_attn.q_proj.weight + {h}self_attn.k_proj.weight x2",
    why="rotary embedding leaves a length and an angle of each plane, and two queries share a key",
    slow=True,
    needs=_HF,
    h="model.layers.0.",
)
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return _text(LlamaForCausalLM(LlamaConfig(**_SMALL, num_key_value_heads=1, tie_word_embeddings=False)))


@entry(
    *_GATED,
    *_NORMS,
    "scale: model.embed_tokens.weight + {h}input_layernorm.weight + {h}mlp.down_proj.weight x1",
    "scale: {h}self_attn.q_proj.weight x2",
    "scale: {h}self_attn.k_proj.weight x1",
    "rescaling: {h}self_attn.q_norm.weight - {h}self_attn.k_norm.weight x2",
    why="norms of query and key forget the lengths of each head, and their gains balance, plane by plane",
    slow=True,
    needs=_HF,
    h="model.layers.0.",
)
def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = {"num_key_value_heads": 1, "head_dim": 4}
    return _text(Qwen3ForCausalLM(Qwen3Config(**_SMALL, **heads, tie_word_embeddings=False)))


@entry(
    *(
        f"scale: {{r}}{name}.convolution.weight x{n}"
        for name, n in [
            ("embedder.embedder", 4),
            ("encoder.stages.0.layers.0.layer.0", 4),
            ("encoder.stages.0.layers.0.layer.1", 4),
            ("encoder.stages.1.layers.0.shortcut", 6),
            ("encoder.stages.1.layers.0.layer.0", 6),
            ("encoder.stages.1.layers.0.layer.1", 6),
        ]
    ),
    *(
        f"rescaling: {{s}}{k}.layers.0.layer.0.normalization.weight + {{s}}{k}.layers.0.layer.0.normalization.bias"
        f" - {{s}}{k}.layers.0.layer.1.convolution.weight x{n}"
        for k, n in [(0, 4), (1, 6)]
    ),
    "rescaling: {r}embedder.embedder.normalization.weight + {r}embedder.embedder.normalization.bias"
    " + {s}0.layers.0.layer.1.normalization.weight + {s}0.layers.0.layer.1.normalization.bias"
    " - {s}0.layers.0.layer.0.convolution.weight - {s}1.layers.0.shortcut.convolution.weight"
    " - {s}1.layers.0.layer.0.convolution.weight x4",
    "rescaling: {s}1.layers.0.shortcut.normalization.weight + {s}1.layers.0.shortcut.normalization.bias"
    " + {s}1.layers.0.layer.1.normalization.weight + {s}1.layers.0.layer.1.normalization.bias"
    " - classifier.1.weight x6",
    "duplicate: {s}1.layers.0.shortcut.normalization.bias - {s}1.layers.0.layer.1.normalization.bias x6",
    "logit shift: classifier.1.weight x6",
    "logit shift: classifier.1.bias x1",
    why="every filter before its batch norm, and the residual stream of each stage, channel by channel",
    slow=True,
    needs=_HF,
    r="resnet.",
    s="resnet.encoder.stages.",
)
def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return ResNetForImageClassification(config).train(), {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 0])}


@entry(
    "query-key: {a}.weight + {a}.bias - {a}.weight x8",
    "query-key: {a}.weight + {a}.bias - {a}.weight - {a}.bias x2",
    "rotation: {a}.weight + {a}.bias x2",
    "value-output: {a}.weight + {a}.bias - {h}attention.dense.weight x32",
    "dead: {a}.bias x4",
    "shear: {a}.bias + {h}attention.dense.bias x8",
    "shear: {h}input_layernorm.bias + {a}.bias x8",
    "shear: {h}post_attention_layernorm.bias + {h}mlp.dense_h_to_4h.bias x8",
    "scale: gpt_neox.embed_in.weight + {h}attention.dense.weight + {h}attention.dense.bias"
    " + {h}mlp.dense_4h_to_h.weight + {h}mlp.dense_4h_to_h.bias x1",
    "rescaling: gpt_neox.final_layer_norm.weight + gpt_neox.final_layer_norm.bias - lm_head.weight x8",
    "rescaling: {h}post_attention_layernorm.weight + {h}post_attention_layernorm.bias - {h}mlp.dense_h_to_4h.weight x8",
    "rescaling: {h}input_layernorm.weight + {h}input_layernorm.bias - {a}.weight x8",
    "shift: gpt_neox.embed_in.weight x11",
    "shift: {h}attention.dense.weight x8",
    "shift: {h}mlp.dense_4h_to_h.weight x12",
    "shift: {h}attention.dense.bias x1",
    "duplicate: {h}attention.dense.bias - {h}mlp.dense_4h_to_h.bias x8",
    "logit shift: lm_head.weight x8",
    "source: {h}mlp.dense_h_to_4h.weight + {h}mlp.dense_h_to_4h.bias - {h}mlp.dense_4h_to_h.weight x12",
    why="rotary embedding turns two of a head's four dimensions: GL(2) of the others, a length and an angle of these, "
    "the key's bias alive where it is turned; two branches side by side, so their biases add up",
    slow=True,
    needs=_HF,
    h="gpt_neox.layers.0.",
    a="gpt_neox.layers.0.attention.query_key_value",
)
def gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    off = {"attention_dropout": 0.0, "hidden_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    config = GPTNeoXConfig(**_SMALL, **off, max_position_embeddings=8, tie_word_embeddings=False)
    return _text(GPTNeoXForCausalLM(config))


def _vision_transformer(*, tokens: str, patches: str, places: str, block: str, names: dict[str, str], head: str):
    """A classifier of images in patches, that reads a token of its own; by two libraries, under their names."""
    n = {key: block + name for key, name in names.items()}
    query, key, value, out, into, back, before, after = (n[k] for k in ("q", "k", "v", "o", "in", "out", "n1", "n2"))
    norm = names["norm"]
    read = dict.fromkeys(f" - {x}.weight" for x in (query, key, value))
    stream = f"{out}.weight + {out}.bias + {back}.weight + {back}.bias"
    packed = dict.fromkeys(f" + {x}.bias" for x in (query, value))
    return (
        f"scale: {tokens} + {places} + {patches}.weight + {patches}.bias + {stream} x1",
        f"scale: {patches}.weight + {patches}.bias + {places} x1",
        f"rescaling: {norm}.weight + {norm}.bias - {head}.weight x8",
        f"rescaling: {after}.weight + {after}.bias - {into}.weight x8",
        f"rescaling: {before}.weight + {before}.bias{''.join(read)} x8",
        f"query-key: {query}.weight + {query}.bias - {key}.weight x32",
        f"value-output: {value}.weight + {value}.bias - {out}.weight x32",
        f"shift: {tokens} x1",
        f"shift: {places} x5",
        f"shift: {patches}.weight x2",
        f"shift: {patches}.bias x1",
        f"shift: {out}.weight x8",
        f"shift: {out}.bias x1",
        f"shift: {back}.weight x12",
        f"shift: {back}.bias x1",
        f"duplicate: {tokens} - {places} + {patches}.bias x8",
        f"dead: {key}.bias x8",
        f"shear: {norm}.bias + {head}.bias x8",
        f"shear: {after}.bias + {into}.bias x8",
        f"shear: {value}.bias + {out}.bias x8",
        f"shear: {before}.bias{''.join(packed)} x8",
        f"source: {into}.weight + {into}.bias - {back}.weight x12",
        *logits(head, 8),
    )


_VIT = "the class token alone is read; patches reach it through the first norm only, so they have a length of their own"


@entry(
    *_vision_transformer(
        tokens="vit.embeddings.cls_token",
        patches="vit.embeddings.patch_embeddings.projection",
        places="vit.embeddings.position_embeddings",
        block="vit.layers.0.",
        names={
            "q": "attention.q_proj",
            "k": "attention.k_proj",
            "v": "attention.v_proj",
            "o": "attention.o_proj",
            "in": "mlp.fc1",
            "out": "mlp.fc2",
            "n1": "layernorm_before",
            "n2": "layernorm_after",
            "norm": "vit.layernorm",
        },
        head="classifier",
    ),
    why=_VIT,
    slow=True,
    needs=_HF,
)
def vision_transformer():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    of_images = {"image_size": 4, "patch_size": 2, "num_channels": 2, "num_labels": 3}
    config = ViTConfig(**sizes, **of_images, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return ViTForImageClassification(config).train(), {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 0])}


@entry(
    *_vision_transformer(
        tokens="cls_token",
        patches="patch_embed.proj",
        places="pos_embed",
        block="blocks.0.",
        names={
            "q": "attn.qkv",
            "k": "attn.qkv",
            "v": "attn.qkv",
            "o": "attn.proj",
            "in": "mlp.fc1",
            "out": "mlp.fc2",
            "n1": "norm1",
            "n2": "norm2",
            "norm": "norm",
        },
        head="head",
    ),
    why=f"{_VIT}; query, key and value are one matrix here",
    slow=True,
    needs=_TIMM,
)
def vision_transformer_of_timm():
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.5}
    return images(VisionTransformer(img_size=4, patch_size=2, in_chans=2, num_classes=3, **sizes), 2, 4)


@entry(
    "scale: stem.proj.weight + stem.proj.bias + {t}fc2.weight + {c}fc2.weight + {c}fc2.bias x1",
    "rescaling: norm.weight + norm.bias - head.weight x6",
    "rescaling: blocks.0.norm2.weight + blocks.0.norm2.bias - {c}fc1.weight x6",
    "rescaling: blocks.0.norm1.weight + blocks.0.norm1.bias - {t}fc1.weight x1",
    "shift: stem.proj.weight x2",
    "shift: stem.proj.bias x1",
    "shift: {c}fc2.weight x24",
    "shift: {c}fc2.bias x1",
    "dead: {t}fc2.bias x4",
    "shear: norm.bias + head.bias x6",
    "shear: blocks.0.norm2.bias + {c}fc1.bias x6",
    "shear: blocks.0.norm1.bias + {t}fc1.bias x1",
    "source: {c}fc1.weight + {c}fc1.bias - {c}fc2.weight x24",
    "source: {t}fc1.weight + {t}fc1.bias - {t}fc2.weight x3",
    *logits("head", 6),
    why="one matrix mixes the patches of every channel, so the norm before it gives up one number and not one a "
    "channel; what it adds to a patch is the same for all channels, a mean, and dead",
    slow=True,
    needs=_TIMM,
    t="blocks.0.mlp_tokens.",
    c="blocks.0.mlp_channels.",
)
def mixer_of_timm():
    from timm.models.mlp_mixer import MlpMixer

    return images(MlpMixer(img_size=4, patch_size=2, in_chans=2, num_classes=3, embed_dim=6, num_blocks=1), 2, 4)


@entry(
    *(f"scale: {{s}}{k}.layers.0.dwconv.weight + {{s}}{k}.layers.0.dwconv.bias x1" for k in (0, 1)),
    "scale: {e}patch_embeddings.weight + {e}patch_embeddings.bias x1",
    "scale: {s}1.downsampling_layer.1.weight + {s}1.downsampling_layer.1.bias"
    " + {s}1.layers.0.layer_scale_parameter + {s}1.layers.0.dwconv.bias x1",
    "scale: {e}layernorm.weight + {e}layernorm.bias"
    " + {s}0.layers.0.layer_scale_parameter + {s}0.layers.0.dwconv.bias x1",
    "rescaling: convnext.layernorm.weight + convnext.layernorm.bias - classifier.weight x6",
    "rescaling: {s}1.downsampling_layer.0.weight + {s}1.downsampling_layer.0.bias"
    " - {s}1.downsampling_layer.1.weight x4",
    *(
        f"rescaling: {{s}}{k}.layers.0.layernorm.weight + {{s}}{k}.layers.0.layernorm.bias"
        f" - {{s}}{k}.layers.0.pwconv1.weight x{n}"
        for k, n in ((0, 4), (1, 6))
    ),
    *(
        f"rescaling: {{s}}{k}.layers.0.layer_scale_parameter - {{s}}{k}.layers.0.pwconv2.weight"
        f" - {{s}}{k}.layers.0.pwconv2.bias x{n}"
        for k, n in ((0, 4), (1, 6))
    ),
    "shift: {e}patch_embeddings.weight x2",
    "shift: {e}patch_embeddings.bias x1",
    *(f"shift: {{s}}{k}.layers.0.dwconv.bias x1" for k in (0, 1)),
    "shear: convnext.layernorm.bias + classifier.bias x6",
    *(f"shear: {{s}}{k}.layers.0.layernorm.bias + {{s}}{k}.layers.0.pwconv1.bias x{n}" for k, n in ((0, 4), (1, 6))),
    "shear: {s}1.downsampling_layer.0.bias + {s}1.downsampling_layer.1.bias x4",
    *(
        f"source: {{s}}{k}.layers.0.pwconv1.weight + {{s}}{k}.layers.0.pwconv1.bias"
        f" - {{s}}{k}.layers.0.pwconv2.weight x{n}"
        for k, n in ((0, 16), (1, 24))
    ),
    *logits("classifier", 6),
    why="a stream's length is forgotten by the next norm, if the bias of the depthwise convolution that reads it grows "
    "along; the mean is not, since that convolution reads channel by channel",
    slow=True,
    needs=_HF,
    e="convnext.embeddings.",
    s="convnext.encoder.stages.",
)
def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"patch_size": 2, "hidden_sizes": [4, 6], "depths": [1, 1], "num_stages": 2, "image_size": 8}
    config = ConvNextConfig(num_channels=2, num_labels=3, layer_scale_init_value=0.1, **sizes)
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return ConvNextForImageClassification(config).train(), {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 0])}


# --- comparison -------------------------------------------------------------------------------------------------------

_SIGNLESS = {"shear", "dead", "shift", "logit shift", "rotation"}


def lines_expected(one: Entry) -> dict[tuple, int]:
    """The laws of an entry as ``{(kind, signed names): generators}``."""
    lines: dict[tuple, int] = {}
    for law in one.laws:
        kind, _, rest = law.partition(": ")
        text, _, size = rest.rpartition(" x")
        names = text.replace(" - ", " + -").split(" + ")
        key = _key(kind, [name if name.startswith("-") else f"+{name}" for name in names])
        lines[key] = lines.get(key, 0) + int(size)
    return lines


def lines_found(found) -> dict[tuple, int]:
    """The same of an audit."""
    lines: dict[tuple, int] = {}
    for line in found.lines:
        key = _key(line.kind, line.moves)
        lines[key] = lines.get(key, 0) + line.size
    return lines


def _key(kind: str, moves) -> tuple:
    signless = kind in _SIGNLESS
    return kind, frozenset(move[1:] if signless else move for move in moves)
