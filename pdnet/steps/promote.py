"""A registered version becomes the champion, where it has earned it."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from pdnet.config import Config, load_yaml
from pdnet.errors import ConfigError, DataError, PromotionError, TrackingError, UnknownVersionError
from pdnet.evaluation.config import ScoringProtocol
from pdnet.evaluation.scoring import summarise
from pdnet.steps.rescore import rescore
from pdnet.steps.run_record import data_facts
from pdnet.tracking.aliases import (
    CHAMPION,
    PROMOTION,
    carry_out,
    current_aliases,
    finish_interrupted,
    promotion,
    refusal,
)
from pdnet.tracking.lineage import data_commands
from pdnet.tracking.promotion import (
    Evidence,
    Judgement,
    PromotionPolicy,
    Verdict,
    clip_scores,
    format_table,
    judge,
    read_evidence,
)
from pdnet.tracking.promotion_lock import read_lock
from pdnet.tracking.release import Release
from pdnet.tracking.store import Store, open_store
from pdnet.tracking.versions import Version, download_release, find_version

#: The tag of a version with which a person agrees, and how often it is looked for, seconds.
APPROVAL, POLL = "approval", 5.0

logger = logging.getLogger("pdnet.steps.promote")


def promote(
    *,
    candidate: str = "",
    policy: Path = Path("configs/promotion.yaml"),
    videos: Path | None = None,
    dry_run: bool = False,
    require_approval: bool = False,
    config: Config,
) -> str:
    """Judge a registered version against the champion, and make it the champion where it is better.

    The champion before it becomes `previous`. Verdict and figures go to the promotion log, an artifact of the
    registry. What an interrupted promotion began is finished first.

    Args:
        candidate: number of the version; without it the one with the alias `candidate`.
        policy: YAML file that says what the champion has to reach.
        videos: data set in the MVPS layout, on which a version that was scored on other data than those of the
            judgement is scored again; without it that of the parameters.
        dry_run: judge alone; no alias, tag or entry of the log is touched.
        require_approval: wait, after a good judgement, until a person sets the tag `approval` of the version to
            `approved` or `rejected`; an older tag counts where it names the champion, as in `approved over 3` or
            `rejected over 3`.
        config: `tracking`, `data.videos`, `device`.

    Returns:
        The table and what was done.

    Raises:
        PromotionError: refused, with the reasons; or the champion changed while this was judged.
        TrackingError: the store does not answer or refuses, or there is no such version.
        ConfigError: the policy is missing or damaged.
    """
    rules = load_yaml(PromotionPolicy, policy, what="a promotion policy")
    if candidate and not candidate.isdecimal():
        raise ConfigError(f"--candidate {candidate}: expected the number of a version, such as 3")
    tracking = config.tracking
    with tempfile.TemporaryDirectory() as scratch:
        with open_store(write=not dry_run) as store:
            if not dry_run:
                finish_interrupted(store, tracking)
            elif (holder := read_lock(store, tracking)) is not None:
                logger.warning("%s moves the aliases of %s, or was interrupted in it", holder.by, tracking.model)
            name = f"{tracking.model}/{candidate}" if candidate else f"{tracking.model}@candidate"
            version = find_version(store, name)
            if CHAMPION in version.aliases:
                return f"{tracking.model} version {version.version} is the champion already"
            fetched = _fetch_both(store, version, Path(scratch))
        case = _judge(*fetched, rules, videos or Path(config.data.videos), config)
    judgement, table = case.judgement, format_table(tracking.model, case.judgement)
    if dry_run:
        if not judgement.promoted:
            raise PromotionError(_refused(version, judgement), table=table)
        return f"{table}\n\nnothing was changed (--dry-run)"
    approval = ""
    if judgement.promoted and (require_approval or rules.require_approval):
        logger.info("the judgement:\n%s", table)
        approval = _wait_for_approval(version, judgement.champion)
    with open_store() as store:
        if approval.startswith("rejected"):
            reasons = (f"rejected by a person: the tag {APPROVAL} is '{approval}'",)
            _settle(store, case, config, reasons, promoted=False, approval=approval)
            raise PromotionError(f"{version.name} is refused: {reasons[0]}", table=table)
        _settle(store, case, config, judgement.reasons, promoted=judgement.promoted, approval=approval, table=table)
    if not judgement.promoted:
        raise PromotionError(_refused(version, judgement), table=table)
    before = f", version {judgement.champion} is previous" if judgement.champion else ""
    return f"{table}\n\n{tracking.model} version {version.version} is the champion{before}"


def judge_and_promote(*, version: str, policy: PromotionPolicy, videos: Path | None, config: Config) -> Verdict:
    """`promote` for a pipeline: a verdict where that raises, and nobody to ask.

    Args:
        version: number of the candidate.
        policy: what it has to reach. Where that requires a person's approval, the version stays as it is.
        videos: data set on which a version that was scored on other data than those of the judgement is scored again;
            without it the candidate is refused then.
        config: `tracking`, `device`.

    Raises:
        TrackingError: the store does not answer or refuses.
    """
    tracking = config.tracking
    with tempfile.TemporaryDirectory() as scratch:
        with open_store() as store:
            finish_interrupted(store, tracking)
            candidate = find_version(store, f"{tracking.model}/{version}")
            if CHAMPION in candidate.aliases:
                return Verdict(False, (f"version {version} is the champion already",), version)
            if candidate.tags.get(PROMOTION, "").startswith("rolled back"):
                reason = f"it was rolled back; a person may decide otherwise: pdnet promote --candidate {version}"
                return Verdict(False, (reason,), current_aliases(store, tracking.model).get(CHAMPION))
            fetched = _fetch_both(store, candidate, Path(scratch))
        case = _judge(*fetched, policy, videos, config)
    promoted, reasons, champion = case.judgement.promoted, case.judgement.reasons, case.judgement.champion
    if promoted and policy.require_approval:
        words = f"a person has to agree: pdnet promote --candidate {version}"
        return Verdict(False, (*reasons, words), champion)
    with open_store() as store:
        try:
            _settle(store, case, config, reasons, promoted=promoted)
        except PromotionError as error:  # another process was faster
            logger.warning("%s", error)
            return Verdict(False, (str(error),), current_aliases(store, tracking.model).get(CHAMPION))
    logger.info("%s version %s %s: %s", tracking.model, version, "promoted" if promoted else "refused", reasons[0])
    return Verdict(promoted, reasons, version if promoted else champion)


class _Case(NamedTuple):
    """A judgement and what it was made from."""

    version: Version
    judgement: Judgement
    policy: PromotionPolicy
    data: str


class _Fetched(NamedTuple):
    """A version with its files; where they cannot be had, why."""

    version: Version
    release: Release | None
    trouble: str = ""


class _Ground(NamedTuple):
    """What all are judged on: a version of the data, which of its frames, and under which protocol."""

    data: str
    resolution: str
    protocol: ScoringProtocol
    bring: str


def _fetch_both(store: Store, version: Version, folder: Path) -> tuple[_Fetched, _Fetched | None]:
    """The files of the candidate, and of the champion where there is one."""

    def fetch(which: Version) -> _Fetched:
        try:
            return _Fetched(which, download_release(store, which, folder / which.version))
        except (DataError, TrackingError) as error:
            return _Fetched(which, None, str(error))

    champion = current_aliases(store, version.model).get(CHAMPION)
    theirs = None if champion is None else fetch(find_version(store, f"{version.model}/{champion}"))
    return fetch(version), theirs


def _judge(
    candidate: _Fetched, champion: _Fetched | None, policy: PromotionPolicy, videos: Path | None, config: Config
) -> _Case:
    """Score again who was not scored on the ground of the judgement, and judge. No store is open: this may take long,
    and its errors are not the store's.
    """
    ours, theirs = _evidence(candidate), None if champion is None else _evidence(champion)
    data = policy.data_md5 or ours.data
    if not ours.damage and not (theirs and theirs.damage):
        assert candidate.release is not None
        wanted = candidate.release.config
        sources = [(ours, candidate)] if theirs is None or champion is None else [(ours, candidate), (theirs, champion)]
        bring = next((_how_to_bring(each.release) for held, each in sources if held.data == data and each.release), "")
        ground = _Ground(data, wanted["data"]["resolution"], wanted["evaluation"]["protocol"], bring)
        ours = _on_the_ground(candidate, ours, ground, videos, config.device)
        if theirs is not None and champion is not None:
            theirs = _on_the_ground(champion, theirs, ground, videos, config.device)
    return _Case(candidate.version, judge(ours, theirs, policy), policy, data)


def _evidence(fetched: _Fetched) -> Evidence:
    """What a version shows as it is; what cannot be read is damage."""
    if fetched.release is None:
        return Evidence(fetched.version.version, damage=(fetched.trouble,))
    try:
        return read_evidence(fetched.version, fetched.release)
    except DataError as error:
        return Evidence(fetched.version.version, damage=(str(error),))


def _on_the_ground(
    fetched: _Fetched, evidence: Evidence, ground: _Ground, videos: Path | None, device: str
) -> Evidence:
    """The evidence of a version on what the judgement is made on."""
    release = fetched.release
    assert release is not None
    stored = release.config
    if evidence.data == ground.data and stored["data"]["resolution"] == ground.resolution:
        if stored["evaluation"]["protocol"] == ground.protocol:
            return evidence
        return dataclasses.replace(evidence, clips=clip_scores(summarise(release.frames(), ground.protocol).clips))
    found = data_facts(videos)["md5"] if videos and videos.is_dir() else None
    if videos is None or found != ground.data:
        where = f"{videos} holds {found or 'nothing'}" if videos else "no data were given"
        missing = (
            f"version {evidence.version} was scored on data version {evidence.data}, the judgement is on "
            f"{ground.data}; to score it again, bring the latter ({where})"
        )
        return dataclasses.replace(evidence, clips=None, missing=f"{missing}: {ground.bring}".removesuffix(": "))
    clips = rescore(
        release,
        videos,
        resolution=ground.resolution,
        protocol=ground.protocol,
        device=device,
        label=f"score version {evidence.version} on data version {ground.data[:8]}",
    )
    return dataclasses.replace(evidence, clips=clip_scores(clips), data=ground.data, scored_again=True)


def _how_to_bring(release: Release) -> str:
    """The commands that bring the data of a release."""
    commands = data_commands(release.facts)
    return f"`{' && '.join(commands)}`, then --videos" if commands else "DVC does not track it"


def _settle(
    store: Store,
    case: _Case,
    config: Config,
    reasons: tuple[str, ...],
    *,
    promoted: bool,
    approval: str = "",
    table: str = "",
) -> None:
    """Carry the judgement out, and log it.

    Raises:
        PromotionError: the champion is no longer the one that was judged against.
    """
    judgement = case.judgement
    facts: dict[str, Any] = {
        "policy": dataclasses.asdict(case.policy),
        "rows": [dataclasses.asdict(row) for row in judgement.rows],
        "figures": judgement.figures,
        "reasons": list(reasons),
        "data": case.data,
        "approval": approval or None,
    }
    make = promotion if promoted else refusal
    intent = make(case.version.model, judgement.candidate, reasons, champion=judgement.champion, facts=facts)
    try:
        carry_out(store, config.tracking, intent)
    except PromotionError as error:
        raise PromotionError(str(error), table=table) from None


def _refused(version: Version, judgement: Judgement) -> str:
    return f"{version.name} is refused: {'; '.join(judgement.reasons)}"


def _wait_for_approval(version: Version, champion: str | None) -> str:
    """The tag with which a person agreed or did not, once it is there.

    MLflow does not say when a tag was set. One that stood there before the judgement may be about another one, so it
    counts only where it names the champion that this judgement is against.
    """
    words = ("approved", "rejected")
    named = tuple(f"{word} over {champion or 'none'}" for word in words)
    uri, before = _approval(version)
    if before in named:
        return before
    if before:
        logger.info("the tag %s was '%s' before this judgement and does not count", APPROVAL, before)
    page = f"{uri if uri.startswith('http') else 'http://127.0.0.1:5000'}/#/models/{version.model}/versions/"
    choice = " or ".join(f"'{each}'" for each in (named if before else words))
    logger.info("waits for a person: on %s%s set the tag %s to %s", page, version.version, APPROVAL, choice)
    told = False
    while True:
        try:
            _, word = _approval(version)
        except UnknownVersionError:
            raise
        except TrackingError as error:  # a server that is started again; people take longer than that
            if not told:
                logger.warning("%s; goes on waiting", error)
            told, word = True, before
        if word in named or (word != before and word in words):
            return word
        time.sleep(POLL)


def _approval(version: Version) -> tuple[str, str]:
    """Where the store is, and what the tag says: in lower case; empty where there is none."""
    with open_store(write=False) as store:
        return store.uri, find_version(store, version.name).tags.get(APPROVAL, "").strip().lower()
