"""What layers are made of: products, gates, rotations.

Gradients are written out where a CPU would otherwise be slow: its compiler fuses a loop with the
transposition or the product that follows, walks memory against its grain, and keeps what is sooner
made again. The values are those of the plain formulas, and on accelerators, where `apart` is
nothing, so are the programs.

Shape letters as in `decoder.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True)}


def matmul(a, b, *, out=None):
    """`a @ b` accumulated in float32; where the operands are float32, no accelerator may round them
    to less.
    """
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=exact, preferred_element_type=out)


def apart(x):
    """X itself; on a CPU, made before what reads it: a loop fused with a transposition walks memory
    against its grain, ten times as slow as the loop and XLA's own transposition one after the
    other.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(
    x: Float[Array, "*rows D"], kernel: Float[Array, "D F"], out=None
) -> Float[Array, "*rows F"]:
    """`matmul` whose gradients are products that a CPU does fast: of a weight's gradient it
    transposes the narrower operand.
    """
    return matmul(x, kernel, out=out)


def _linear_forward(x, kernel, out):
    return matmul(x, kernel, out=out), (x, kernel)


def _linear_backward(out, kept, dy):
    x, kernel = kept
    x, dy = apart(x), apart(dy.astype(kernel.dtype))
    d_kernel = _over_rows(x, dy) if x.shape[-1] <= dy.shape[-1] else apart(_over_rows(dy, x)).T
    return matmul(dy, kernel.T), d_kernel


def _over_rows(x: Float[Array, "*rows D"], y: Float[Array, "*rows F"]) -> Float[Array, "D F"]:
    """The sum over rows of x's outer y; a CPU takes rows of one axis, a mesh may have divided
    several.
    """
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None

    def product(x, y):
        rows = tuple(range(x.ndim - 1))
        return jax.lax.dot_general(x, y, ((rows, rows), ((), ())), precision=exact)

    def flat(x, y):
        transposed = jax.lax.optimization_barrier(
            x.reshape(-1, x.shape[-1]).T
        )  # or the product reads columns: half as fast
        return matmul(transposed, y.reshape(-1, y.shape[-1]))

    return jax.lax.platform_dependent(x, y, cpu=flat, default=product)


linear.defvjp(_linear_forward, _linear_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(
    activation: str, gate: Float[Array, "*rows F"], up: Float[Array, "*rows F"]
) -> Float[Array, "*rows F"]:
    """An activation of the gate (a key of `ACTIVATIONS`) times `up`; its backward keeps these two
    and makes the rest again.
    """
    return ACTIVATIONS[activation](gate) * up


def _gated_forward(activation, gate, up):
    return gated(activation, gate, up), (gate, up)


def _gated_backward(activation, kept, dy):
    gate, up = kept
    _, pull = jax.vjp(ACTIVATIONS[activation], gate)
    # The activation once more for itself: shared with its derivative, it would be written to memory
    # and read again.
    return *pull(dy * up), dy * ACTIVATIONS[activation](apart(gate))


gated.defvjp(_gated_forward, _gated_backward)


@jax.custom_vjp
def rotate(
    x: Float[Array, "B L H Dh"],
    cos: Float[Array, "B L 1 2 half"],
    sin: Float[Array, "B L 1 2 half"],
) -> Float[Array, "B L H Dh"]:
    """Rotary position embedding, half-split layout (Su et al. 2104.09864, as in Hugging Face's
    Llama), in float32.

    Args:
      cos, sin: of both halves, the first sine negated; they are not differentiated.
    """
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    return (halves * cos + halves[..., ::-1, :] * sin).reshape(x.shape).astype(x.dtype)


def _rotate_forward(x, cos, sin):
    return apart(_rotated(x, cos, sin)), (cos, sin)


def _rotate_backward(kept, dy):
    cos, sin = kept
    return _rotated(apart(dy), cos, -sin), None, None


def _rotated(x, cos, sin):
    """`rotate` where it is differentiated: a CPU is faster with halves that are joined, in all else
    one flips them sooner.
    """

    def joined(x):
        one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        c, s = cos[..., 0, :], sin[..., 1, :]
        return jnp.concatenate([one * c - two * s, two * c + one * s], axis=-1).astype(x.dtype)

    return jax.lax.platform_dependent(x, cpu=joined, default=lambda x: rotate(x, cos, sin))


rotate.defvjp(_rotate_forward, _rotate_backward)
