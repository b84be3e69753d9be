"""One HTML page out of sections; every name from data is escaped by the template engine."""

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from salmon.files import write_atomically
from salmon.views.figures import DARK, LIGHT
from salmon.views.report.gathering import Section
from salmon.views.report.plain import PlainSection
from salmon.views.report.sections import plain_values, section_values
from salmon.views.tables import p_text


def write_report(
    path: Path, sections: Sequence[Section], title: str, plain: Sequence[PlainSection] = ()
) -> None:
    """Write the page."""
    data = render(sections, title, plain).encode()
    write_atomically(path, lambda file: file.write(data))


def render(sections: Sequence[Section], title: str, plain: Sequence[PlainSection] = ()) -> str:
    """Make the page.

    Returns:
        HTML that loads nothing from elsewhere; the same sections give the same page. What is no
        text in a name is shown as question marks.
    """
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_asset),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("table.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        title=title,
        p_text=p_text,
        style=Markup(_asset("style.css").replace("/* paints */", _paints())),
        script=Markup(script),
        script_hash=digest,
        sections=[
            *(section_values(number, each) for number, each in enumerate(sections)),
            *(plain_values(number, each) for number, each in enumerate(plain, len(sections))),
        ],
    )
    return page.encode(errors="replace").decode()  # JSON may hold halves of characters


def _asset(name: str) -> str:
    """A file of this folder."""
    return (files("salmon.views.report") / name).read_text(encoding="utf-8")


def _paints() -> str:
    """Colours of charts and text for light and dark paper."""
    light, dark = _properties(LIGHT), _properties(DARK)
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ @media screen {{ :root {{ {dark} }} "
        "svg image { filter: brightness(1.4); } } }"
    )


def _properties(colours: dict[str, str]) -> str:
    """Custom properties of a palette."""
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
