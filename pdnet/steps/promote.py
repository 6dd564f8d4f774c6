"""A registered version becomes the champion, where it has earned it."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from pdnet.config import Config, load_yaml
from pdnet.errors import ConfigError, DataError, PromotionError, TrackingError
from pdnet.evaluation.scoring import summarise
from pdnet.steps.lineage import data_facts
from pdnet.steps.rescore import rescore
from pdnet.tracking.aliases import (
    CHAMPION,
    carry_out,
    current_aliases,
    finish_interrupted,
    promotion,
    read_lock,
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
        videos: data set in the MVPS layout, on which a champion that was scored on other data is scored again;
            without it that of the parameters.
        dry_run: judge alone; no alias, tag or entry of the log is touched.
        require_approval: wait, after a good judgement, until a person sets the tag `approval` of the version to
            `approved` or `rejected`; an older tag counts where it names the champion, as in `approved over 3`.
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
    with open_store() as store:
        if not dry_run:
            finish_interrupted(store, tracking)
        elif (holder := read_lock(store, tracking)) is not None:
            logger.warning("%s moves the aliases of %s, or was interrupted in it", holder.by, tracking.model)
        version = find_version(store, f"{tracking.model}/{candidate}" if candidate else f"{tracking.model}@candidate")
        if CHAMPION in version.aliases:
            return f"{tracking.model} version {version.version} is the champion already"
        case = _judge(store, version, rules, videos or Path(config.data.videos), config)
        judgement, table = case.judgement, format_table(tracking.model, case.judgement)
        if dry_run:
            if not judgement.promoted:
                raise PromotionError(_refused(version, judgement), table=table)
            return f"{table}\n\nnothing was changed (--dry-run)"
        approval = ""
        if judgement.promoted and (require_approval or rules.require_approval):
            logger.info("the judgement:\n%s", table)
            approval = _wait_for_approval(store, version, judgement.champion)
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
        videos: data set on which a champion that was scored on other data is scored again; without it the candidate
            is refused then.
        config: `tracking`, `device`.

    Raises:
        TrackingError: the store does not answer or refuses.
    """
    tracking = config.tracking
    with open_store() as store:
        finish_interrupted(store, tracking)
        candidate = find_version(store, f"{tracking.model}/{version}")
        if CHAMPION in candidate.aliases:
            return Verdict(False, (f"version {version} is the champion already",), version)
        case = _judge(store, candidate, policy, videos, config)
        promoted, reasons, champion = case.judgement.promoted, case.judgement.reasons, case.judgement.champion
        if promoted and policy.require_approval:
            words = f"a person has to agree: pdnet promote --candidate {version}"
            return Verdict(False, (*reasons, words), champion)
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


class _Model(NamedTuple):
    """A version with its files; None where they cannot be read, which the evidence says."""

    evidence: Evidence
    release: Release | None


def _judge(store: Store, version: Version, policy: PromotionPolicy, videos: Path | None, config: Config) -> _Case:
    """Fetch candidate and champion, score the champion again where that is needed, and judge."""

    def fetch(which: Version) -> _Model:
        try:
            release = download_release(store, which, Path(scratch, which.version))
            return _Model(read_evidence(which, release), release)
        except (DataError, TrackingError) as error:
            return _Model(Evidence(which.version, damage=(str(error),)), None)

    holder = current_aliases(store, version.model).get(CHAMPION)
    with tempfile.TemporaryDirectory() as scratch:
        candidate, theirs = fetch(version), None
        if holder is not None:
            champion = fetch(find_version(store, f"{version.model}/{holder}"))
            theirs = champion.evidence
            if not candidate.evidence.damage and not theirs.damage:
                theirs = _on_the_same_frames(champion, candidate, videos, config.device)
    return _Case(version, judge(candidate.evidence, theirs, policy), policy, candidate.evidence.data)


def _on_the_same_frames(champion: _Model, candidate: _Model, videos: Path | None, device: str) -> Evidence:
    """The champion's evidence on the frames that the candidate was scored on, under the candidate's protocol."""
    assert champion.release is not None
    assert candidate.release is not None
    theirs, ours = champion.evidence, candidate.evidence
    stored, wanted = champion.release.config, candidate.release.config
    protocol, resolution = wanted["evaluation"]["protocol"], wanted["data"]["resolution"]
    if theirs.data == ours.data and stored["data"]["resolution"] == resolution:
        if stored["evaluation"]["protocol"] == protocol:
            return theirs
        return dataclasses.replace(theirs, clips=clip_scores(summarise(champion.release.frames(), protocol).clips))
    found = data_facts(videos)["md5"] if videos and videos.is_dir() else None
    if videos is None or found != ours.data:
        where = f"{videos} holds {found or 'nothing'}" if videos else "no data were given"
        missing = (
            f"version {theirs.version}, the champion, was scored on data version {theirs.data}, this one on "
            f"{ours.data}; to score the champion again, bring the latter ({where}): "
            f"{_how_to_bring(candidate.release)}"
        )
        return dataclasses.replace(theirs, clips=None, missing=missing)
    clips = rescore(
        champion.release,
        videos,
        resolution=resolution,
        protocol=protocol,
        device=device,
        label=f"score version {theirs.version} on the data of version {ours.version}",
    )
    return dataclasses.replace(theirs, clips=clip_scores(clips), data=ours.data, scored_again=True)


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


def _wait_for_approval(store: Store, version: Version, champion: str | None) -> str:
    """The tag with which a person agreed or did not, once it is there.

    MLflow does not say when a tag was set. One that stood there before the judgement may be about another one, so it
    counts only where it names the champion that this judgement is against.
    """
    over = f"approved over {champion or 'none'}"
    before = find_version(store, version.name).tags.get(APPROVAL)
    page = (
        f"{store.uri if store.uri.startswith('http') else 'http://127.0.0.1:5000'}/#/models/{version.model}/versions/"
    )
    choice = f"'{over}' or 'rejected'"
    if before not in (None, over):
        logger.info("the tag %s was '%s' before this judgement and does not count", APPROVAL, before)
    elif before is None:
        choice = "'approved' or 'rejected'"
    if before != over:
        logger.info("waits for a person: on %s%s set the tag %s to %s", page, version.version, APPROVAL, choice)
    while True:
        tag = find_version(store, version.name).tags.get(APPROVAL)
        word = (tag or "").strip().lower()
        if word == over or (tag != before and word in ("approved", "rejected")):
            return word
        time.sleep(POLL)
