"""Weights in 8 bits for rollouts: what a decoding step reads of them is half of bfloat16's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import qwix

FORMATS = {"int8": "int8", "fp8": "float8_e4m3fn"}


def quantised(weights: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Rounds every projection's kernel to 8 bits, with a scale for each layer and output channel.

    Embeddings, norms, biases, the vocabulary's head and adapters stay as they are.

    Args:
      weights: the decoder's, kernels [N, in, out].
      form: a key of `FORMATS`.
    """

    def one(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        # Layers and output channels have scales of their own; the input is what is summed over.
        return qwix.quantize(leaf, FORMATS[form], channelwise_axes=(0, 2))

    params = weights["params"]
    layers = jax.jit(lambda tree: jax.tree_util.tree_map_with_path(one, tree))(params["layers"])
    return {**weights, "params": {**params, "layers": layers}}


def dequantised(kernel, dtype) -> jax.Array:
    """Returns a kernel, quantised or not, as an array of the computation's dtype."""
    if isinstance(kernel, qwix.QArray):
        kernel = qwix.dequantize(kernel)
    return kernel.astype(dtype)
