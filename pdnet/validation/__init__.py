"""Data validation: what is on disk, against the rules that the paper's collection and the training rely on.

index_clips, index_stills      which files there are                        (pdnet.data)
frame_table, still_table       what is in them: every image and mask opened once
clip_table                     one row a clip
validate_tables                the rules, as Great Expectations suites      -> ValidationResult
write_report                   index.html, summary.json, the tables, Great Expectations' own pages
"""

from __future__ import annotations

from pdnet.validation.config import ValidationConfig
from pdnet.validation.report import write_report
from pdnet.validation.rules import Rule, rules
from pdnet.validation.suites import RuleOutcome, ValidationResult, validate_tables
from pdnet.validation.tables import clip_table, frame_table, still_table

__all__ = [
    "Rule",
    "RuleOutcome",
    "ValidationConfig",
    "ValidationResult",
    "clip_table",
    "frame_table",
    "rules",
    "still_table",
    "validate_tables",
    "write_report",
]
