#!/bin/bash
set -e
xpk workload create --workload=smoke --cluster=tpus --project=PROJECT --zone=us-west4-a --tpu-type=v6e-8 --num-slices=1 --docker-image=us-docker.pkg.dev/PROJECT/images/subtransfer:1 --storage=share --priority=medium --max-restarts=100 --restart-on-exit-codes=75 --termination-grace-period-seconds=120 --no-use-parallel-containers '--command=exec python -m subtransfer.launch --config=configs/smoke.py --workdir=/mnt/share/study --distributed=auto'
