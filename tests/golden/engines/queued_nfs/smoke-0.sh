#!/bin/bash
set -euo pipefail
export HOME=/root
sudo apt-get -q update
sudo apt-get -q install -y nfs-common
sudo mkdir -p /mnt/subtransfer
mountpoint -q /mnt/subtransfer || sudo mount -t nfs -o rw,hard,noatime,actimeo=3 10.0.0.2:/share /mnt/subtransfer
sudo mkdir -p /mnt/subtransfer/study
sudo chown "$(id -u)" /mnt/subtransfer/study
gcloud auth configure-docker us-docker.pkg.dev --quiet
docker pull --quiet us-docker.pkg.dev/PROJECT/images/subtransfer:1
status=75
errors=0
while [ "$status" -ne 0 ]; do
  status=0
  # --net=host and --privileged: libtpu's own devices, metadata and ports.
  docker run --rm --init --net=host --privileged --stop-timeout=120 -v /mnt/subtransfer:/mnt/subtransfer \
    us-docker.pkg.dev/PROJECT/images/subtransfer:1 \
    python -m subtransfer.launch --config=configs/smoke.py --workdir=/mnt/subtransfer/study --sweep --workers=1 || status=$?
  if [ "$status" -ne 0 ] && [ "$status" -ne 75 ]; then
    errors=$((errors + 1))
    if [ "$errors" -gt 3 ]; then break; fi
  fi
  sleep 5
done
worker=$(curl -fsS -H Metadata-Flavor:Google \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
if [ "$worker" -eq 0 ]; then
  gcloud compute tpus queued-resources delete smoke-0 --project=PROJECT --zone=us-west4-a --force --quiet --async
fi
exit "$status"
