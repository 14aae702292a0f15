#!/bin/bash
set -e
python launch/inside/slurm_jobs.py submit OUT/jobs.json
