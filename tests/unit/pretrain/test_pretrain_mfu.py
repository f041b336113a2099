"""The share of a peak, by hand; and which peaks are known."""

import pytest

from robustly.pretrain.config import RunConfig
from robustly.pretrain.mfu import PEAK_TFLOPS, PEAKS_OF_GPUS, model_flops_utilization, peak_tflops


def test_by_hand() -> None:
    # 4 ranks of 2e12 a second; 1000 tokens a second of 4e9 operations are 4e12
    assert model_flops_utilization(1000.0, 4e9, 4, 2.0) == 0.5
    assert model_flops_utilization(500.0, 4e9, 4, 2.0) == 0.25
    assert model_flops_utilization(1000.0, 4e9, 2, 2.0) == 1.0


def test_the_page_has_the_last_word_on_the_peak() -> None:
    assert peak_tflops(RunConfig(peak_tflops=12.5), "NVIDIA H200") == 12.5
    assert peak_tflops(RunConfig(peak_tflops=0.1), None) == 0.1


def test_known_gpus_by_their_whole_name_and_precision() -> None:
    assert peak_tflops(RunConfig(precision="bf16"), "NVIDIA H100 80GB HBM3") == 989.4
    assert peak_tflops(RunConfig(precision="fp32"), "NVIDIA A100-SXM4-40GB") == 19.5
    tf32 = RunConfig(precision="fp32", tf32=True)
    assert peak_tflops(tf32, "NVIDIA A100-SXM4-40GB") == 156
    for other in (
        None,
        "NVIDIA H100 PCIe",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ):
        assert peak_tflops(RunConfig(), other) is None


@pytest.mark.parametrize("name", PEAKS_OF_GPUS)
def test_every_name_has_a_peak(name: str) -> None:
    assert set(PEAK_TFLOPS[PEAKS_OF_GPUS[name]]) == {"bf16", "fp16", "tf32", "fp32"}
