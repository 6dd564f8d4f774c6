"""The lock of a model's aliases: one moves them, others wait, and whoever is killed is followed by the next.

MLflow compares and sets nothing, but it makes a registered model of a name once; so the lock is a registered model,
`<model>-promotion`, born with what its holder is about to do, and removed by the holder in the end.

Whoever is killed in between leaves the lock. It is left behind when its holder says so, when its process is gone (on
this host), or after a lease of 60 seconds; while it is held, others wait. Whoever takes it over learns what was to be
done.

On a server with accounts anybody may make a registered model of the lock's name, with anything in it; who has made one,
or is an administrator, can change or remove it. So whether what is found in a lock is to be done, another has to say.

What remains possible, as no call can be made to depend on the lock: a holder that sleeps for longer than the lease
between looking whether the lock is still its own and the call after that, makes this one call late, over what others
did since. The same holds for a call that hangs in the network for that long, and for hosts whose clocks differ by more
than the lease.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdnet.errors import PromotionError, TrackingError
from pdnet.tracking.config import TrackingConfig
from pdnet.tracking.store import Store, is_denied
from pdnet.tracking.versions import registered_model

#: Longest a lock is respected, seconds: some ten calls take one or two.
LEASE = 60.0
#: How often a lock that somebody holds is looked at, seconds.
POLL = 0.5
#: How long after taking a lock over it is looked whose it is, seconds: longer than a call takes.
SETTLE = 1.0

_LOCK, _INTENT = "lock", "intent"

logger = logging.getLogger(__name__)


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

    def __post_init__(self) -> None:
        """See that it may be a lock: anybody can write one, and some would be respected for ever."""
        words = (self.nonce, self.by, self.host)
        if not all(isinstance(word, str) and word.isprintable() for word in words):
            raise TypeError(f"expected three printable words, found {words}")
        if not (isinstance(self.pid, int) and 0 < self.pid < 2**31 and 0 <= self.since < 1e11):  # NaN is neither
            raise ValueError(f"expected a process and seconds since 1970, found {self.pid} and {self.since}")

    @property
    def is_left_behind(self) -> bool:
        """Whether nobody will go on with it."""
        if self.abandoned or abs(time.time() - self.since) > LEASE:  # of the future: nobody holds one for ever
            return True
        return self.host == this_host() and not _is_running(self.pid)


def lock_name(model: str) -> str:
    """The registered model that is the lock of a model's aliases."""
    return f"{model}-promotion"


def read_lock(store: Store, tracking: TrackingConfig) -> Lock | None:
    """Who holds the lock; None where nobody does."""
    found = _read(store, tracking)
    return None if found is None else found[0]


def make_lock(store: Store, tracking: TrackingConfig, intent: Mapping[str, Any]) -> str | None:
    """Make the lock, with the intent in it from its first moment.

    Returns:
        The nonce of the holding; None where somebody else has the lock.

    Raises:
        TrackingError: the name of the lock is that of something else.
    """
    from mlflow.exceptions import MlflowException

    name, lock = lock_name(tracking.model), new_lock()
    try:
        store.client.create_registered_model(
            name,
            tags={_LOCK: json.dumps(asdict(lock)), _INTENT: json.dumps(intent)},
            description=f"The aliases of {tracking.model} are being moved. It is gone in a moment; if not, "
            "somebody was interrupted, and the next `pdnet promote` or `pdnet rollback` finishes it.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        holder = read_lock(store, tracking)
        if (
            holder is None and store.client.get_prompt(name) is not None
        ):  # prompts are registered models that are hidden
            raise _not_a_lock(store, name) from None
        if holder is None or holder.nonce != lock.nonce:  # else it was made, and the answer got lost
            return None
    return lock.nonce


def wait_for_lock(store: Store, tracking: TrackingConfig) -> Lock | None:
    """Wait while somebody holds the lock; then the one that was left behind, or None where there is none."""
    told = False
    while (found := read_lock(store, tracking)) is not None and not found.is_left_behind:
        if not told:
            logger.info("waits for %s (process %d), who moves the aliases of %s", found.by, found.pid, tracking.model)
            told = True
        time.sleep(POLL)
    return found


def take_over(store: Store, tracking: TrackingConfig, left: Lock) -> tuple[str, Any] | None:
    """Become the holder of a lock that was left behind.

    Several may try at once: each writes its name, and after a pause the last one's stands (Fischer's algorithm).

    Returns:
        The nonce of the holding, and the intent as JSON has it; None where somebody else is at it.

    Raises:
        TrackingError: this account has no right to the lock.
    """
    from mlflow.exceptions import MlflowException

    name, ours = lock_name(tracking.model), new_lock()
    try:
        store.client.set_registered_model_tag(name, _LOCK, json.dumps(asdict(ours)))
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # somebody else has finished it
            return None
        if not is_denied(error):
            raise
        raise TrackingError(
            f"MLflow at {store.uri}: {left.by} left the lock of {tracking.model}'s aliases, which this account may not "
            f"remove; they, or an administrator, have to run the command, or to delete the registered model '{name}'"
        ) from None
    time.sleep(SETTLE)
    found = _read(store, tracking)
    if found is None or found[0].nonce != ours.nonce:
        return None
    return ours.nonce, found[1]


def check_lock(store: Store, tracking: TrackingConfig, nonce: str) -> None:
    """See that the lock is still that of this holding.

    Raises:
        PromotionError: it took longer than the lease; says who has it now.
    """
    holder = read_lock(store, tracking)
    if holder is None or holder.nonce != nonce:
        who = f"{holder.by} (process {holder.pid})" if holder else "somebody"
        raise PromotionError(
            f"{tracking.model}: this took longer than {LEASE:g} s; {who} has taken it over and finishes it"
        )


def abandon(store: Store, tracking: TrackingConfig, nonce: str) -> None:
    """Say on the lock, where it is still of this holding, that the next one need not wait for the lease's end."""
    holder = read_lock(store, tracking)
    if holder is not None and holder.nonce == nonce:
        given_up = json.dumps(asdict(holder) | {"abandoned": True})
        store.client.set_registered_model_tag(lock_name(tracking.model), _LOCK, given_up)


def release(store: Store, tracking: TrackingConfig, nonce: str) -> None:
    """Remove the lock, where it is still of this holding."""
    holder = read_lock(store, tracking)
    if holder is not None and holder.nonce == nonce:
        store.client.delete_registered_model(lock_name(tracking.model))


def new_lock() -> Lock:
    """A holding of this process."""
    return Lock(uuid.uuid4().hex, whoami(), this_host(), os.getpid(), time.time())


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


def _read(store: Store, tracking: TrackingConfig) -> tuple[Lock, Any] | None:
    """The lock with its intent as JSON has it; None where there is none."""
    name = lock_name(tracking.model)
    for _ in range(3):
        if (entity := registered_model(store, name)) is None:
            return None
        with contextlib.suppress(KeyError, ValueError, TypeError):
            return Lock(**json.loads(entity.tags[_LOCK])), json.loads(entity.tags[_INTENT])
        time.sleep(POLL)  # one that is being removed has lost its tags
    raise _not_a_lock(store, name)


def _not_a_lock(store: Store, name: str) -> TrackingError:
    return TrackingError(
        f"MLflow at {store.uri}: the model or prompt '{name}' is not the lock that pdnet makes; whoever made it, or an "
        "administrator, has to delete it"
    )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
