"""What a job runs on: accelerators, hosts and slices, in the terms of the engines."""

from __future__ import annotations

import dataclasses
import re

from subtransfer.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    Attributes:
      google: its name in Google's accelerator types ("v5litepod" of "v5litepod-16").
      cores: TensorCores of a chip that the number of a type counts; 1 where it counts chips.
      host: the most chips of a slice that one host serves alone; larger slices have hosts of 4
        chips.
      runtime: of a TPU VM (Google's "TPU software versions").
    """

    google: str
    cores: int
    host: int
    runtime: str


# https://cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and https://cloud.google.com/tpu/docs/runtimes
GENERATIONS = {
    "v4": Generation("v4", 2, 4, "tpu-ubuntu2204-base"),
    "v5e": Generation("v5litepod", 1, 8, "v2-alpha-tpuv5-lite"),
    "v5p": Generation("v5p", 2, 4, "v2-alpha-tpuv5"),
    "v6e": Generation("v6e", 1, 8, "v2-alpha-tpuv6e"),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """What one job gets.

    Attributes:
      kind: "tpu", "gpu" or "cpu".
      name: "v5e" of a TPU, "H100" of a GPU, "" of a CPU.
      size: number of the TPU type (16 of v5e-16), or accelerators of a host.
      slices: TPU slices.
      nodes: hosts of a job on GPUs or CPUs.
      host_chips: the most TPU chips that the engine gives to one host.
    """

    kind: str
    name: str
    size: int
    slices: int = 1
    nodes: int = 1
    host_chips: int = 8

    @property
    def chips(self) -> int:
        """Number of chips of all slices, or of accelerators of all hosts."""
        if self.kind != "tpu":
            return self.size * self.nodes
        return self.size // GENERATIONS[self.name].cores * self.slices

    @property
    def hosts(self) -> int:
        """Number of hosts of all slices."""
        if self.kind != "tpu":
            return self.nodes
        chips = self.chips // self.slices
        alone = min(GENERATIONS[self.name].host, self.host_chips)
        hosts_of_slice = 1 if chips <= alone else chips // 4
        return self.slices * hosts_of_slice

    @property
    def google(self) -> str:
        """A TPU's accelerator type: "v5litepod-16"."""
        return f"{GENERATIONS[self.name].google}-{self.size}"

    @property
    def runtime(self) -> str:
        """A TPU VM's software version."""
        return GENERATIONS[self.name].runtime


def parse(accelerator: str, slices: int = 1, nodes: int = 1, host_chips: int = 8) -> Machine:
    """Reads "tpu-v5e-16", "H100:8" or "cpu".

    Args:
      accelerator: one of these.
      slices: as in `Machine`.
      nodes: as in `Machine`.
      host_chips: as in `Machine`.

    Raises:
      UserError: it is none of these, or is asked for in slices or nodes that it does not come in.
    """
    tpu = re.fullmatch(r"tpu-(\w+)-(\d+)", accelerator)
    gpu = re.fullmatch(r"([A-Za-z][\w-]*):(\d+)", accelerator)
    if tpu:
        name, size = tpu[1], int(tpu[2])
        for known, generation in GENERATIONS.items():
            if generation.google == name:  # Google's name for it is understood, too
                name = known
        if name not in GENERATIONS:
            raise UserError(
                f"--accelerator={accelerator}: the TPU generations known here are "
                f"{', '.join(GENERATIONS)}."
            )
        generation = GENERATIONS[name]
        chips = size // generation.cores
        if not chips or size % generation.cores or chips > generation.host and chips % 4:
            counts = "TensorCores, two a chip" if generation.cores == 2 else "chips"
            raise UserError(
                f"--accelerator={accelerator}: there is no such slice; the number of a {name} "
                f"counts {counts}."
            )
        if nodes != 1:
            raise UserError(
                f"--nodes={nodes}: the hosts of a TPU follow from its type; several slices are "
                "--slices."
            )
        return Machine("tpu", name, size, slices=slices, host_chips=host_chips)
    if slices != 1:
        raise UserError(
            f"--slices={slices}: only TPUs come in slices; hosts with GPUs are --nodes."
        )
    if accelerator == "cpu":
        return Machine("cpu", "", 0, nodes=nodes)
    if gpu and int(gpu[2]):
        return Machine("gpu", gpu[1], int(gpu[2]), nodes=nodes)
    raise UserError(
        f"--accelerator={accelerator} is none: write tpu-v5e-16, H100:8 (type and number a host) "
        "or cpu."
    )
