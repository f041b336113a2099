"""Which share of a GPU's arithmetic a training uses: "model FLOPs utilization" (Chowdhery et al.
2022, appendix B)."""

from robustly.pretrain.config import RunConfig

PEAK_TFLOPS = {
    "RTX 4090 (24 GB)": {"bf16": 165.2, "fp16": 165.2, "fp32": 82.6},
    "A100 (80 GB)": {"bf16": 312.0, "fp16": 312.0, "fp32": 19.5},
    "H100 SXM (80 GB)": {"bf16": 989.4, "fp16": 989.4, "fp32": 66.9},
}
"""Dense, with sums in fp32, from NVIDIA's A100 data sheet and its H100 and Ada architecture
papers."""

PEAKS_OF_GPUS = {
    "NVIDIA GeForce RTX 4090": "RTX 4090 (24 GB)",
    "NVIDIA A100-SXM4-40GB": "A100 (80 GB)",
    "NVIDIA A100-SXM4-80GB": "A100 (80 GB)",
    "NVIDIA A100-PCIE-40GB": "A100 (80 GB)",
    "NVIDIA A100 80GB PCIe": "A100 (80 GB)",
    "NVIDIA H100 80GB HBM3": "H100 SXM (80 GB)",
    "NVIDIA H200": "H100 SXM (80 GB)",
}
"""The cards that have these peaks, as CUDA names them: whole names, since laptops' cards and slices
of one have less. A card with another memory, but the same cores, goes by its sister's name."""


def peak_tflops(run: RunConfig, device: str | None) -> float | None:
    """The peak of one rank's device, 10^12 operations per second: what the page says, else what is
    known of a GPU of this name. None where it is not known: a CPU (no name), another GPU."""
    if run.peak_tflops is not None:
        return run.peak_tflops
    return PEAK_TFLOPS[PEAKS_OF_GPUS[device]][run.precision] if device in PEAKS_OF_GPUS else None


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, ranks: int, peak: float
) -> float:
    """The share of the peak of all ranks that these tokens need. `peak`: of one rank, 10^12
    operations per second.

    Given tokens that are no padding, it counts no work on padding: that is wasted, as is what a
    kernel computes twice."""
    return tokens_per_second * flops_per_token / (ranks * peak * 1e12)
