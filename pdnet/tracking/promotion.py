"""What a version must show to become the champion: the policy, the evidence, and a judgement that anybody can repeat.

Nothing here asks the registry or moves an alias (`pdnet.tracking.aliases` does): the same evidence under the same
policy gives the same judgement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from pdnet.errors import ConfigError
from pdnet.evaluation.bootstrap import Interval, paired_difference
from pdnet.tracking.release import Release, broken_claims, built, damage, exported
from pdnet.tracking.versions import Version

#: J&F is judged in points of 100, free of what binary fractions add: 87.1 - 86.1 is not 1.
_DIGITS = 9
_MOST_LINES = 5


@dataclass(frozen=True)
class ScenarioAllowance:
    """How much worse one scenario may be.

    Attributes:
        scenario: its name, the first folder of a clip's path.
        points: of J&F.
    """

    scenario: str
    points: float

    def __post_init__(self) -> None:
        if not 0 <= self.points <= 100:
            raise ConfigError(f"scenario_allowances, {self.scenario}: {self.points:g} points, expected 0 to 100")


@dataclass(frozen=True)
class PromotionPolicy:
    """When a candidate becomes the champion. J&F is that of the validation clips, in points of 100.

    Attributes:
        margin: the candidate's lead must exceed this, by the lower bound of its interval.
        confidence: of that interval, a paired bootstrap over clips.
        resamples: of the bootstrap.
        min_jf: a champion needs at least this J&F, the first one too.
        scenario_allowance: points of J&F by which any one scenario may be worse than the champion's.
        scenario_allowances: the same for scenarios by name, in place of it.
        fps_device: device of the speed floor, as the evaluation names it; empty: no floor.
        fps_floor: frames a second of the network alone, one at a time, measured on that device.
        max_probability_difference: of any file exported in float32 from the network, any pixel. Files in other number
            formats are held against the bounds that they were exported with.
        max_jf_difference: of any file exported in float32 from the network, in points.
        require_approval: whether a person has to agree.
        data_md5: version of the videos on whose validation clips all are judged; empty: the candidate's own.
    """

    margin: float = 0.0
    confidence: float = 0.95
    resamples: int = 10_000
    min_jf: float = 0.0
    scenario_allowance: float = 2.0
    scenario_allowances: tuple[ScenarioAllowance, ...] = ()
    fps_device: str = ""
    fps_floor: float = 0.0
    max_probability_difference: float = 1e-3
    max_jf_difference: float = 0.05
    require_approval: bool = False
    data_md5: str = ""

    def __post_init__(self) -> None:
        for name in ("margin", "min_jf", "scenario_allowance", "max_jf_difference"):
            if not 0 <= getattr(self, name) <= 100:
                raise ConfigError(f"{name}: {getattr(self, name)}, expected 0 to 100")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence: {self.confidence}, expected more than 0, less than 1")
        if self.resamples < 100:
            raise ConfigError(f"resamples: {self.resamples}, expected at least 100")
        if not 0 <= self.max_probability_difference <= 1:
            raise ConfigError(f"max_probability_difference: {self.max_probability_difference}, expected 0 to 1")
        if self.fps_floor < 0 or bool(self.fps_device) != (self.fps_floor > 0):
            raise ConfigError(
                f"fps_floor: {self.fps_floor:g} frames/s with fps_device '{self.fps_device}'; "
                "expected a device and a floor above 0, or neither"
            )

        if self.data_md5 and not re.fullmatch(r"[0-9a-f]{32}\.dir", self.data_md5):
            raise ConfigError(f"data_md5: '{self.data_md5}', expected 32 digits of 0-9a-f and .dir, or nothing")

    def allowance(self, scenario: str) -> float:
        """Points by which a scenario may be worse."""
        named = {each.scenario: each.points for each in self.scenario_allowances}
        return named.get(scenario, self.scenario_allowance)

    @property
    def limits_scenarios(self) -> bool:
        """Whether there is a loss in some scenario that it does not allow."""
        return min([self.scenario_allowance, *(each.points for each in self.scenario_allowances)]) < 100


class Parity(NamedTuple):
    """How far an exported file is from the network: in probability (0..1), and in J&F (points).

    Attributes:
        bounds: the most of both, of files that do not compute in float32: they were accepted by these. None: the
            policy's.
    """

    file: str
    probability: float
    jf: float
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Evidence:
    """What a version is judged by. What is damaged is judged by nothing else.

    Attributes:
        version: its number.
        damage: files that are not what was recorded, compared or evaluated, a line each.
        clips: a row a clip, by name: `jf` in points and, where known, `scenario`; None where there is no figure that
            could be compared.
        missing: why there is none.
        data: MD5 of the videos that the clips are of.
        scored_again: whether they were scored for this judgement, because the stored ones are of other data.
        valid: whether these data met the validation's rules.
        fps: frames a second of the network alone.
        fps_device: where that was measured.
        exports: every exported file.
    """

    version: str
    damage: tuple[str, ...] = ()
    clips: pd.DataFrame | None = None
    missing: str = ""
    data: str = ""
    scored_again: bool = False
    valid: bool = False
    fps: float = math.nan
    fps_device: str = ""
    exports: tuple[Parity, ...] = ()

    @property
    def jf(self) -> float:
        """J&F, the mean over clips."""
        return math.nan if self.clips is None else round(float(self.clips["jf"].mean()), _DIGITS)


@dataclass(frozen=True)
class Row:
    """One rule of a judgement, as a line of its table.

    Attributes:
        what: is compared.
        champion, candidate: their figures.
        needed: what the policy asks.
        ok: None where the line only informs.
        reason: for a refusal.
    """

    what: str
    champion: str
    candidate: str
    needed: str
    ok: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class Judgement:
    """A candidate against the champion.

    Attributes:
        candidate: number of its version.
        champion: of the champion's; None where there is none.
        rows: the rules.
        figures: J&F in points, for the log; None for what there is not.
    """

    candidate: str
    champion: str | None
    rows: tuple[Row, ...]
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def promoted(self) -> bool:
        """Whether every rule is met."""
        return all(row.ok is not False for row in self.rows)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against the candidate; else what speaks for it."""
        if against := tuple(row.reason for row in self.rows if row.ok is False):
            return against
        jf = self.figures["candidate"]
        if self.champion is None:
            return (f"J&F {jf:.2f}, the first champion",)
        return (_lead(self),)


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


