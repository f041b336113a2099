"""What the hosts of a training are asked before it starts (`robustly.launch.checks`). Imports no
torch."""

from robustly.launch.checks.facts import Question
from robustly.pretrain.checkpoints.disk_space import checkpoint_bytes, most_checkpoints
from robustly.pretrain.flops import parameters
from robustly.pretrain.stage import PretrainingConfig


def question_of(config: PretrainingConfig) -> Question:
    """Paths, and the disk that checkpoints take beside those that lie there."""
    folder = config.folder("train")
    count = parameters(config.model, config.tokenizer.vocab_size)
    size = checkpoint_bytes(count, config.optim.average)
    have = sum(path.stat().st_size for path in folder.glob("checkpoints/update-*/*"))
    finished = (folder / "manifest.json").exists()
    return Question(
        tokenizer=str(config.folder("tokenizer")),
        data=str(config.folder("data")),
        train=str(folder),
        checkpoint=0 if finished else size,
        checkpoints=max(0, size * most_checkpoints(config.run, config.schedule) - have),
    )
