#!/bin/bash
set -e
gcloud compute tpus queued-resources create smoke --project=PROJECT --zone=us-west4-a --node-count=2 --node-prefix=smoke --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --service-account=runner@PROJECT.iam.gserviceaccount.com --metadata-from-file=startup-script=OUT/smoke.sh --spot
