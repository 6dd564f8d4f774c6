"""A data set in the MVPS layout made from nothing but code: articulated people in cluttered places."""

from __future__ import annotations

from pdnet.data.synthetic.generate import PRESETS, Preset, generate, plan_clips

__all__ = ["PRESETS", "Preset", "generate", "plan_clips"]
