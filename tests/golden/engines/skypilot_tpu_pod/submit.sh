#!/bin/bash
set -e
sky jobs launch --yes --detach-run OUT/smoke-0.yaml
sky jobs launch --yes --detach-run OUT/smoke-1.yaml
sky jobs launch --yes --detach-run OUT/smoke-2.yaml
