"""The plain forward pass as one program: run without jit, every operation would be compiled alone."""

import jax

from subtransfer.models import forward as module

forward = jax.jit(module.forward, static_argnames=("cfg", "lora_dropout", "hidden"))
