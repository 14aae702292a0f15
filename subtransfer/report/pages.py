"""Pages: jinja2 templates that share one style, each one file that fetches nothing.

Templates lie in `templates/` and escape whatever they are given; only figures, which are SVG
already, and JSON go in as they are.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import jinja2
from markupsafe import Markup


# One for all pages of a process: it keeps templates that it has compiled.
@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("subtransfer.report"),
        # Always: names, labels and samples of what agents wrote come from outside.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["script_json"] = _script_json
    environment.filters["zip"] = zip
    return environment


def render(template: str, **context: Any) -> str:
    """Fills in a template.

    Args:
      template: its name in `templates/`, without ".html.j2".
      context: the names that it uses; one that is missing is an error.
    """
    return _environment().get_template(f"{template}.html.j2").render(**context)


def _script_json(value: Any) -> Markup:
    """JSON to stand within <script>, which no text in it can end."""
    # Within a script nothing is unescaped, so escaping as in text would change the values.
    return Markup(json.dumps(value).replace("<", "\\u003c"))
