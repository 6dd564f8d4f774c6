"""The aliases `champion` and `previous`: what is to be moved, in which order, and what is left after a crash.

A move is an `Intent`: everything that is to be done, written into the lock (`promotion_lock`) before any of it is.
Whoever holds the lock

1. looks whether the aliases still are those that were judged; if not, nothing is done,
2. says on the model that this intent is begun, by its digest, and writes the entry of the log (`promotion_log`),
3. moves the aliases: a promotion sets `previous` before `champion`, a rollback `champion` before `previous`. Either
   way the model never lacks its champion, and the version to go back to is never out of reach,
4. says on the version what became of it, on the model that the intent is done, and
5. removes the lock.

Whoever is killed in between leaves the lock. The next who wants it finishes the intent first: every call of it may be
made twice.

On a server with accounts anybody may make a lock, with any intent in it, one copied from the log too. So an intent is
finished only where the model itself says that it is begun, which takes the right to change the model, as moving an
alias does. Until then nothing has been moved or logged, and the lock is merely removed.

Aliases that people move by hand in MLflow's page are respected, not guarded: an interrupted intent that finds another
champion is dropped; where its entry had been written, another one says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from pdnet import __version__
from pdnet.errors import PromotionError, TrackingError
from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.promotion_lock import (
    Lock,
    abandon,
    check_lock,
    make_lock,
    release,
    take_over,
    wait_for_lock,
    whoami,
)
from pdnet.tracking.promotion_log import DROPPED, in_force, line_of_champions, log_run, read_log, write_entry
from pdnet.tracking.store import Store, is_denied
from pdnet.tracking.versions import registered_model

#: The alias of the version that is to be used, and of the one before it.
CHAMPION, PREVIOUS = "champion", "previous"
#: The tag of a version that says what became of it.
PROMOTION = "promotion"
#: The tag of the registered model that says how far the last intent is: a word, then the digest of the intent.
STATE = "promotions.intent"

_BEGUN, _DONE = "begun", "done"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Intent:
    """A move of aliases, or a refusal, as it is to be carried out.

    Attributes:
        version: is tagged with `text` as its `promotion`.
        text: what became of it.
        entry: of the log.
        file: name of the entry; names sort by time.
        expected: the aliases as they were judged; None for one that did not exist.
        aliases: the aliases as they are to be, in the order of the calls; None removes one. Empty for a refusal.
    """

    version: str
    text: str
    entry: dict[str, Any]
    file: str
    expected: dict[str, str | None]
    aliases: dict[str, str | None]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def current_aliases(store: Store, model: str) -> dict[str, str]:
    """The aliases of a registered model, each with its version; none where there is no such model."""
    entity = registered_model(store, model)
    return {} if entity is None else {str(alias): str(version) for alias, version in entity.aliases.items()}


def known_versions(store: Store, model: str) -> set[str]:
    """The versions of a registered model."""
    return {str(each.version) for each in store.client.search_model_versions(f"name = '{model}'")}


def refusal(
    model: str, version: str, reasons: Sequence[str], *, champion: str | None, facts: Mapping[str, Any]
) -> Intent:
    """The intent to keep the champion; `facts` go to the log."""
    return _intent("refused", model, version, (champion, champion), "; ".join(reasons), facts)


def promotion(
    model: str, version: str, reasons: Sequence[str], *, champion: str | None, facts: Mapping[str, Any]
) -> Intent:
    """The intent to make a version the champion, and the champion that it was judged against `previous`."""
    aliases: dict[str, str | None] = {PREVIOUS: champion} if champion else {}
    aliases[CHAMPION] = version
    intent = _intent("promoted", model, version, (champion, version), "; ".join(reasons), facts)
    return replace(intent, expected={CHAMPION: champion}, aliases=aliases)


def rollback(
    model: str, aliases: Mapping[str, str], log: Sequence[Mapping[str, Any]], versions: Collection[str]
) -> Intent:
    """The intent to make `previous` the champion again, and the champion before that `previous`.

    Args:
        model: name of the registered model.
        aliases: as they are.
        log: its entries, oldest first.
        versions: that there are; one that was deleted cannot be gone back to.

    Raises:
        PromotionError: there is nothing to go back to.
    """
    champion, restored = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if champion is None or restored in (None, champion):
        found = ", ".join(f"{alias} is version {version}" for alias, version in sorted(aliases.items())) or "no alias"
        raise PromotionError(f"{model}: nothing to go back to: it needs a champion and a previous one; found {found}")
    assert restored is not None
    text = f"version {restored} is the champion again"
    expected: dict[str, str | None] = {CHAMPION: champion, PREVIOUS: restored}
    line = line_of_champions([*log, {"outcome": "rolled back", "from": champion, "to": restored}])
    before = [version for version in line[:-1] if version in versions]
    # The champion first: if nobody ever finishes this, what is to be restored is still named.
    after = {CHAMPION: restored, PREVIOUS: before[-1] if before else None}
    return replace(
        _intent("rolled back", model, champion, (champion, restored), text), expected=expected, aliases=after
    )


def carry_out(store: Store, tracking: TrackingConfig, intent: Intent) -> None:
    """Take the lock, do what the intent says, and release the lock.

    Raises:
        PromotionError: the aliases are no longer those that were judged; nothing was done. Or the lock was taken over,
            and whoever did that finishes.
        TrackingError: the store does not answer or refuses; the next call finishes what was begun.
    """
    while (nonce := make_lock(store, tracking, asdict(intent))) is None:
        finish_interrupted(store, tracking)
    with _given_up_on_failure(store, tracking, nonce, intent):
        found = current_aliases(store, tracking.model)
        if any(found.get(alias) != version for alias, version in intent.expected.items()):
            release(store, tracking, nonce)
            raise PromotionError(_changed(store, tracking, found, intent))
        _execute(store, tracking, intent, nonce)
        release(store, tracking, nonce)


def finish_interrupted(store: Store, tracking: TrackingConfig) -> Intent | None:
    """Finish what somebody began and did not end; wait for somebody who is at it.

    Returns:
        What was finished here; None where there was nothing, or somebody else did it.

    Raises:
        TrackingError: this account has no right to the lock that somebody left.
    """
    finished = None
    while (left := wait_for_lock(store, tracking)) is not None:
        finished = _finish(store, tracking, left) or finished
    return finished


def _intent(  # noqa: PLR0917 - the words of one sentence
    outcome: str,
    model: str,
    version: str,
    move: tuple[str | None, str | None],
    text: str,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> Intent:
    """An intent that moves nothing yet, with its entry of the log."""
    now, (before, after) = datetime.now(UTC), move
    entry = {"outcome": outcome, "model": model, "version": version, "from": before, "to": after}
    entry |= {"by": whoami(), "at": now.isoformat(timespec="microseconds"), "pdnet": __version__, "text": text, **facts}
    name = f"{now:%Y%m%dT%H%M%S}.{now:%f}Z-v{version}-{outcome.replace(' ', '-')}.json"
    return Intent(version, f"{outcome}: {text}", entry, name, expected={}, aliases={})


def _execute(store: Store, tracking: TrackingConfig, intent: Intent, nonce: str) -> None:
    """What an intent says; made to be done twice, in part or in whole.

    Whoever has no right to the model, or to the log, is told so before anything is moved or logged.
    """
    client, model = store.client, tracking.model

    def fence() -> None:
        check_lock(store, tracking, nonce)

    run_id = log_run(store, tracking)
    fence()
    _say(store, tracking, intent, _BEGUN)
    fence()
    try:
        write_entry(store, run_id, intent.file, intent.entry)
    except Exception as error:
        if is_denied(error):  # else the entry may have been written
            _say(store, tracking, intent, DROPPED)
        raise
    for alias, version in intent.aliases.items():
        fence()
        if version is None:
            _remove_alias(store, model, alias)
        else:
            client.set_registered_model_alias(model, alias, version)
    fence()
    client.set_model_version_tag(model, intent.version, PROMOTION, intent.text)
    fence()
    _say(store, tracking, intent, _DONE)


def _remove_alias(store: Store, model: str, alias: str) -> None:
    """Remove an alias, where this account may: on a server, who may set aliases may not always remove them.

    A rollback without a version before it is what removes one: `previous`, which is the champion by then, and where it
    stays so, there is nothing to go back to either.
    """
    try:
        store.client.delete_registered_model_alias(model, alias)
    except Exception as error:
        if not is_denied(error):
            raise
        logger.warning("the alias %s of %s stays on the champion: to remove it takes MANAGE on the model", alias, model)


def _say(store: Store, tracking: TrackingConfig, intent: Intent, state: str) -> None:
    """Say on the registered model how far an intent is."""
    store.client.set_registered_model_tag(tracking.model, STATE, f"{state} {intent.digest}")


def _state(store: Store, tracking: TrackingConfig, digest: str) -> str:
    """How far an intent is, as the registered model says; empty where it was not begun."""
    entity = registered_model(store, tracking.model)
    state, _, of = ("" if entity is None else entity.tags.get(STATE, "")).partition(" ")
    return state if of == digest else ""


def _finish(store: Store, tracking: TrackingConfig, left: Lock) -> Intent | None:
    """Take over a lock that was left behind, finish its intent, and release it.

    Returns:
        The intent that was finished; None where it was dropped, or where somebody else is at it.
    """
    if (taken := take_over(store, tracking, left)) is None:
        return None
    nonce, facts = taken
    since = f"{datetime.fromtimestamp(left.since, UTC):%F %T} UTC"
    intent = _known_intent(facts)
    state = "" if intent is None else _state(store, tracking, intent.digest)
    if intent is None or state not in (_BEGUN, _DONE):
        logger.warning("removed the lock that %s left at %s; nothing had been done", left.by, since)
        release(store, tracking, nonce)
        return None
    with _given_up_on_failure(store, tracking, nonce, intent):
        what = f"{intent.entry['outcome']} version {intent.version} of {tracking.model}"
        why = "" if state == _DONE else _obstacle(store, tracking, intent)
        if why:
            _drop(store, tracking, intent, why)
            logger.warning("dropped what %s was interrupted in at %s: %s; %s", left.by, since, what, why)
        else:
            if state == _BEGUN:
                _execute(store, tracking, intent, nonce)
            logger.info("finished what %s was interrupted in at %s: %s", left.by, since, what)
        release(store, tracking, nonce)
    return None if why else intent


def _known_intent(facts: Any) -> Intent | None:
    """The intent in a lock; None where it is nothing of the kind."""
    try:
        return Intent(**facts)
    except TypeError:
        return None


def _obstacle(store: Store, tracking: TrackingConfig, intent: Intent) -> str:
    """Why an intent that was begun cannot be finished; empty where it can."""
    aliases = current_aliases(store, tracking.model)
    if gone := {intent.version, *intent.aliases.values()} - {None} - known_versions(store, tracking.model):
        return f"version {gone.pop()} was deleted"
    if all(aliases.get(alias) in _on_the_way(intent, alias) for alias in intent.expected):
        return ""
    holder = aliases.get(CHAMPION)
    return f"the champion is version {holder} by now"


def _drop(store: Store, tracking: TrackingConfig, intent: Intent, why: str) -> None:
    """Say that an intent is not carried out: in the log, where its entry is there already, and on the model."""
    if any(entry["file"] == intent.file for entry in read_log(store, tracking.model)):
        champion = current_aliases(store, tracking.model).get(CHAMPION)
        facts = {"dropped": intent.file}
        note = _intent(DROPPED, tracking.model, intent.version, (champion, champion), why, facts)
        write_entry(store, log_run(store, tracking), note.file, note.entry)
    _say(store, tracking, intent, DROPPED)


def _on_the_way(intent: Intent, alias: str) -> tuple[str | None, ...]:
    """What an alias may be while an intent is carried out: before its call, and after it."""
    before = intent.expected[alias]
    return before, intent.aliases.get(alias, before)


@contextlib.contextmanager
def _given_up_on_failure(store: Store, tracking: TrackingConfig, nonce: str, intent: Intent) -> Iterator[None]:
    """Remove the lock where nothing was begun; else say on it that the next one need not wait for the lease's end.

    Raises:
        TrackingError: instead of a server's refusal for lack of rights; says which it takes.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):
            is_begun = _state(store, tracking, intent.digest) in (_BEGUN, _DONE)
            (abandon if is_begun else release)(store, tracking, nonce)
        if not is_denied(error):
            raise
        raise TrackingError(
            f"MLflow at {store.uri}: {whoami()} may not promote or roll back: that takes EDIT on the registered model "
            f"'{tracking.model}' and on the experiment '{tracking.experiment}', which has the promotion log"
        ) from error


def _changed(store: Store, tracking: TrackingConfig, found: Mapping[str, str], intent: Intent) -> str:
    """Which alias is not as it was judged, and who moved it."""
    alias = next(alias for alias, version in intent.expected.items() if found.get(alias) != version)
    version, before = found.get(alias), intent.expected[alias]
    moves = [entry for entry in in_force(read_log(store, tracking.model)) if entry["to"] != entry["from"]]
    known = bool(moves) and alias == CHAMPION and moves[-1]["to"] == version
    who = f"by {moves[-1]['by']} at {moves[-1]['at']}" if known else "by hand"
    if version is None:
        return f"{tracking.model}: the alias {alias} was taken from version {before} meanwhile; judge again"
    what = "was promoted" if known and moves[-1]["outcome"] == "promoted" else f"became the {alias}"
    return f"{tracking.model}: version {version} {what} meanwhile, {who}; judge again"
