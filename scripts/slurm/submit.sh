#!/bin/bash
# From histories to a trained model: fetch here, then three jobs, each when the one before it is done.
set -eu
cd "$(dirname "$0")"
. ./settings.sh
mkdir -p "$OUT"

bash fetch.sh
prepare=$(sbatch --parsable --array="1-$PARTS" prepare.sh)
shards=$(sbatch --parsable --dependency="afterok:${prepare%%;*}" shards.sh)
train=$(sbatch --parsable --dependency="afterok:${shards%%;*}" train.sh)
echo "jobs: prepare ${prepare%%;*}, shards ${shards%%;*}, train ${train%%;*}; squeue --me shows them"
