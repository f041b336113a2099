"""Schema of the config's section `search`."""

from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from robustly.config import Section

Rate = Annotated[float, Field(gt=0)]


class SearchConfig(Section):
    """`robustly search`: short runs of the whole schedule, which differ in their peak rate."""

    trials: PositiveInt = 8
    """In all; a finished search with a larger number goes on."""
    updates: PositiveInt | None = None
    """Of each trial; warmup, decay and phases shrink with them. Default: a hundredth of
    `schedule.updates`, and 100 at least."""
    rates: tuple[Rate, Rate] | None = None
    """The lowest and the highest peak rate, between which they are drawn evenly in their logarithm.
    Default: from a quarter of `optim.peak_lr` to four times of it."""

    @model_validator(mode="after")
    def _rates_rise(self) -> Self:
        if self.rates and self.rates[0] >= self.rates[1]:
            raise ValueError(
                f"search.rates = {list(self.rates)}: expected the lower one first, then a higher"
            )
        return self
