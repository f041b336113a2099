"""A replay's comparison knows where updates cannot be the same to the bit."""

import pytest

from robustly.pretrain.replay import repeats_itself
from robustly.pretrain.sessions import begin_session
from synthetic import run


@pytest.mark.parametrize(
    ("attention", "device", "expected"),
    [
        ("sdpa", "CPU", True),
        ("varlen", "CPU", True),
        ("eager", "NVIDIA H200", True),
        ("sdpa", "NVIDIA H200", False),
        ("varlen", "NVIDIA H200", False),
    ],
)
def test_fused_attention_on_a_gpu_does_not_repeat_itself(
    attention: str, device: str, expected: bool
) -> None:
    places = [("host", device)] * 2
    assert repeats_itself(begin_session(run(), attention, places, 0, ())) == expected
