#!/bin/bash
#SBATCH --job-name=cad-prepare --array=1-16 --ntasks=1 --cpus-per-task=16 --mem-per-cpu=2G --time=04:00:00
# Each task prepares its part of the histories, with as many workers as --cpus-per-task. Run again (`sbatch --array=3,7
# prepare.sh` for the tasks that failed), it does what is missing.
set -eu
. "${SLURM_SUBMIT_DIR:-.}/settings.sh"

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    cad-mllm prepare "$DATA" --out "$PREPARED" --shard "$SLURM_ARRAY_TASK_ID/$PARTS"
