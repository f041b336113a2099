#!/bin/bash
# configs/roberta_large.yaml on 16 x 8 GPUs; estimates, as of `robustly plan`:
# update: 8,192 blocks of 512 tokens = 128 ranks x 4 (accumulation) x 16 (micro-batch)
# time: 3.1 d on A100 (80 GB) or 23.1 h on H100 SXM (80 GB), at 40% of the peak
# memory: 12.60 GB of a GPU; run.micro_batch up to 154 fits 80 GB
# disk: 86.36 GB for 160 GB of text, 17.06 GB for checkpoints, 1.43 GB for the model
# change: partition, account, cores of a rank, and the time limit, after which it goes on by itself
# before: robustly tokenizer configs/roberta_large.yaml && robustly prepare configs/roberta_large.yaml
# start: sbatch slurm_large_16x8.sh, in the folder that holds configs/ and runs/; again to go on
#SBATCH --job-name=roberta_large
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@120
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --account=ACCOUNT
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then  # srun does not take it over from the job by itself
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
fi

newest() { ls runs/roberta_large/train/checkpoints 2>/dev/null | tail -n 1; }
before=$(newest)
srun --kill-on-bad-exit=1 robustly pretrain configs/roberta_large.yaml
code=$?

# Only the manifest means that the work is complete. A fault of the software (1) and a user's
# mistake (2) would happen again.
if [ -e runs/roberta_large/train/manifest.json ]; then exit $code; fi
if [ $code = 1 ] || [ $code = 2 ]; then exit $code; fi
# What else ended it, a new start may mend: as often as it takes while each gets further than the
# one before, else so many times.
if [ "$(newest)" != "$before" ] || [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
    # A job that was cancelled is not running any more, and must not come back.
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        echo "incomplete (exit code $code): back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60  # Slurm ends this attempt meanwhile
    fi
fi
exit $((code ? code : 75))