def read_evidence(version: Version, release: Release) -> Evidence:
    """The evidence that a version brings along.

    Raises:
        DataError: a file of the release is not what the pipeline writes.
    """
    if found := tuple(_damage(version, release)):
        lines = (*found[:_MOST_LINES], f"and {len(found) - _MOST_LINES} more") if len(found) > _MOST_LINES else found
        return Evidence(version.version, damage=lines)
    facts, speed = release.facts, release.scores["speed"]
    data = _videos(facts)
    return Evidence(
        version.version,
        clips=clip_scores(release.clips()),
        data=data,
        valid=facts["validation"]["valid"] is True and _videos(facts["validation"]) == data != "",
        fps=float(speed["network_fps"]),
        fps_device=str(speed["device"]),
        exports=tuple(_exports(release)),
    )


def clip_scores(clips: pd.DataFrame) -> pd.DataFrame:
    """`clips.parquet` as evidence: by clip, `jf` in points and `scenario`."""
    table = clips.set_index("clip")
    scores = pd.DataFrame({"jf": 100 * table["jf_mean"].astype(float)})
    return scores.assign(scenario=table["scenario"]) if "scenario" in table else scores


def judge(candidate: Evidence, champion: Evidence | None, policy: PromotionPolicy) -> Judgement:
    """The judgement on a candidate.

    Without a champion the rules that need none decide. Scores on two versions of the data say nothing about each
    other: the caller has both scored on one version, or says in `missing` why not.
    """
    figures: dict[str, Any] = {"candidate": _number(candidate.jf)}
    rows = [_files_row(candidate, champion)]
    if not candidate.damage and not (champion and champion.damage):
        difference = _difference(candidate, champion, policy)
        if champion:
            numbers = {key: _number(value) for key, value in difference._asdict().items()} if difference else None
            figures |= {"champion": _number(champion.jf), "difference": numbers}
        rows = [
            *_jf_rows(candidate, champion, difference, policy),
            *_scenario_rows(candidate, champion, policy),
            _data_row(candidate, champion),
            _speed_row(candidate, champion, policy),
            *_parity_rows(candidate, champion, policy),
            *rows,
        ]
    return Judgement(candidate.version, champion.version if champion else None, tuple(rows), figures)


