"""Tiny networks' flows and descents as one writes them with JAX and diffrax; runs in the peers' environment."""

from __future__ import annotations

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

_made: dict = {}


def _loss(shapes, x, y, q):
    h = x
    for k, (out, into) in enumerate(shapes):
        h = h @ q[: out * into].reshape(out, into).T
        q = q[out * into :]
        h = jnp.tanh(h) if k + 1 < len(shapes) else h
    return jnp.mean((h - y) ** 2)


def make(name: str, data: str, shapes: list, kind: str, **settings) -> None:
    """A compiled solver of all starts at once, ``(members, n)`` to the ends of the same shape."""
    arrays = np.load(data)
    slope = jax.grad(partial(_loss, shapes, jnp.asarray(arrays["x"]), jnp.asarray(arrays["y"])))
    solve = {"flow": _flow, "descent": _descent}[kind](slope, **settings)
    starts = jnp.asarray(arrays["q"])
    _made[name] = jax.jit(jax.vmap(solve) if starts.ndim == 2 else solve), starts


def _flow(slope, t1: float, tolerance: float):
    term = diffrax.ODETerm(lambda t, q, args: -slope(q))
    steps = diffrax.PIDController(rtol=tolerance, atol=tolerance)

    def solve(q):
        result = diffrax.diffeqsolve(
            term, diffrax.Dopri8(), 0.0, t1, None, q, stepsize_controller=steps, max_steps=100_000
        )
        return result.ys[-1]

    return solve


def _descent(slope, steps: int, lr: float, momentum: float):
    def step(state, _):
        q, b = state
        b = momentum * b + slope(q)
        return (q - lr * b, b), None

    return lambda q: jax.lax.scan(step, (q, jnp.zeros_like(q)), None, length=steps)[0][0]


def run(name: str) -> int:
    """One call of the compiled solver; the first one compiles."""
    solver, starts = _made[name]
    _made[name, "end"] = solver(starts).block_until_ready()
    return 1 if starts.ndim == 1 else len(starts)


def end(name: str) -> list:
    return np.asarray(_made[name, "end"]).tolist()
