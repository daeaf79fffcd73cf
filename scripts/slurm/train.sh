#!/bin/bash
#SBATCH --job-name=cad-train --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --time=12:00:00
#SBATCH --requeue --signal=B:USR1@600
# Begin a run or go on with it; ten minutes before the time is up it saves, ends and asks to be run again.
. "${SLURM_SUBMIT_DIR:-.}/settings.sh"
export HF_HUB_OFFLINE=1                                  # fetch.sh fetched the weights

trap 'touch "$OUT/stop"' USR1                            # ten minutes are left: save and end

FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$GPUS" --rdzv_backend c10d --rdzv_endpoint "$FIRST:$PORT" \
    -m cad_mllm train --recipe "$RECIPE" --data_root "$SHARDS" --shard_cache_dir "$LOCAL_DISK" --output_dir "$OUT" \
    --resume_from_ckpt auto $FLAGS &

while kill -0 $! 2>/dev/null; do wait $!; done           # a signal ends the waiting, not the training
grep -q '"state": "stopped"' "$OUT/status.json" && scontrol requeue "$SLURM_JOB_ID"
