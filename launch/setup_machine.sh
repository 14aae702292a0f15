#!/bin/bash
# Makes a machine ready for subtransfer: a Cloud TPU VM, a host with GPUs, or any Debian or Ubuntu. Run from the repository's root:
#   bash launch/setup_machine.sh [tpu|cuda]
# It may be run again at any time. The environment is $HOME/subtransfer-venv (or $VENV).
set -euo pipefail

extra=${1:-}
venv=${VENV:-$HOME/subtransfer-venv}
case $extra in
  "" | tpu | cuda) ;;
  *)
    echo "error: setup_machine.sh takes tpu, cuda or nothing, not '$extra'" >&2
    exit 2
    ;;
esac

root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# The newest Python from 3.11 on that can make environments.
newest() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if command -v "$python" >/dev/null &&
      "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
}

apt() {
  root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@"
}

if [ ! -x "$venv/bin/python" ]; then
  python=$(newest)
  if [ -z "$python" ]; then
    apt update
    # Ubuntu 22.04, which TPU VMs have, knows no finished 3.11: uv brings one.
    if apt install -y python3.12 python3.12-venv 2>/dev/null; then
      python=$(newest)
    else
      apt install -y python3-pip
      python3 -m pip install -q --user uv
      python=$(python3 -m uv python install -q 3.12 && python3 -m uv python find 3.12)
    fi
  fi
  "$python" -m venv "$venv"
fi

# The real shell of the Bash setting's differential tests and sandbox; runs do not need it.
if ! command -v bwrap >/dev/null || ! command -v setfacl >/dev/null; then
  { apt update && apt install -y bubblewrap acl; } || echo "bubblewrap and acl were not installed: only the simulated shell is there"
fi

"$venv/bin/python" -m pip install -q --upgrade pip
"$venv/bin/python" -m pip install -q -e ".${extra:+[$extra]}"

"$venv/bin/python" - "$extra" <<'PYTHON'
import importlib.metadata
import sys
import urllib.request

import jax

import subtransfer

extra = sys.argv[1]
print("Python", sys.version.split()[0], "jax", jax.__version__)


def hosts():
    """Of this machine's TPU slice; 1 where no metadata server says otherwise."""
    url = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=5) as answer:
            return len(answer.read().decode().split(","))
    except OSError:
        return 1


if extra == "tpu":
    print("libtpu", importlib.metadata.version("libtpu"))
    # A host of a larger slice waits for the others before it counts its chips: that happens when the program starts.
    if hosts() > 1:
        sys.exit()
devices = jax.devices()
print("devices:", devices)
platforms = {"tpu": "tpu", "cuda": "gpu"}
if extra and devices[0].platform != platforms[extra]:
    sys.exit(f"error: JAX finds no {platforms[extra].upper()} on this machine, only {devices[0].platform}")
PYTHON
