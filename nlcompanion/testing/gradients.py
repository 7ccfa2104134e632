"""``check_gradients``: does a backward pass obey the laws of its own forward pass?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nlcompanion._arguments import flag, floating_precision, instance, positive_number, scalar_of, seed_number
from nlcompanion._arguments import function as a_function
from nlcompanion.testing import attention, linear_maps, normalization, pointwise  # noqa: F401 (they register kinds)
from nlcompanion.testing.parameters import limits_of, parameter_balances
from nlcompanion.testing.record import Record, kind_of
from nlcompanion.testing.recording import Recorder, called, cotangent, floating, run_kernel
from nlcompanion.testing.report import LawCheck, Report
from nlcompanion.testing.rounding import Balance

RESOLUTION = 0.5


def check_gradients(
    function: Callable | nn.Module,
    *inputs: Any,
    kind: str | None = None,
    kinds: Mapping[Any, Any] | None = None,
    laws: Any = None,
    grad_output: Tensor | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    precision: torch.dtype | None = None,
    resolution: float = RESOLUTION,
    seed: int = 0,
    raise_error: bool = False,
    **options: Any,
) -> Report:
    r"""Hold a backward pass against the laws of its layers; no reference implementation is needed.

    Three uses:

    - **a kernel**: ``check_gradients(f, q, k, v, kind="attention")``. The inputs are, in order, the roles of the kind:
      attention ``q, k, v`` of shape ``(batch, heads, n, d)``; linear and convolution ``x, weight, bias``; norm and
      rms_norm ``x, weight, bias``; homogeneous, softmax, cross_entropy and rotary ``x``; gated ``gate, up``.
    - **a module**: ``check_gradients(model, x)`` checks every layer in it whose kind is known.
    - **a model's gradient as it lies in** ``.grad``: ``check_gradients(model, laws=...)`` after your own
      ``backward()``. Laws there are linear in the gradient, so they survive accumulation, unscaling, clipping by the
      norm and an all-reduce of *all* tensors; clipping number by number, or by tensor, and a tensor left out of the
      all-reduce break them.

    A law is blind to what all its terms share: gradients that are too large by one factor pass the laws that are
    linear in them. And a fault smaller than ``visible`` times one side of the law passes, whatever it is.

    Sums are in float64. Large tensors of a coarser dtype are looked at in float32 first; what does not stay below half
    of its floor there is added up again in float64, so that nothing is called broken in float32. What has no law (a
    set of one number in a norm, sinks and a soft cap in attention, layers of unknown kind) is listed in ``limits``.

    Args:
        function: what is checked.
        inputs: real ones, as in training; laws are exact for any.
        kind: of a kernel; ``options`` belong to it: attention ``scale``, ``sinks``, ``soft_cap``; norms ``eps``,
            ``over`` (``"last"``, ``"batch"``, ``"groups"``) and ``groups``; homogeneous and gated ``degree``; softmax
            ``dim``; cross_entropy ``weight``, the largest of a sample in the loss; rotary ``interleaved``;
            convolution ``groups``, ``transposed``.
        kinds: for layers of your own in a module: their name or type, and their kind or ``(kind, options)``.
        laws: laws of parameters, such as ``homogeneous_laws(f)``, :class:`GainIntoLinear`, or an :func:`audit`: then
            all that it found, symmetries without a charge included; the report says what each law survives.
        grad_output: the real gradient at the output, or None for random numbers.
        loss: makes a number of the output, in place of ``grad_output``.
        precision: the dtype of the arithmetic, where it is coarser than that of the tensors (autocast).
        resolution: the verdict is "cannot tell" if a fault of this share of one side could hide (dimensionless).
        seed: of the random gradient.
        raise_error: raise for a broken law.

    Returns:
        A :class:`Report`; ``print`` shows it.

    Raises:
        LawError: with ``raise_error``, if a law is broken.
        ValueError: shapes that do not fit, values that are not finite, gradients that are missing.
        TypeError: tensors that have no gradient.

    Source: this book's; GU Section 5 for linear and homogeneous layers, TK Section 3 for normalised ones.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
        >>> attention = torch.nn.functional.scaled_dot_product_attention
        >>> check_gradients(attention, q, k, v, kind="attention").verdict
        'lawful'
        >>> def without_scale(q, k, v):  # a backward pass that forgets the scale in dQ
        ...     q = q * 2 - q.detach()
        ...     return attention(q, k, v)
        >>> check_gradients(without_scale, q, k, v, kind="attention").broken[0].law
        'sum of Qᵀ dQ = dKᵀ K'

        What a law cannot see: a factor that all its terms have, and one per cent in one head below bfloat16's floor.

        >>> def doubled(q, k, v):  # dQ and dK are twice too large
        ...     return attention(q * 2 - q.detach(), k * 2 - k.detach(), v)
        >>> check_gradients(doubled, q, k, v, kind="attention").verdict
        'lawful'
        >>> share = torch.tensor([0.01, 0.0, 0.0, 0.0]).reshape(4, 1, 1)
        >>> def one_head(q, k, v):  # dQ of the first head is one per cent too large
        ...     return attention(q + share.to(q) * (q - q.detach()), k, v)
        >>> check_gradients(one_head, q, k, v, kind="attention").verdict
        'broken'
        >>> rounded = [t.bfloat16() for t in (q, k, v)]
        >>> report = check_gradients(one_head, *rounded, kind="attention")
        >>> report.verdict, report.checks[0].visible > 0.01
        ('lawful', True)
    """
    if not isinstance(function, nn.Module):
        a_function("function", function, "that computes one tensor of others")
    _check_settings(precision, resolution, raise_error)
    seed = seed_number("seed", seed)
    if grad_output is not None:
        floating("grad_output", grad_output)
    if loss is not None:
        a_function("loss", loss, "loss(output) -> scalar", 1)
    if kinds is not None:
        instance("kinds", kinds, Mapping, '{"layer": "linear"}')
    if laws is not None and inputs:
        raise ValueError("laws= are checked on the .grad that lies in a model, without inputs; leave one of both out")
    if laws is not None:
        if not isinstance(function, nn.Module):
            raise TypeError(f"laws= are held against a module's .grad, got {type(function).__name__}; pass the module")
        checks = [c for b in parameter_balances(function, laws, precision) for c in b.judge(resolution)]
        report = Report(tuple(checks), tuple(limits_of(laws)))
    elif kind is not None:
        record = run_kernel(function, inputs, kind, options, grad_output, loss, seed, precision)
        report = Report(tuple(_judge(kind, record, resolution)), tuple(record.limits))
    else:
        if options:
            raise TypeError(f"{', '.join(options)}: options belong to a kind; name it with kind=")
        report = _check_module(function, inputs, kinds or {}, grad_output, loss, seed, precision, resolution)
    if raise_error:
        report.raise_if_broken()
    return report


def check_recorded(
    kind: str,
    values: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    precision: torch.dtype | None = None,
    resolution: float = RESOLUTION,
    raise_error: bool = False,
    **options: Any,
) -> Report:
    """The laws of one layer, on tensors and gradients that were recorded elsewhere, by role; the output is ``y``.

    Args and errors as :func:`check_gradients` has them.

    Example:
        >>> import torch
        >>> x, w, dy = torch.ones(3, 2).double(), torch.eye(2).double(), torch.ones(3, 2).double()
        >>> values = {"x": x, "weight": w, "y": x @ w.T}
        >>> check_recorded("linear", values, {"x": dy @ w, "weight": dy.T @ x, "y": dy}).verdict
        'lawful'
    """
    _check_settings(precision, resolution, raise_error)
    for name, tensors in (("values", values), ("gradients", gradients)):
        instance(name, tensors, Mapping, '{"x": x, "y": y}')
    record = Record(dict(values), dict(gradients), options, precision)
    report = Report(tuple(_judge(kind, record, resolution)), tuple(record.limits))
    if raise_error:
        report.raise_if_broken()
    return report


def _check_settings(precision: torch.dtype | None, resolution: float, raise_error: bool) -> None:
    floating_precision("precision", precision)
    positive_number("resolution", resolution)
    flag("raise_error", raise_error)


def _judge(kind: str, record: Record, resolution: float, prefix: str = "") -> list[LawCheck]:
    """In float64; a look in float32 comes first at large coarser tensors, and settles what is far below its floor."""
    record.check()
    masked = kind_of(kind).masked
    balances = _first_look(kind, record) if record.worth_a_look and not masked else None
    if balances is None:
        record.check_finite(masked)
        balances = kind_of(kind).laws(record)
    return [check for balance in balances for check in balance.judge(resolution, prefix)]


def _first_look(kind: str, record: Record) -> list[Balance] | None:
    """The laws in float32, if they settle all; what is not finite in a tensor leaves no sum finite that it is in."""
    balances = kind_of(kind).laws(replace(record, work=torch.float32))
    if not all(balance.settled for balance in balances):
        return None
    record.check_finite(but=frozenset() if record.limits else record.read)  # a law left out leaves tensors unread
    return balances


def _check_module(model, inputs, kinds, grad_output, loss, seed, precision, resolution) -> Report:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is no module, so its layers are not known; name its kind with kind=")
    if not inputs:
        raise ValueError("a module is checked on real inputs: check_gradients(model, x), or pass laws= to check .grad")
    recorder = Recorder(model, kinds, precision)
    try:
        output = called(model, inputs)
    finally:
        recorder.close()
    scalar = scalar_of("loss(output)", called(loss, [output])) if loss is not None else None
    output, dy = (output, cotangent(output, grad_output, seed)) if scalar is None else (scalar, None)
    checks = []
    for name, kind, record in recorder.records(output, dy):
        checks += _judge(kind, record, resolution, f"{name}: " if name else "")
        recorder.limits += [f"{name or 'the module'}: {limit}" for limit in record.limits]
    return Report(tuple(checks), tuple(recorder.limits))


def assert_gradients_lawful(function: Callable | nn.Module, *inputs: Any, **settings: Any) -> Report:
    """:func:`check_gradients` for a test: raises :class:`LawError` unless every law was seen to hold.

    "cannot tell" fails too, since a test that cannot fail is none; pass a larger ``resolution=`` to allow it.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 3)).double()
        >>> x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> assert_gradients_lawful(model, x).verdict
        'lawful'
    """
    report = check_gradients(function, *inputs, **settings, raise_error=True)
    report.raise_unless_lawful()
    return report
