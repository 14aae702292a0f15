#!/bin/bash
set -e
gcloud compute tpus queued-resources create smoke-0 --project=PROJECT --zone=us-west4-a --node-id=smoke-0 --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --service-account=runner@PROJECT.iam.gserviceaccount.com --metadata-from-file=startup-script=OUT/smoke-0.sh
gcloud compute tpus queued-resources create smoke-1 --project=PROJECT --zone=us-west4-a --node-id=smoke-1 --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --service-account=runner@PROJECT.iam.gserviceaccount.com --metadata-from-file=startup-script=OUT/smoke-1.sh