def format_table(model: str, judgement: Judgement) -> str:
    """The judgement for a terminal: a line a rule, then the verdict."""
    champion = f"version {judgement.champion}, the champion" if judgement.champion else "no champion yet"
    cells = [("", f"champion {judgement.champion or '–'}", f"candidate {judgement.candidate}", "needed", "")]
    marks = {True: "ok", False: "NOT ok", None: ""}
    cells += [(row.what, row.champion, row.candidate, row.needed, marks[row.ok]) for row in judgement.rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [
        f"{what:<{widths[0]}}  {left:>{widths[1]}}  {right:>{widths[2]}}  {needed:<{widths[3]}}  {mark}".rstrip()
        for what, left, right, needed, mark in cells
    ]
    head = f"{model} version {judgement.candidate} against {champion}; J&F in percent, speed in frames/s"
    words = "it may be promoted" if judgement.promoted else "refused"
    verdict = [f"{words}: {reason}" if index == 0 else f"  {reason}" for index, reason in enumerate(judgement.reasons)]
    return "\n".join([head, "", *lines, "", *verdict])


def _damage(version: Version, release: Release) -> Iterator[str]:
    """What is not as it was recorded; then what is not as it was evaluated and compared."""
    recorded = version.tags.get("release.sha256")
    if release.sha256 != recorded:
        yield f"lineage.json: SHA-256 {release.sha256}, the registry says {recorded or 'nothing'}"
    if lines := damage(release):
        yield from lines
        return
    for claim in broken_claims(release):
        yield f"{claim.file}: SHA-256 {claim.found or 'none'}, {claim.how} it was {claim.recorded or 'unknown'}"


def _exports(release: Release) -> Iterator[Parity]:
    parity, engine = release.parity, release.engine
    groups = [(each, "onnx", parity["torch"]) for each in exported(parity)]
    if engine is not None:
        groups += [(each, "tensorrt", engine["torch"]) for each in built(engine)]
    for each, side, torch in groups:
        apart = 100 * (float(each.figures[side]["jf_mean"]) - float(torch["jf_mean"]))
        file = ", ".join(name.removeprefix("tensorrt/") for name in each.files)
        probability, limits = float(each.figures["max_probability_difference"]), each.bounds
        own = each.precision != "fp32" and limits
        bounds = (limits["max_probability_difference"], limits["max_jf_difference"]) if own else None
        yield Parity(file, probability, round(abs(apart), _DIGITS), bounds)


def _videos(facts: Mapping[str, Any]) -> str:
    return str(((facts.get("data") or {}).get("videos") or {}).get("md5") or "")


def _difference(candidate: Evidence, champion: Evidence | None, policy: PromotionPolicy) -> Interval | None:
    """Candidate minus champion over the same clips, in points; None where they have no clips in common."""
    if champion is None or candidate.clips is None or champion.clips is None:
        return None
    if set(candidate.clips.index) != set(champion.clips.index):
        return None
    ours, theirs = candidate.clips["jf"], champion.clips["jf"].loc[candidate.clips.index]
    found = paired_difference(ours, theirs, resamples=policy.resamples, level=policy.confidence)
    return Interval(*(round(each, _DIGITS) for each in found))


def _jf_rows(
    candidate: Evidence, champion: Evidence | None, difference: Interval | None, policy: PromotionPolicy
) -> Iterator[Row]:
    jf, clips = candidate.jf, 0 if candidate.clips is None else len(candidate.clips)
    yield Row(
        f"J&F, {clips} clip{'' if clips == 1 else 's'}",
        _points(champion.jf) if champion else "",
        _points(jf),
        f"at least {policy.min_jf:g}",
        jf >= policy.min_jf,
        candidate.missing or f"J&F {jf:.2f}, a champion needs {policy.min_jf:g}",
    )
    if champion is None:
        return
    what, needed = f"lead, {100 * policy.confidence:g} % interval", f"all of it above {policy.margin:g}"
    if difference is None and candidate.missing and champion.missing in ("", candidate.missing):
        return  # said already
    if difference is None:
        reason = champion.missing or f"version {champion.version} was scored on other clips than {candidate.version}"
        yield Row(what, "", "not comparable", needed, False, reason)
        return
    shown = f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
    figures = {"candidate": jf, "champion": champion.jf, "difference": difference._asdict()}
    reason = f"{_lead(Judgement(candidate.version, champion.version, (), figures))}; needed: above {policy.margin:g}"
    yield Row(what, "", shown, needed, difference.low > policy.margin, reason)


def _lead(judgement: Judgement) -> str:
    """The lead in words."""
    figures, difference = judgement.figures, Interval(**judgement.figures["difference"])
    return (
        f"J&F {figures['candidate']:.2f} against {figures['champion']:.2f} of version {judgement.champion}, the "
        f"champion: a lead of {difference.mean:.2f}, with other clips {difference.low:.2f} to {difference.high:.2f}"
    )


def _scenario_rows(candidate: Evidence, champion: Evidence | None, policy: PromotionPolicy) -> Iterator[Row]:
    if candidate.clips is None:
        return
    against = None if champion is None else champion.clips
    # The same clips are of the same scenarios, whoever of the two says so.
    labels = next((found for each in (candidate.clips, against) if (found := _scenarios(each)) is not None), None)
    if labels is None:
        if against is not None and policy.limits_scenarios:
            reason = "neither version says of which scenarios its clips are, and the policy limits the loss in each"
            yield Row("scenarios", "unknown", "unknown", "known", False, reason)
        return
    theirs: Mapping[Any, float] = {} if against is None else against["jf"].groupby(labels).mean().to_dict()
    for scenario, clips in candidate.clips["jf"].groupby(labels):
        ours, count = float(clips.mean()), len(clips)
        what = f"  {scenario}, {count} clip{'' if count == 1 else 's'}"
        if scenario not in theirs:
            yield Row(what, "", _points(ours), "")
            continue
        allowed = policy.allowance(str(scenario))
        least = round(theirs[scenario] - allowed, _DIGITS)
        reason = (
            f"{scenario}: J&F {ours:.2f}, {theirs[scenario] - ours:.2f} below version "
            f"{champion.version if champion else ''}; allowed {allowed:g}"
        )
        ok = round(ours, _DIGITS) >= least
        yield Row(what, _points(theirs[scenario]), _points(ours), f"at least {least:.2f}", ok, reason)


def _scenarios(clips: pd.DataFrame | None) -> pd.Series | None:
    """The scenario of each clip; None where that of any is unknown."""
    if clips is None or "scenario" not in clips or clips["scenario"].isna().any():
        return None
    return clips["scenario"]


def _data_row(candidate: Evidence, champion: Evidence | None) -> Row:
    """The same validated version of the data; whether the champion has figures on it is the lead's business."""
    theirs = "" if champion is None else champion.data[:8] + (", scored again" if champion.scored_again else "")
    ours = candidate.data[:8] + (", scored again" if candidate.scored_again else "")
    own = "of its own evaluation" if candidate.scored_again else candidate.data or "unknown"
    reason = f"its data, {own}, are not the ones that were validated, or they failed"
    return Row("data, validated", theirs, ours, "valid", candidate.valid, reason)


def _speed_row(candidate: Evidence, champion: Evidence | None, policy: PromotionPolicy) -> Row:
    what, theirs, ours = "speed", f"{champion.fps:.1f}" if champion else "", f"{candidate.fps:.1f}"
    if not policy.fps_device:
        return Row(what, theirs, ours, "no floor")
    needed = f"at least {policy.fps_floor:g} on {policy.fps_device}"
    if candidate.fps_device != policy.fps_device:
        reason = f"its speed was measured on {candidate.fps_device}; the floor is one of {policy.fps_device}"
        return Row(what, theirs, ours, needed, False, reason)
    reason = f"{candidate.fps:.1f} frames/s on {policy.fps_device}, a champion needs {policy.fps_floor:g}"
    return Row(what, theirs, ours, needed, candidate.fps >= policy.fps_floor, reason)


def _parity_rows(candidate: Evidence, champion: Evidence | None, policy: PromotionPolicy) -> Iterator[Row]:
    """Each exported file against the network that it came from, not against the champion's."""
    theirs = {each.file: each for each in champion.exports} if champion else {}
    for each in candidate.exports:
        most = each.bounds or (policy.max_probability_difference, policy.max_jf_difference)
        reason = (
            f"{each.file}: {each.probability:.2g} in probability and {each.jf:.2f} in J&F from the network, "
            f"allowed {most[0]:g} and {most[1]:g}"
        )
        ok = each.probability <= most[0] and each.jf <= most[1]
        shown = _apart(theirs[each.file]) if each.file in theirs else ""
        yield Row(each.file, shown, _apart(each), f"at most {most[0]:g}, J&F {most[1]:g}", ok, reason)


def _files_row(candidate: Evidence, champion: Evidence | None) -> Row:
    lines: Sequence[str] = [f"version {candidate.version}: {line}" for line in candidate.damage]
    if champion:
        lines = [*lines, *(f"version {champion.version}, the champion: {line}" for line in champion.damage)]
        if champion.damage:
            lines = [
                *lines,
                "nothing can be judged against it: `pdnet rollback`, or remove the alias champion on "
                "MLflow's page of the model",
            ]
    theirs = ("damaged" if champion.damage else "whole") if champion else ""
    ours = "damaged" if candidate.damage else "whole"
    return Row("files", theirs, ours, "as recorded and evaluated", not lines, "; ".join(lines))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _points(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _apart(parity: Parity) -> str:
    return f"{parity.probability:.1e}, J&F {parity.jf:.2f}"
