"""MFU, "model FLOPs utilization": the fraction of a GPU's peak that a training uses (Chowdhery et
al. 2022, appendix B)."""

from robustly.pretrain.config import RunConfig

PEAK_TFLOPS = {
    "RTX 4090 (24 GB)": {"bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6},
    "A100 (80 GB)": {"bf16": 312.0, "fp16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "H100 SXM (80 GB)": {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9},
}
"""10^12 operations per second: dense, with sums in fp32, from NVIDIA's A100 data sheet and its
H100 and Ada architecture papers."""

PEAKS_OF_GPUS = {
    "NVIDIA GeForce RTX 4090": "RTX 4090 (24 GB)",
    "NVIDIA A100-SXM4-40GB": "A100 (80 GB)",
    "NVIDIA A100-SXM4-80GB": "A100 (80 GB)",
    "NVIDIA A100-PCIE-40GB": "A100 (80 GB)",
    "NVIDIA A100 80GB PCIe": "A100 (80 GB)",
    "NVIDIA H100 80GB HBM3": "H100 SXM (80 GB)",
    "NVIDIA H200": "H100 SXM (80 GB)",
}
"""CUDA's names of the cards that have these peaks: whole names, since laptops' cards and slices of
one have less. A card with the same cores and another memory has its sister's peak."""


def peak_tflops(run: RunConfig, device: str | None) -> float | None:
    """The peak of one rank's device, 10^12 operations per second: `run.peak_tflops`, or what is
    known of a GPU of this name. None where it is not known: a CPU (no name), another GPU."""
    if run.peak_tflops is not None:
        return run.peak_tflops
    return PEAK_TFLOPS[PEAKS_OF_GPUS[device]][computed_in(run)] if device in PEAKS_OF_GPUS else None


def computed_in(run: RunConfig) -> str:
    """What a run's matrix products are computed in, as `PEAK_TFLOPS` has it."""
    return "tf32" if run.tf32 else run.precision


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, ranks: int, peak: float
) -> float:
    """The fraction of the peak of all ranks that these tokens need. `peak`: of one rank, 10^12
    operations per second.

    Count tokens without padding: work on padding is wasted, as is what a kernel computes twice."""
    return tokens_per_second * flops_per_token / (ranks * peak * 1e12)
