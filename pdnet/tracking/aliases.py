"""The aliases `champion` and `previous`: who may move them, in which order, what is left after a crash, and the log.

A move is an `Intent`: everything that is to be done, written down before any of it is. MLflow compares and sets
nothing, but it makes a registered model of a name once; so the lock is a registered model, `<model>-promotion`, born
with the intent in its tags. Whoever made it

1. looks whether the aliases still are those that were judged; if not, nothing is done,
2. says on the model that this intent is begun, by its digest, and writes the entry of the log,
3. moves the aliases: a promotion sets `previous` before `champion`, a rollback `champion` before `previous`. Either
   way the model never lacks its champion, and the version to go back to is never out of reach,
4. says on the version what became of it, on the model that the intent is done, and
5. removes the lock.

Whoever is killed in between leaves the lock. The next who wants it finishes the intent first: every call of it may be
made twice. A lock is left behind when its holder says so, when its process is gone (on this host), or after a lease
of 60 seconds; while it is held, others wait.

On a server with accounts anybody may make a registered model of the lock's name, with any intent in it, one copied from
the log too. So an intent is finished only where the model itself says that it is begun, which takes the right to change
the model, as moving an alias does. Until then nothing has been moved or logged, and the lock is merely removed.

What remains possible, as no call can be made to depend on the lock: a holder that sleeps for longer than the lease
between looking whether the lock is still its own and the call after that, makes this one call late, over what others
did since. The same holds for a call that hangs in the network for that long, and for hosts whose clocks differ by more
than the lease. Aliases that people move by hand in MLflow's page are respected, not guarded: an interrupted intent that
finds another champion is dropped; where its entry had been written, another one says so.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pdnet import __version__
from pdnet.errors import PromotionError, TrackingError
from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.store import Store, experiment_id
from pdnet.tracking.versions import registered_model

#: The alias of the version that is to be used, and of the one before it.
CHAMPION, PREVIOUS = "champion", "previous"
#: The tag of a version that says what became of it.
PROMOTION = "promotion"
#: The tag of the registered model that names the run with the log, and the folder in that run.
LOG_RUN, LOG_FOLDER = "promotions.run_id", "promotions"
#: The tag of the registered model that says how far the last intent is: a word, then the digest of the intent.
STATE = "promotions.intent"

#: Longest a lock is respected, seconds: some ten calls take one or two.
LEASE = 60.0
#: How often a lock that somebody holds is looked at, seconds.
POLL = 0.5
#: How long after taking a lock over it is looked whose it is, seconds: longer than a call takes.
SETTLE = 1.0

_LOCK, _INTENT = "lock", "intent"
_BEGUN, _DONE, _DROPPED = "begun", "done", "dropped"

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


@dataclass(frozen=True)
class Lock:
    """Who holds the lock.

    Attributes:
        nonce: of this holding.
        by: a person, `user@host`.
        host: the machine, as `this_host` names it.
        pid: process there.
        since: seconds since 1970.
        abandoned: whether the holder failed, and said so.
    """

    nonce: str
    by: str
    host: str
    pid: int
    since: float
    abandoned: bool = False

    @property
    def is_left_behind(self) -> bool:
        """Whether nobody will go on with it."""
        if self.abandoned or abs(time.time() - self.since) > LEASE:  # of the future: nobody holds one for ever
            return True
        return self.host == this_host() and not _is_running(self.pid)


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


def line_of_champions(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The champions that led to today's, oldest first: a rollback takes the last one away.

    Where an entry does not start from the champion of the one before, somebody moved the alias by hand, and the line
    starts anew.
    """
    line: list[str] = []
    for entry in in_force(log):
        if entry["outcome"] == "promoted":
            if entry["from"] is None or line[-1:] != [entry["from"]]:
                line = [entry["from"]] if entry["from"] else []
            line.append(entry["to"])
        elif entry["outcome"] == "rolled back":
            while line and line[-1] != entry["to"]:
                line.pop()
            line = line or [entry["to"]]
    return line


