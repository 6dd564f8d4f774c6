"""The rules run as Great Expectations suites, and their outcome in words of the data set."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from pdnet.validation.config import ValidationConfig
from pdnet.validation.rules import Rule, Table, rules
from pdnet.validation.tables import records


@dataclass(frozen=True)
class RuleOutcome:
    """What came of one rule.

    Attributes:
        rule: the rule.
        passed: whether the data keep it; a rule that allows a share may pass with offenders.
        checked: rows of its table.
        rows: positions of the rows that break it; none for a rule on a table as a whole.
        offenders: a line each.
    """

    rule: Rule
    passed: bool
    checked: int
    rows: tuple[int, ...]
    offenders: tuple[str, ...]

    @property
    def stops(self) -> bool:
        """Whether it stops the pipeline."""
        return not self.passed and self.rule.severity == "error"

    def line(self, most: int = 5) -> str:
        """The rule and its first offenders in one line."""
        shown = list(self.offenders[:most])
        if len(self.offenders) > most:
            shown.append(f"and {len(self.offenders) - most} more")
        by = f" by {len(self.rows)} of {self.checked} {self.rule.table}" if self.rows else ""
        return f"rule '{self.rule.name}' broken{by}: {'; '.join(shown)}"


@dataclass(frozen=True)
class ValidationResult:
    """The outcome of every rule, with the tables that it was found on.

    Attributes:
        config: the limits.
        frames: as `frame_table` made it.
        clips: as `clip_table` made it.
        stills: as `still_table` made it.
        outcomes: one a rule: those on clips, on frames, on stills, each in the order of `rules`.
        suites: Great Expectations' own result of each table.
    """

    config: ValidationConfig
    frames: pd.DataFrame = field(repr=False)
    clips: pd.DataFrame = field(repr=False)
    stills: pd.DataFrame = field(repr=False)
    outcomes: tuple[RuleOutcome, ...]
    suites: Mapping[Table, Any] = field(repr=False)

    @property
    def success(self) -> bool:
        """Whether every rule passed but those that only warn."""
        return not any(outcome.stops for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line a broken rule that stops the pipeline, the first five offenders in it."""
        return tuple(outcome.line() for outcome in self.outcomes if outcome.stops)

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line a broken rule that only warns, the first offender in it."""
        return tuple(outcome.line(most=1) for outcome in self.outcomes if not outcome.passed and not outcome.stops)

    @property
    def headline(self) -> str:
        """The result in one short line: how many rules are broken, and the first of them with its first offender."""
        broken = sorted((outcome for outcome in self.outcomes if not outcome.passed), key=lambda o: not o.stops)
        if not broken:
            return f"all {len(self.outcomes)} rules hold"
        return f"{len(broken)} of {len(self.outcomes)} rules broken, first: {broken[0].line(most=1)}"


def validate_tables(
    frames: pd.DataFrame, clips: pd.DataFrame, stills: pd.DataFrame, config: ValidationConfig
) -> ValidationResult:
    """Check every rule on the tables.

    Args:
        frames: from `frame_table`.
        clips: from `clip_table`, of these frames and this config.
        stills: from `still_table`; without rows its rules hold.
        config: the limits.
    """
    tables: dict[Table, pd.DataFrame] = {"clips": clips, "frames": frames, "stills": stills}
    outcomes: list[RuleOutcome] = []
    suites: dict[Table, Any] = {}
    with _quiet():
        for name, table in tables.items():
            own = [rule for rule in rules(config) if rule.table == name]
            suites[name] = _run_suite(name, table.reset_index(drop=True), own)
            # Great Expectations reports in an order of its own.
            by_rule = {entry.expectation_config.meta["rule"]: entry for entry in suites[name].results}
            outcomes += [_outcome(rule, by_rule[rule.name], table) for rule in own]
    return ValidationResult(config, frames, clips, stills, tuple(outcomes), suites)


def data_docs(result: ValidationResult) -> dict[Table, str]:
    """Great Expectations' own page (HTML) of each table; same data, same bytes."""
    with _quiet():
        from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
        from great_expectations.render.view.view import DefaultJinjaPageView

        view: Any = DefaultJinjaPageView()
        renderer = ValidationResultsPageRenderer()
        return {table: _steady(view.render(renderer.render(suite))) for table, suite in result.suites.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Great Expectations from phoning home, warning and logging; errors still show."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read once, at its import
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # its modules set levels of their own, so one logger's level is not enough
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _run_suite(name: Table, table: pd.DataFrame, own: list[Rule]) -> Any:
    import great_expectations as gx  # takes seconds

    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    asset = context.data_sources.add_pandas("pdnet").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": table})
    suite = gx.ExpectationSuite(name=name)
    for rule in own:
        expectation = getattr(gx.expectations, rule.expectation)
        suite.add_expectation(expectation(**rule.arguments, notes=rule.sentence, meta={"rule": rule.name}))
    result = batch.validate(suite, result_format="COMPLETE")
    result.meta.pop("batch_markers", None)  # the time of the run
    return result


def _outcome(rule: Rule, entry: Any, table: pd.DataFrame) -> RuleOutcome:
    if entry.exception_info.get("raised_exception", True):
        raise RuntimeError(f"rule '{rule.name}' could not be checked: {entry.exception_info}")
    rows = tuple(sorted(entry.result.get("unexpected_index_list") or ()))
    lines = [rule.offender(row) for row in records(table.iloc[list(rows)])]
    if not entry.success and not rows:
        lines = [rule.offender({})]
    return RuleOutcome(rule, bool(entry.success), len(table), rows, tuple(dict.fromkeys(lines)))


def _steady(page: str) -> str:
    """Take out of a page what leads nowhere and what changes from run to run."""
    # The page expects a whole data docs site around it; here the report, one folder up, is home.
    page = re.sub(r'"(\.\./)+[^"]*"', '"../index.html"', page)
    page = re.sub(r"\?d=[0-9TZ.]+", "", page)  # the time, on the logo's address
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "page", page)  # random, in the names of anchors
