"""Published figures of accelerators: what benchmarks state their shares of."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip, from the vendor's system architecture pages.

    Attributes:
      gib: HBM.
      hbm: its bandwidth, bytes/s.
      flops: peak in bfloat16, 1/s.
      clock: Hz, what turns cycles into seconds: peak / (2 x 128 x 128 x number of matrix units), of
        v6e 256 x 256.
      ici: bytes/s that a chip sends over all its links.
      links: to other chips.
      dcn: bytes/s that are a chip's share of its host's network.
      splash: share of the peak at which splash attention makes products over the causal half of the
        scores: from the instruction bundles of its loops in libtpu's dumps
          (`--xla_jf_dump_llo_text`), forward and backward together, at 2,304
        tokens, blocks of 768 and a head width of 128.
    """

    gib: float
    hbm: float
    flops: float
    clock: float
    ici: float
    links: int
    dcn: float
    splash: float


CHIPS = {
    "v4": Chip(32, 1228e9, 275e12, 1.05e9, 2400e9 / 8, 6, 50e9 / 8, 0.6),
    "v5e": Chip(16, 819e9, 197e12, 1.5e9, 1600e9 / 8, 4, 25e9 / 8, 0.6),
    "v5p": Chip(95, 2765e9, 459e12, 1.75e9, 4800e9 / 8, 6, 50e9 / 8, 0.6),
    "v6e": Chip(32, 1640e9, 918e12, 1.75e9, 3584e9 / 8, 4, 100e9 / 8, 0.21),
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Published figures of one GPU, from NVIDIA's data sheet of the model.

    Attributes:
      hbm: bandwidth of its memory, bytes/s.
      flops: peak of dense products in bfloat16, 1/s (half of what is stated "with sparsity").
    """

    hbm: float
    flops: float


# By what CUDA calls a device, which is what JAX calls its kind.
GPUS = {
    "NVIDIA H200": Gpu(4800e9, 989e12),
    "NVIDIA H100 80GB HBM3": Gpu(3350e9, 989e12),
    "NVIDIA H100 NVL": Gpu(3900e9, 835e12),
    "NVIDIA H100 PCIe": Gpu(2000e9, 756e12),
    "NVIDIA A100-SXM4-80GB": Gpu(2039e9, 312e12),
    "NVIDIA A100 80GB PCIe": Gpu(1935e9, 312e12),
    "NVIDIA A100-SXM4-40GB": Gpu(1555e9, 312e12),
    "NVIDIA A100-PCIE-40GB": Gpu(1555e9, 312e12),
    "NVIDIA L4": Gpu(300e9, 121e12),
}