def in_force(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The entries of what was carried out: without those that were dropped, and without the entries that say so."""
    dropped = {entry["dropped"] for entry in log if entry["outcome"] == _DROPPED}
    return [entry for entry in log if entry["outcome"] != _DROPPED and entry.get("file") not in dropped]


def carry_out(store: Store, tracking: TrackingConfig, intent: Intent) -> None:
    """Take the lock, do what the intent says, and release the lock.

    Raises:
        PromotionError: the aliases are no longer those that were judged; nothing was done. Or the lock was taken over,
            and whoever did that finishes.
        TrackingError: the store does not answer or refuses; the next call finishes what was begun.
    """
    nonce = _take(store, tracking, intent)
    with _given_up_on_failure(store, tracking, nonce, intent):
        found = current_aliases(store, tracking.model)
        if any(found.get(alias) != version for alias, version in intent.expected.items()):
            _release(store, tracking, nonce)
            raise PromotionError(_changed(store, tracking, found, intent))
        _execute(store, tracking, intent, nonce)
        _release(store, tracking, nonce)


def finish_interrupted(store: Store, tracking: TrackingConfig) -> Intent | None:
    """Finish what somebody began and did not end; wait for somebody who is at it.

    Returns:
        What was finished here; None where there was nothing, or somebody else did it.

    Raises:
        TrackingError: this account has no right to the lock that somebody left.
    """
    told, finished = False, None
    while (found := read_lock(store, tracking)) is not None:
        if found.is_left_behind:
            finished = _take_over(store, tracking, found) or finished
            continue
        if not told:
            logger.info("waits for %s (process %d), who moves the aliases of %s", found.by, found.pid, tracking.model)
            told = True
        time.sleep(POLL)
    return finished


def read_lock(store: Store, tracking: TrackingConfig) -> Lock | None:
    """Who holds the lock; None where nobody does."""
    found = _read_lock(store, tracking)
    return None if found is None else found[0]


def lock_name(model: str) -> str:
    """The registered model that is the lock of a model's aliases."""
    return f"{model}-promotion"


def read_log(store: Store, model: str) -> list[dict[str, Any]]:
    """The entries of the log, oldest first: who, when, from which version to which, and why.

    Each has `outcome` (`promoted`, `refused`, `rolled back`, `dropped`), `model`, `version`, `from`, `to`, `by`, `at`,
    `pdnet`, `text`, and `file`, its own name; promotions and refusals also `policy`, `rows`, `figures`, `reasons`,
    `data`, `approval`; a dropped one `dropped`, the file of the entry that was not carried out.
    """
    entity = registered_model(store, model)
    run_id = None if entity is None else entity.tags.get(LOG_RUN)
    if run_id is None:
        return []
    if not store.client.list_artifacts(run_id, LOG_FOLDER):
        return []
    entries = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(store.client.download_artifacts(run_id, LOG_FOLDER, scratch))
        for path in sorted(folder.glob("*.json")):
            try:
                entries.append(json.loads(path.read_text(encoding="utf-8")) | {"file": path.name})
            except ValueError:  # a store that writes in pieces; the lock still has the intent
                logger.warning("warning: the promotion log of %s: %s is half written", model, path.name)
    return entries


def whoami() -> str:
    """Who acts, as `user@host`; a server's user where there is one."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        user = user or getpass.getuser()
    return f"{user or os.getuid()}@{socket.gethostname()}"


def this_host() -> str:
    """The machine, and the process numbers that hold there: containers may share the one and not the other."""
    try:
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # not Linux
        return socket.gethostname()


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
        holder = read_lock(store, tracking)
        if holder is None or holder.nonce != nonce:
            who = f"{holder.by} (process {holder.pid})" if holder else "somebody"
            raise PromotionError(f"{model}: this took longer than {LEASE:g} s; {who} has taken it over and finishes it")

    run_id = _log_run(store, tracking)
    fence()
    _say(store, tracking, intent, _BEGUN)
    fence()
    try:
        client.log_text(run_id, json.dumps(intent.entry, indent=1) + "\n", f"{LOG_FOLDER}/{intent.file}")
    except Exception as error:
        if _is_denied(error):  # else the entry may have been written
            _say(store, tracking, intent, _DROPPED)
        raise
    for alias, version in intent.aliases.items():
        fence()
        if version is None:
            client.delete_registered_model_alias(model, alias)
        else:
            client.set_registered_model_alias(model, alias, version)
    fence()
    client.set_model_version_tag(model, intent.version, PROMOTION, intent.text)
    fence()
    _say(store, tracking, intent, _DONE)


def _say(store: Store, tracking: TrackingConfig, intent: Intent, state: str) -> None:
    """Say on the registered model how far an intent is."""
    store.client.set_registered_model_tag(tracking.model, STATE, f"{state} {intent.digest}")


def _state(store: Store, tracking: TrackingConfig, digest: str) -> str:
    """How far an intent is, as the registered model says; empty where it was not begun."""
    entity = registered_model(store, tracking.model)
    state, _, of = ("" if entity is None else entity.tags.get(STATE, "")).partition(" ")
    return state if of == digest else ""


def _read_lock(store: Store, tracking: TrackingConfig) -> tuple[Lock, dict[str, Any]] | None:
    """The lock with its intent as JSON has it; None where there is none."""
    name = lock_name(tracking.model)
    for _ in range(3):
        if (entity := registered_model(store, name)) is None:
            return None
        with contextlib.suppress(KeyError, ValueError, TypeError):
            return Lock(**json.loads(entity.tags[_LOCK])), json.loads(entity.tags[_INTENT])
        time.sleep(POLL)  # one that is being removed has lost its tags
    raise TrackingError(
        f"MLflow at {store.uri}: the registered model '{name}' is not the lock that pdnet makes; remove it"
    )


def _take(store: Store, tracking: TrackingConfig, intent: Intent) -> str:
    """Make the lock, with the intent in it from its first moment; its nonce."""
    from mlflow.exceptions import MlflowException

    while True:
        lock = _new_lock()
        try:
            store.client.create_registered_model(
                lock_name(tracking.model),
                tags={_LOCK: json.dumps(asdict(lock)), _INTENT: json.dumps(asdict(intent))},
                description=f"The aliases of {tracking.model} are being moved. It is gone in a moment; if not, "
                "somebody was interrupted, and the next `pdnet promote` or `pdnet rollback` finishes it.",
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            holder = read_lock(store, tracking)
            if holder is None or holder.nonce != lock.nonce:  # else it was made, and the answer got lost
                finish_interrupted(store, tracking)
                continue
        return lock.nonce


def _take_over(store: Store, tracking: TrackingConfig, left: Lock) -> Intent | None:
    """Become the holder of a lock that was left behind, finish its intent, and release it.

    Several may try at once: each writes its name, and after a pause the last one's stands (Fischer's algorithm).

    Returns:
        The intent that was finished; None where it was dropped, or where somebody else is at it.
    """
    from mlflow.exceptions import MlflowException

    name, ours = lock_name(tracking.model), _new_lock()
    try:
        store.client.set_registered_model_tag(name, _LOCK, json.dumps(asdict(ours)))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # somebody else has finished it
            return None
        if not _is_denied(error):
            raise
        raise TrackingError(
            f"MLflow at {store.uri}: {left.by} left the lock of {tracking.model}'s aliases, which this account may not "
            f"remove; they, or an administrator, have to run the command, or to delete the registered model '{name}'"
        ) from None
    time.sleep(SETTLE)
    found = _read_lock(store, tracking)
    if found is None or found[0].nonce != ours.nonce:
        return None
    since = f"{datetime.fromtimestamp(left.since, UTC):%F %T} UTC"
    intent = _known_intent(found[1])
    state = "" if intent is None else _state(store, tracking, intent.digest)
    if intent is None or state not in (_BEGUN, _DONE):
        logger.warning("removed the lock that %s left at %s; nothing had been done", left.by, since)
        _release(store, tracking, ours.nonce)
        return None
    with _given_up_on_failure(store, tracking, ours.nonce, intent):
        what = f"{intent.entry['outcome']} version {intent.version} of {tracking.model}"
        why = "" if state == _DONE else _obstacle(store, tracking, intent)
        if why:
            _drop(store, tracking, intent, why)
            logger.warning("dropped what %s was interrupted in at %s: %s; %s", left.by, since, what, why)
        else:
            if state == _BEGUN:
                _execute(store, tracking, intent, ours.nonce)
            logger.info("finished what %s was interrupted in at %s: %s", left.by, since, what)
        _release(store, tracking, ours.nonce)
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
        note = _intent(_DROPPED, tracking.model, intent.version, (champion, champion), why, facts)
        text = json.dumps(note.entry, indent=1) + "\n"
        store.client.log_text(_log_run(store, tracking), text, f"{LOG_FOLDER}/{note.file}")
    _say(store, tracking, intent, _DROPPED)


def _on_the_way(intent: Intent, alias: str) -> tuple[str | None, ...]:
    """What an alias may be while an intent is carried out: before its call, and after it."""
    before = intent.expected[alias]
    return before, intent.aliases.get(alias, before)


def _release(store: Store, tracking: TrackingConfig, nonce: str) -> None:
    holder = read_lock(store, tracking)
    if holder is not None and holder.nonce == nonce:
        store.client.delete_registered_model(lock_name(tracking.model))


@contextlib.contextmanager
def _given_up_on_failure(store: Store, tracking: TrackingConfig, nonce: str, intent: Intent) -> Iterator[None]:
    """Remove the lock where nothing was begun; else say on it that the next one need not wait for the lease's end."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(Exception):
            holder = read_lock(store, tracking)
            if holder is not None and holder.nonce == nonce:
                if _state(store, tracking, intent.digest) in (_BEGUN, _DONE):
                    given_up = json.dumps(asdict(holder) | {"abandoned": True})
                    store.client.set_registered_model_tag(lock_name(tracking.model), _LOCK, given_up)
                else:
                    store.client.delete_registered_model(lock_name(tracking.model))
        raise


