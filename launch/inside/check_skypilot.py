"""Lets SkyPilot's own parser read task files. Runs in SkyPilot's environment, not in ours.

python launch/inside/check_skypilot.py FILE...
"""

import sys

import sky

for file in sys.argv[1:]:
    task = sky.Task.from_yaml(file)
    [resources] = task.resources
    print(f"{task.name}: {task.num_nodes} x {resources}, recovery {resources.job_recovery}")
