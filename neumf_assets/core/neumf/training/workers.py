"""What a training needs to know of the other workers that train the same model; here: there are none."""

from __future__ import annotations

from torch import Tensor

from neumf_assets.core.neumf.training.batches import Step


class Workers:
    """A worker that is alone: all cells are its own, and sums over workers are its own values.

    :class:`neumf_assets.core.neumf.large.parallel.Group` is one of several.
    """

    rank = 0
    size = 1

    @property
    def seed(self) -> tuple[int, ...]:
        """What this worker's random draws differ in from the other workers'."""
        return ()

    def own(self, step: Step) -> Step:
        """Return a step with only those of its cells that are this worker's, at their places in its tables."""
        return step

    def own_rows(self, table: Tensor) -> Tensor:
        """Return the rows of a table of all cells that are this worker's."""
        return table

    def sum_gradients(self, gradients: dict[str, Tensor], pairs: int) -> float:
        """Add up, in place, the gradients of what all workers share; return the pairs of all workers."""
        return pairs

    def norm(self, name: str, gradient: Tensor) -> Tensor:
        """Return the norm of a table's gradient over all workers."""
        return gradient.norm()

    def sum(self, *numbers: float) -> tuple[float, ...]:
        """Return each number's sum over all workers."""
        return numbers

    def least(self, number: float) -> float:
        """Return the smallest of all workers' numbers."""
        return number


ALONE = Workers()
