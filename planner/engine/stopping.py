"""When a training ends before its tokens are used up: divergence, patience, the caller's word."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from planner.trial import TrainConfig, TrialState

__all__ = ["Stopping"]


@dataclass(slots=True)
class Stopping:
    """The state of a trial, and the losses that decide it; equal on all workers."""

    settings: TrainConfig
    state: TrialState = TrialState.RUNNING
    reason: str | None = None
    first_loss: float | None = None
    """Training loss of the first step, with which later ones are compared."""
    best_val_loss: float | None = None
    reports_since_best: int = 0

    @property
    def is_running(self) -> bool:
        """Whether nothing has ended the trial."""
        return self.state is TrialState.RUNNING

    def see_training_loss(self, loss: float, step: int) -> None:
        """End the trial on a loss that is not finite or far above the first one."""
        if self.first_loss is None:
            self.first_loss = loss
        self._check(loss, "training", step)

    def see_val_loss(self, loss: float, step: int) -> None:
        """As for a training loss; and count the reports since the lowest one."""
        self._check(loss, "validation", step)
        improved = self.best_val_loss is None or loss < self.best_val_loss
        self.best_val_loss = loss if improved else self.best_val_loss
        self.reports_since_best = 0 if improved else self.reports_since_best + 1

    def _check(self, loss: float, which: str, step: int) -> None:
        limit = (self.first_loss or loss) * self.settings.max_loss_factor
        if not isfinite(loss):
            self.end(TrialState.DIVERGED, f"the {which} loss is {loss} at step {step}")
        elif loss > limit:
            self.end(
                TrialState.DIVERGED,
                f"the {which} loss is {loss:.4g} at step {step}, above {limit:.4g} "
                f"(max_loss_factor={self.settings.max_loss_factor})",
            )

    def check_patience(self) -> None:
        """End the trial where the validation loss has not fallen for so many reports."""
        patience = self.settings.patience_reports
        if patience is not None and self.reports_since_best >= patience:
            self.end(
                TrialState.STOPPED,
                f"the validation loss has not fallen below {self.best_val_loss:.4g} for {patience} "
                "reports (patience_reports)",
            )

    def end(self, state: TrialState, reason: str) -> None:
        """End the trial in a state, with why."""
        self.state, self.reason = state, reason
