# configs/roberta_base.yaml on 2 x 8 GPUs; estimates, as of `robustly plan`:
# update: 8,192 blocks of 512 tokens = 16 ranks x 16 (accumulation) x 32 (micro-batch)
# time: 7.3 d on A100 (80 GB) or 2.3 d on H100 SXM (80 GB), at 40% of the peak
# memory: 8.89 GB of a GPU; run.micro_batch up to 429 fits 80 GB
# disk: 86.36 GB for 160 GB of text, 5.99 GB for checkpoints, 0.50 GB for the model
# change: gpu01, the first machine by a name that the other one knows
# before: robustly tokenizer configs/roberta_base.yaml && robustly prepare configs/roberta_base.yaml
# start: bash torchrun_2x8.sh, on both machines, in the folder that holds configs/ and runs/; again to go on
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 2 --rdzv-backend c10d --rdzv-id roberta_base --rdzv-endpoint gpu01:29500 --rdzv-conf join_timeout=600 --nproc-per-node 8 --max-restarts 0 --no-python robustly pretrain configs/roberta_base.yaml
# a torchrun that fails ends with 1, whatever the reason; `robustly launch torchrun` finds the reason, and starts it again
