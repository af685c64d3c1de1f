"""Pages from their templates: one file each, with the style inside."""

from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup


def fill_template(template: str, **values: Any) -> str:
    """The page that a template of this package makes of ``values``, which are escaped unless Markup."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rumfast.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = resources.files("rumfast.reporting").joinpath("report.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=Markup(style), **values)
