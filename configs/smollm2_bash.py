"""The experiment on a real language model, Bash setting: SmolLM2-135M-Instruct.

Command:   python -m subtransfer.launch --config=configs/smollm2_bash.py
Hardware:  not run yet
Result:    not run yet

As `smollm2_api.py`, in a shell that is simulated: no command reaches the machine.
"""

import importlib.util
from pathlib import Path


def get_config():
    path = Path(__file__).with_name("smollm2_api.py")
    spec = importlib.util.spec_from_file_location("smollm2_api", path)
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    config = api.get_config()
    config.name = "smollm2_bash"
    config.setting = "bash"
    return config
