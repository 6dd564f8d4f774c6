"""HTML pages from templates, the same way for every report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def page_template(path: Path, **filters: Callable[..., Any]) -> jinja2.Template:
    """The Jinja template of an HTML page: text is escaped, and a name that is not given is an error.

    Args:
        path: the template.
        filters: functions that it may use, by name.
    """
    import jinja2  # not part of the core

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(path.name)
