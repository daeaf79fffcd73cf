#!/bin/bash
# On the login node, which has a network: fetch weights and data to the shared disk. Run again, it fetches what is missing.
set -eu
. "${SLURM_SUBMIT_DIR:-.}/settings.sh"

hf download "$MODEL"
if [ -n "$DATA_FROM" ]; then rsync -a "$DATA_FROM/" "$DATA/"; fi
[ -d "$DATA" ] || { echo "$DATA is not there: set DATA, or DATA_FROM to copy it from"; exit 1; }
