"""Write checkpoints while training goes on: in a thread of rank 0, one at a time."""

import threading
from pathlib import Path

from robustly import heartbeat, log
from robustly.heartbeat import Phase
from robustly.pretrain.checkpoints import checkpoint
from robustly.pretrain.checkpoints.checkpoint import FullTensors, Progress
from robustly.pretrain.config import RunConfig


class BackgroundSaves:
    """The checkpoints that a rank writes; of the ranks beside rank 0, none.

    What goes wrong in the thread is raised by the next `wait`, once. To be closed at the end of the
    run, however that ends: a checkpoint that was begun is made whole."""

    def __init__(self, folder: Path, run: RunConfig):
        self._folder, self._run = folder, run
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    def begin(self, progress: Progress, tensors: FullTensors) -> None:
        """Write a checkpoint, and drop those that need not be kept any more. The one before must
        have been waited for."""
        assert self._thread is None and self._fault is None
        # daemon: an interpreter that ends without `close` does not wait for a disk
        self._thread = threading.Thread(
            target=self._save, args=(progress, tensors), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _save(self, progress: Progress, tensors: FullTensors) -> None:
        try:
            run = self._run
            checkpoint.save(self._folder, progress, tensors, run.keep_checkpoints, run.keep_every)
        except Exception as fault:
            self._fault = fault

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written, and nobody has been told."""
        return self._fault is not None

    @property
    def writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written. Raises what went wrong as it was."""
        if self._thread:
            heartbeat.join(self._thread, Phase.SAVE)
            self._thread = None

        if fault := self._fault:
            self._fault = None
            raise fault

    def close(self) -> None:
        """Wait for the checkpoint that is being written, where another fault ends the run: what
        goes wrong with it is only said."""
        try:
            self.wait()
        except Exception as fault:
            log.warn(str(fault))
