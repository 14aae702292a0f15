#!/bin/bash
set -euo pipefail
export HOME=/root
packages=https://packages.cloud.google.com/apt
key=/usr/share/keyrings/cloud.google.asc
curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
line="deb [signed-by=$key] $packages gcsfuse-$(lsb_release -c -s) main"
echo "$line" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
sudo apt-get -q update
sudo apt-get -q install -y gcsfuse
sudo mkdir -p /mnt/subtransfer
sudo chown "$(id -u)" /mnt/subtransfer
mountpoint -q /mnt/subtransfer || gcsfuse --implicit-dirs --rename-dir-limit=10000 \
  --metadata-cache-ttl-secs=5 BUCKET /mnt/subtransfer
gcloud auth configure-docker us-docker.pkg.dev --quiet
docker pull --quiet us-docker.pkg.dev/PROJECT/images/subtransfer:1
status=75
errors=0
while [ "$status" -ne 0 ]; do
  status=0
  # --net=host and --privileged: libtpu's own devices, metadata and ports.
  docker run --rm --init --net=host --privileged --stop-timeout=120 -v /mnt/subtransfer:/mnt/subtransfer \
    us-docker.pkg.dev/PROJECT/images/subtransfer:1 \
    python -m subtransfer.launch --config=configs/smoke.py --workdir=/mnt/subtransfer/study --config.mesh.slices=2 --distributed=auto || status=$?
  if [ "$status" -ne 0 ] && [ "$status" -ne 75 ]; then
    errors=$((errors + 1))
    if [ "$errors" -gt 3 ]; then break; fi
  fi
  sleep 5
done
worker=$(curl -fsS -H Metadata-Flavor:Google \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
if [ "$worker" -eq 0 ]; then
  gcloud compute tpus queued-resources delete smoke --project=PROJECT --zone=us-west4-a --force --quiet --async
fi
exit "$status"
