"""What the executor needs of Tune's controller beyond its interface (Ray 2.60); tests hold it to that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["next_without_workers"]


def next_without_workers(wrapped_controller: Any, pending: Sequence[Any]) -> Any:
    """Return the first pending trial of which no worker starts yet, or None.

    The others are taken out of the trials to which Tune gives warm workers by itself. A trial that
    still waits for its placement group has none: warm workers may be what it waits for.
    """
    controller = wrapped_controller._tune_controller
    first = None
    for trial in pending:
        actor = controller._trial_to_actor.get(trial)
        if actor is not None and controller._actor_manager.is_actor_started(actor):
            controller._resources_to_pending_trials[trial.placement_group_factory].discard(trial)
        elif first is None:
            first = trial
    return first
