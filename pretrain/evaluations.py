"""The evaluations of a training, on its held-out blocks: by all ranks together, with their result
noted."""

import math
from collections.abc import Sequence
from dataclasses import replace

from robustly import UserError
from robustly.data_prep.blocks import Blocks
from robustly.pretrain.bad_updates.bad_numbers import listed, not_finite
from robustly.pretrain.layout import Layout
from robustly.pretrain.masking import SpecialTokens
from robustly.pretrain.ranks import together
from robustly.pretrain.reporting import TrainingLog
from robustly.pretrain.train_state import TrainState
from robustly.pretrain.validation import ValidationResult, evaluate


class Evaluations:
    """One rank's part in them."""

    def __init__(
        self,
        blocks: Blocks,
        special: SpecialTokens,
        layout: Layout,
        ranks: int,
        state: TrainState,
    ):
        self.blocks, self.special, self.layout, self.ranks = blocks, special, layout, ranks
        self.state = state

    def due(self, last: bool) -> bool:
        """Whether a start begins with one: the first of all, or one that a signal cut short.
        `last`: it begins after the last update."""
        config, progress = self.state.config, self.state.progress
        at = progress.update % config.run.evaluate_every == 0
        at = at or progress.update == config.schedule.begin or last
        return at and len(self.blocks) > 0 and progress.validation_loss is None

    def make(self, log: TrainingLog | None, asked: Sequence[int] = ()) -> bool:
        """Evaluate after an update; `log`: of rank 0. Returns True, without a result, if a rank was
        `asked` to stop meanwhile.

        Raises UserError where no token is a target, or training diverged; FailedOnAnotherRank on
        the ranks beside rank 0."""
        if not len(self.blocks):
            return False

        state = self.state
        result = self._evaluate(asked)
        if result and state.config.optim.average:
            with state.engine.tensors.averaged():
                averaged = self._evaluate(asked)

            result = averaged and result._replace(average=averaged.total)

        if result is None:
            return True

        with together(state.device):
            if state.rank == 0 and not result.total.masked_tokens:
                raise UserError(
                    "no token of the held-out blocks is a target, so that their loss says nothing;"
                    " hold out more text (corpus.validation, run.evaluate_blocks), or none"
                    " (corpus.validation: 0)"
                )

        update, loss = state.progress.update, result.total.loss
        if not math.isfinite(loss):
            found = f"update {update}: the validation loss is {loss}"
            if weights := not_finite(state.engine.tensors.full()):
                found += f", and weights are not finite: {listed(weights)}"

            raise state.diverged(found)

        state.progress = replace(state.progress, validation_loss=loss)
        if log:
            log.evaluation(update, result)

        return False

    def _evaluate(self, asked: Sequence[int]) -> ValidationResult | None:
        """By what the model computes with now; None if a rank was asked to stop."""
        state, config = self.state, self.state.config
        return evaluate(
            state.engine.model,
            self.blocks,
            config.run.evaluate_blocks,
            config.masking,
            self.special,
            self.layout,
            state.rank,
            self.ranks,
            state.device,
            asked,
        )
