#!/bin/bash
# configs/roberta_large.yaml on 16 x 8 GPUs; estimates, as of `robustly plan`:
# update: 8,192 blocks of 512 tokens = 128 ranks x 4 (accumulation) x 16 (micro-batch)
# time: 3.1 d on A100 (80 GB) or 23.1 h on H100 SXM (80 GB), at 40% of the peak
# memory: 12.08 GB of a GPU; run.micro_batch up to 159 fits 80 GB
# disk: 86.36 GB for 160 GB of text, 17.06 GB for checkpoints, 1.43 GB for the model
# change: partition, account, cores of a rank, and the time limit, after which it goes on by itself
# before: robustly tokenizer configs/roberta_large.yaml && robustly prepare configs/roberta_large.yaml
# start: sbatch slurm_large_16x8.sh, in the folder that holds configs/ and runs/; again to go on
#SBATCH --job-name=roberta_large
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@206
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --account=ACCOUNT
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
trap '' TERM USR1  # ignored until what follows heeds them
exec python -m robustly.launch.slurm_job --folder runs/roberta_large/train --logs --restarts 3 --last-checkpoint 206 -- robustly pretrain configs/roberta_large.yaml
