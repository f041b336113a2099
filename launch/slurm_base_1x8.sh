#!/bin/bash
# configs/roberta_base.yaml on 1 x 8 GPUs; estimates, as of `robustly plan`:
# update: 8,192 blocks of 512 tokens = 8 ranks x 32 (accumulation) x 32 (micro-batch)
# time: 14.6 d on A100 (80 GB) or 4.6 d on H100 SXM (80 GB), at 40% of the peak
# memory: 8.98 GB of a GPU; run.micro_batch up to 429 fits 80 GB
# disk: 86.36 GB for 160 GB of text, 5.99 GB for checkpoints, 0.50 GB for the model
# change: partition, account, cores of a rank, and the time limit, after which it goes on by itself
# before: robustly tokenizer configs/roberta_base.yaml && robustly prepare configs/roberta_base.yaml
# start: sbatch slurm_base_1x8.sh, in the folder that holds configs/ and runs/; again to go on
#SBATCH --job-name=roberta_base
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@150
#SBATCH --partition=gpu
#SBATCH --time=1-00:00:00
#SBATCH --account=ACCOUNT
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
trap '' TERM USR1  # ignored until what follows heeds them
exec python -m robustly.launch.slurm_job --folder runs/roberta_base/train --logs --restarts 3 --last-checkpoint 150 -- robustly pretrain configs/roberta_base.yaml
