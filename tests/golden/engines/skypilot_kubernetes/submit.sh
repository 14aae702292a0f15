#!/bin/bash
set -e
sky jobs launch --yes --detach-run OUT/study-0.yaml
sky jobs launch --yes --detach-run OUT/study-1.yaml
