#!/bin/bash
#SBATCH --job-name=cad-shards --ntasks=1 --cpus-per-task=16 --mem-per-cpu=2G --time=08:00:00
# Check and encode what was prepared, and write it as shards. Run again, it keeps the shards that are finished.
set -eu
. "${SLURM_SUBMIT_DIR:-.}/settings.sh"

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" cad-mllm shard "$PREPARED" "$SHARDS"
