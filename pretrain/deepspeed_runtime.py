"""DeepSpeed 0.19.8, imported here alone: without its warnings, and without an op that it would
compile."""

import logging
import os
import warnings

import torch

# without it DeepSpeed warns on CPU
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# it calls what torch will drop
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
# on CPU: training never uses it, and it leaves 66 MB for each rank behind in /dev/shm
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = ["BF16_Optimizer", "deepspeed", "get_accelerator"]