def _is_denied(error: Exception) -> bool:
    """Whether a server refused for lack of rights; a call for files says that otherwise than the others."""
    response = getattr(error, "response", None)
    return getattr(error, "error_code", "") == "PERMISSION_DENIED" or getattr(response, "status_code", 0) == 403


def _new_lock() -> Lock:
    return Lock(uuid.uuid4().hex, whoami(), this_host(), os.getpid(), time.time())


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


def _log_run(store: Store, tracking: TrackingConfig) -> str:
    """The run that keeps the log; made where it is new. Only the holder of the lock asks for it."""
    client, model = store.client, tracking.model
    entity = registered_model(store, model)
    if entity is not None and (known := entity.tags.get(LOG_RUN)):
        return str(known)
    experiment = experiment_id(store, tracking.experiment)
    # An interrupted call may have made the run and not yet said so.
    found = client.search_runs([experiment], f"tags.`{LOG_FOLDER}.model` = '{model}'", order_by=["start_time ASC"])
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = {
            f"{LOG_FOLDER}.model": model,
            "mlflow.source.name": "pdnet promote",
            "mlflow.note.content": f"The promotion log of {model}: one file for each promotion, refusal and rollback.",
        }
        run_id = str(client.create_run(experiment, run_name=f"promotions of {model}", tags=tags).info.run_id)
        client.set_terminated(run_id)
    client.set_registered_model_tag(model, LOG_RUN, run_id)
    return run_id


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
