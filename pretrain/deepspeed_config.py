"""DeepSpeed's JSON for a recipe: everything whose default would change the result is stated."""

from typing import Any

from robustly.pretrain.config import OptimConfig, RunConfig

LOSS_SCALE_POWER = 16
"""fp16 begins with a loss scale of 2 to this power, as apex does (fairseq: 7), and finds the right
one by itself."""


def deepspeed_config(
    optim: OptimConfig, run: RunConfig, accumulation: int, ranks: int
) -> dict[str, Any]:
    """Of an update of `accumulation` micro-batches a rank; `run.deepspeed` is laid over it, section
    by section."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": run.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optim.clip_norm,
        "zero_optimization": {"stage": run.zero_stage_for(ranks)},
        "zero_allow_untested_optimizer": True,  # torch's own AdamW
        "zero_force_ds_cpu_optimizer": False,  # likewise, if it is offloaded
        # immediate: in stage 1, gradients in bf16 live only until they are added up in fp32
        "bf16": {"enabled": run.precision == "bf16", "immediate_grad_update": True},
        "fp16": {
            "enabled": run.precision == "fp16",
            "initial_scale_power": LOSS_SCALE_POWER,
            "loss_scale_window": 1000,
            # the update is tried again at once, and would overflow again at the same scale
            "hysteresis": 1,
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": run.reduce_dtype,
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},
    }
    for key, value in run.deepspeed.items():
        old = config.get(key)
        config[key] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )

    return config
