"""The morning report as one page of HTML, or as Markdown: what the facts hold is text there, never markup.

The templates are in store/web. Whatever they print goes through `finalize` first, so that control, bidi and zero-width
characters show as escapes and nothing is left out; then it is escaped.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from .. import store
from ..store.plain import bounded, clean, count, cut, duration, number, when
from ..store.records import Refused
from .report import LIMITS

# Punctuation that means something in Markdown, links that some readers make of bare addresses included.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~&$#!]|:(?=//)|(?<=www)\.", re.IGNORECASE)
_EXPLAINED = {
    "accepted": f"F1 surely at least {LIMITS['accept']}, surely above every floor, and few false discoveries",
    "rejected": "surely too low, or surely no better than a floor",
    "unclear": "neither, or scores contradict each other: waits for review",
    "abstained": "no explanation was good enough to be put forward",
    "undefined": "an explanation that could not be scored",
    "failed": "an error; nothing was scored",
}


def render(facts: dict[str, Any], markdown: bool = False) -> str:
    """The report of `report_facts` as HTML that needs nothing beside itself, or as Markdown."""
    made = Environment(
        autoescape=True, finalize=_as_markdown if markdown else _as_html, loader=FunctionLoader(_source),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {
        "cut": cut, "number": number, "count": count, "when": when, "spell": _spell, "duration": duration,
    }  # fmt: skip
    page = made.get_template("report.md.jinja" if markdown else "report.html.jinja")
    text = page.render(**facts, bounded=bounded, explained=_EXPLAINED, limits=LIMITS)
    return re.sub(r"\n{3,}", "\n\n", text)


def target(given: str | None, default: Path, markdown: bool) -> tuple[Path, bool]:
    """Where the page goes, and whether it is Markdown: asked for, or by the name of the file that was given.

    Raises Refused for an empty name.
    """
    if given is None:
        return default.with_suffix(".md" if markdown else ".html"), markdown
    if not given.strip():
        raise Refused("the file is an empty name; name one with -o, or leave -o out.")
    return Path(given), markdown or Path(given).suffix.lower() == ".md"


def write(page: str, path: Path) -> None:
    """Puts a page into a file; raises Refused where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, "utf-8")
    except OSError as error:
        raise Refused(f"{str(path)!r} cannot be written ({error.strerror}); name another file with -o.") from error


def _source(name: str) -> str:
    return files(store).joinpath("web", name).read_text("utf-8")


def _as_html(value: Any) -> Any:
    return value if isinstance(value, Markup) else clean(value)


def _as_markdown(value: Any) -> Any:
    return value if isinstance(value, Markup) else Markup(_MARKDOWN.sub(r"\\\g<0>", clean(value)))


def _spell(value: Any) -> str:
    """A setting as people write it."""
    return ", ".join(map(str, value)) if isinstance(value, list) else str("not set" if value is None else value)


__all__ = ["render", "target", "write"]
