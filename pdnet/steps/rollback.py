"""The champion's predecessor becomes the champion again."""

from __future__ import annotations

from pdnet.config import Config
from pdnet.tracking.aliases import (
    PREVIOUS,
    Intent,
    carry_out,
    current_aliases,
    finish_interrupted,
    known_versions,
)
from pdnet.tracking.aliases import rollback as plan_rollback
from pdnet.tracking.promotion_log import read_log
from pdnet.tracking.store import open_store


def rollback(*, config: Config) -> str:
    """Make the version with the alias `previous` the champion again.

    The champion before that, as the promotion log has it, becomes `previous`; so one rollback after the other goes back
    through the champions. What an interrupted promotion began is finished first; where that was a rollback, it is all
    that is done, so the same command again goes back once.

    Args:
        config: `tracking`.

    Returns:
        What was done.

    Raises:
        PromotionError: there is nothing to go back to, or somebody else moved the aliases meanwhile.
        TrackingError: the store does not answer or refuses.
    """
    tracking = config.tracking
    with open_store() as store:
        finished = finish_interrupted(store, tracking)
        if finished is not None and finished.entry["outcome"] == "rolled back":
            return f"{_done(tracking.model, finished)}; this rollback had been interrupted, and is finished now"
        aliases, log = current_aliases(store, tracking.model), read_log(store, tracking.model)
        intent = plan_rollback(tracking.model, aliases, log, known_versions(store, tracking.model))
        carry_out(store, tracking, intent)
    return _done(tracking.model, intent)


def _done(model: str, intent: Intent) -> str:
    """What a rollback did."""
    before = intent.aliases[PREVIOUS]
    rest = f"version {before} is previous" if before else "there is no previous one"
    return f"{model}: {intent.text.removeprefix('rolled back: ')}, in place of {intent.version}; {rest}"
