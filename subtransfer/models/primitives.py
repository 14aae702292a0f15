"""What layers are made of: products, gates, rotations.

Gradients are written out where a CPU would otherwise be slow: its compiler fuses a loop with the
transposition or the product that follows, walks memory against its grain, and keeps what is sooner
computed again. The values are those of the plain formulas. On accelerators, where `cpu_barrier`
does nothing, so are the programs.

Shape letters as in `decoder.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def matmul(a, b, *, out=None):
    """`a @ b`, accumulated in float32.

    Args:
      a: [..., m, k].
      b: [..., k, n].
      out: dtype of the result; None for that of the operands.
    """
    # Accelerators round float32 operands to fewer bits unless told not to.
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=exact, preferred_element_type=out)


def cpu_barrier(x):
    """Returns x unchanged; on a CPU, x is computed whole before what reads it begins.

    A loop fused with a transposition walks memory against its grain: ten times as slow as the loop
    and XLA's own transposition one after the other.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(
    x: Float[Array, "*rows D"], kernel: Float[Array, "D F"], out=None
) -> Float[Array, "*rows F"]:
    """`matmul` whose gradients are products that a CPU computes fast.

    For the kernel's gradient, the narrower operand is the one that is transposed.
    """
    return matmul(x, kernel, out=out)


def _linear_forward(x, kernel, out):
    return matmul(x, kernel, out=out), (x, kernel)


def _linear_backward(out, kept, dy):
    x, kernel = kept
    # Both are read twice below, and would be computed twice.
    x, dy = cpu_barrier(x), cpu_barrier(dy.astype(kernel.dtype))
    d_kernel = (
        _over_rows(x, dy) if x.shape[-1] <= dy.shape[-1] else cpu_barrier(_over_rows(dy, x)).T
    )
    return matmul(dy, kernel.T), d_kernel


def _over_rows(x: Float[Array, "*rows D"], y: Float[Array, "*rows F"]) -> Float[Array, "D F"]:
    """The sum over rows of the outer products of x and y.

    A CPU takes all rows as one axis; elsewhere they stay as they are, as a mesh may have divided
    several axes.
    """
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None

    def product(x, y):
        rows = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, y, ((rows, rows), ((), ())), precision=exact)

    def flat(x, y):
        # Without the barrier, the product reads columns: half as fast.
        transposed = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
        return matmul(transposed, y.reshape(-1, y.shape[-1]))

    return jax.lax.platform_dependent(x, y, cpu=flat, default=product)


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(
    activation: str, gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]
) -> Float[Array, "*rows F"]:
    """Multiplies an activation of the gate by `up`.

    Its backward keeps these two and computes the rest again. `activation` is a key of
    `ACTIVATIONS`.
    """
    return ACTIVATIONS[activation](gate) * up


def _gated_forward(activation, gate, up):
    return gated(activation, gate, up), (gate, up)


def _gated_backward(activation, kept, dy):
    gate, up = kept
    _, pull = jax.vjp(ACTIVATIONS[activation], gate)
    # The activation is computed a second time on purpose: shared with its derivative, it would be
    # written to memory and read again.
    return *pull(dy * up), dy * ACTIVATIONS[activation](cpu_barrier(gate))


gated.defvjp(_gated_forward, _gated_backward)


@jax.custom_vjp
def rotate(
    x: Float[Array, "B L H Dh"],
    cos: Float[Array, "B L 1 2 half"],
    sin: Float[Array, "B L 1 2 half"],
) -> Float[Array, "B L H Dh"]:
    """Rotary position embedding in float32 (Su et al. 2104.09864).

    Features are paired half by half, as in Hugging Face's Llama.

    Args:
      x: queries or keys.
      cos: of both halves; it is not differentiated.
      sin: as `cos`, that of the first half negated.
    """
    # (a, b) -> (a cos - b sin, b cos + a sin): `sin` holds the sign.
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    return (halves * cos + halves[..., ::-1, :] * sin).reshape(x.shape).astype(x.dtype)


def _rotate_forward(x, cos, sin):
    return cpu_barrier(_rotated(x, cos, sin)), (cos, sin)


def _rotate_backward(kept, dy):
    cos, sin = kept
    return _rotated(cpu_barrier(dy), cos, -sin), None, None


def _rotated(x, cos, sin):
    """`rotate` where it is differentiated.

    There a CPU is faster when it splits and joins the halves. Everywhere else, flipping them is.
    """

    def joined(x):
        one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        c, s = cos[..., 0, :], sin[..., 1, :]
        return jnp.concatenate([one * c - two * s, two * c + one * s], axis=-1).astype(x.dtype)

    return jax.lax.platform_dependent(x, cpu=joined, default=lambda x: rotate(x, cos, sin))


rotate.defvjp(_rotate_forward, _rotate_backward)
