#!/bin/bash
set -e
sky jobs launch --yes --detach-run OUT/smoke.yaml
