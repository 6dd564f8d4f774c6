"""Which version of the registered model is the champion: a candidate has to earn it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pdnet.errors import ConfigError
from pdnet.tracking.store import open_store

#: The alias of the version that is to be used, and of the one before it.
CHAMPION, PREVIOUS = "champion", "previous"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromotionPolicy:
    """When a candidate becomes the champion. J&F is that of the validation clips, in points of 100.

    Attributes:
        margin: the candidate's J&F must exceed the champion's by more than this.
        min_jf: a champion needs at least this J&F, the first one too.
    """

    margin: float = 0.0
    min_jf: float = 0.0

    def __post_init__(self) -> None:
        for name in ("margin", "min_jf"):
            if not 0 <= getattr(self, name) <= 100:
                raise ConfigError(f"{name}: {getattr(self, name)}, expected 0 to 100")


class Standing(NamedTuple):
    """What a version is judged by.

    Attributes:
        version: its number.
        jf: J&F in points of 100; NaN where the version does not say it.
        data: MD5 of the videos that it was scored on; None where the version does not say it.
    """

    version: str
    jf: float
    data: str | None


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate was promoted; `dataclasses.asdict` gives what `registration.json` holds.

    Attributes:
        promoted: yes or no.
        reasons: why, at least one.
        champion: the version that is the champion now; None where there is none.
    """

    promoted: bool
    reasons: tuple[str, ...]
    champion: str | None


def promote(model: str, version: str, policy: PromotionPolicy) -> Verdict:
    """Judge a version of the registered model, and make it the champion where it deserves it.

    The champion before it becomes `previous`. The verdict stands as the tag `promotion` of the version. Of two
    promotions at once the later one wins, whatever the other had judged: the registry has no lock.

    Args:
        model: name of the registered model.
        version: the candidate.
        policy: what it has to reach.

    Raises:
        TrackingError: the store does not answer or refuses.
    """
    with open_store() as store:
        client = store.client
        holder = client.get_registered_model(model).aliases.get(CHAMPION)
        champion = None if holder is None else _standing(str(holder), client.get_model_version(model, holder).tags)
        verdict = judge(_standing(version, client.get_model_version(model, version).tags), champion, policy)
        if verdict.promoted:
            # In this order a model that is in use never lacks its champion, and the old one is never out of reach.
            if champion is not None:
                client.set_registered_model_alias(model, PREVIOUS, champion.version)
            client.set_registered_model_alias(model, CHAMPION, version)
        text = f"{'promoted' if verdict.promoted else 'refused'}: {'; '.join(verdict.reasons)}"
        client.set_model_version_tag(model, version, "promotion", text)
    logger.info("%s version %s %s", model, version, text)
    return verdict


def judge(candidate: Standing, champion: Standing | None, policy: PromotionPolicy) -> Verdict:
    """The verdict on a candidate; scores on two versions of the data say nothing about each other."""
    against = []
    if not candidate.jf >= policy.min_jf:
        against.append(f"J&F {candidate.jf:.2f}, a champion needs {policy.min_jf:g}")
    if champion is None:
        reason = f"J&F {candidate.jf:.2f}, the first champion"
    elif candidate.data is None or candidate.data != champion.data:
        reason = (
            f"scored on other data than the champion, version {champion.version}: "
            f"{candidate.data or 'unknown'}, not {champion.data or 'unknown'}"
        )
        against.append(reason)
    else:
        lead = round(candidate.jf - champion.jf, 6)  # 87.1 - 86.1 is not 1 in binary
        reason = (
            f"J&F {candidate.jf:.2f} against {champion.jf:.2f} of version {champion.version}, the champion: "
            f"a lead of {lead:.2f}, more than {policy.margin:g} is needed"
        )
        if not lead > policy.margin:
            against.append(reason)
    if against:
        return Verdict(False, tuple(against), champion.version if champion else None)
    return Verdict(True, (reason,), candidate.version)


def _standing(version: str, tags: Mapping[str, str]) -> Standing:
    try:
        jf = round(100 * float(tags["jf_mean"]), 6)
    except (KeyError, ValueError):  # registered by other means
        jf = math.nan
    return Standing(version, jf, tags.get("data.videos.md5"))
