"""Valid calls of ``nlcompanion.symmetries``."""

import torch
from wrong_values import NUMBERS

import nlcompanion as nl
from calls.ingredients import MOTION, Q, acting, bowl, double
from calls.table import ANY_TIME, COUNTS, NONE, PAIRS, SHIFT, TEXTS, call

TWO = [[[0.0, -1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
ROTATION = [[0.0, -1.0], [1.0, 0.0]]


call("translation", acting(nl.translation), {"s": NUMBERS}, direction=[0.0, 1.0], q=Q, s=0.5)
call("rotation", acting(nl.rotation), {"s": NUMBERS}, generator=ROTATION, q=Q, s=0.5)
call(
    "rotation in a plane",
    acting(nl.rotation),
    {"s": NUMBERS, "dimension": NONE},
    plane=(0, 1),
    dimension=2,
    q=Q,
    s=0.5,
)
call("scale", acting(nl.scale), {**SHIFT, "part": NONE | {"zero", "booleans"}}, part=slice(0, 1), q=Q, s=0.5)
call(
    "rescale",
    acting(nl.rescale),
    {**SHIFT, "inputs": {"zero", "booleans"}, "p": NUMBERS, "extra": {"empty list"}},
    inputs=[0],
    outputs=[1],
    p=2.0,
    extra=[],
    q=Q,
    s=0.5,
)
call("linear_action", acting(nl.linear_action), {"s": NUMBERS}, generator=ROTATION, q=Q, s=0.5)
PAIR = double(1.0, 2.0, 3.0, 4.0)
call(
    "linear_pair",
    acting(nl.linear_pair),
    {"s": NUMBERS},
    first=slice(0, 2),
    second=slice(2, 4),
    A=ROTATION,
    q=PAIR,
    s=0.5,
)
call("input_rotation", acting(nl.input_rotation), {"s": NUMBERS}, weights=slice(0, 2), P=ROTATION, q=PAIR, s=0.5)
call(
    "Symmetry",
    acting(nl.Symmetry),
    {**SHIFT, "name": TEXTS},
    action=lambda q, s: q * torch.exp(s),
    name="scale",
    q=Q,
    s=0.5,
)
call("generator", lambda symmetry, q: nl.generator(symmetry)(q), symmetry=nl.scale(), q=Q)
call(
    "invariance_defect",
    nl.invariance_defect,
    {"s": NUMBERS | {"half precision", "another shape", "integers", "with gradient", "None"}},
    f=bowl,
    symmetry=nl.rotation(plane=(0, 1)),
    q=Q,
    s=[0.5, 1.0],
)
call("kinetic_symmetry_breaking", nl.kinetic_symmetry_breaking, ANY_TIME, **MOTION)
call("so", nl.so, {"d": COUNTS, "action": NONE}, d=2, action=nl.rotation)
call("gl", nl.gl, {"d": COUNTS, "action": NONE}, d=2, action=nl.linear_action)
call(
    "LieAlgebra",
    lambda **kw: list(nl.LieAlgebra(**kw)),
    {"name": {"text", "digits as text", "device"}},
    basis=[ROTATION],
    action=nl.linear_action,
    name="turns",
)
call("Symmetry.__call__", nl.scale(), SHIFT, q=Q, s=0.5)
call("Symmetry.check", lambda q: nl.scale().check(q), q=Q)
ALGEBRA = nl.LieAlgebra(TWO)
call(
    "LieAlgebra.element",
    lambda coefficients: ALGEBRA.element(coefficients)(Q, 0.1),
    {"coefficients": PAIRS},
    coefficients=[1.0, 0.0],
)
call("LieAlgebra.pack", ALGEBRA.pack, {"values": {"no rows"}}, values=[1.0, 2.0])
