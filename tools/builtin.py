"""Gathers the documentation part of the `builtin` corpus from a wheel, as text: nothing in the wheel is executed.

Two kinds of document: a text file as it stands, and what one Python file says in its docstrings (and descriptions of
data sets), read with `ast`. What gets in depends on the wheel and its row in models.toml alone, so every machine makes
the same text.
"""

import ast
import hashlib
import re
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

SHORTEST = 60       # words in a document; below that a text is a label rather than a document
STATEMENT = 25      # words of prose in a docstring that is kept
_OWNERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_LICENCE = re.compile(
    r"Permission is hereby granted|All rights reserved|Licensed under the|Redistribution and use|SPDX-License"
)
_ROLE = re.compile(r":[a-zA-Z][\w:+.-]*:`~?([^`<]*?)\s*(?:<[^`>]*>)?`")
_SESSION = re.compile(r"\s*(>>>|In \[\d+\]:)")
_BADGE = re.compile(r"\[!\[|^\s*\.\. |<[a-z/!][^>]*>")
# what opens a block of markup or of options, which ends where the text is no further indented than its head
_CODE = re.compile(
    r"\s*(\.\. (code|code-block|sourcecode|plot|ipython|testcode|testsetup|doctest|image|figure|literalinclude|table|"
    r"csv-table|list-table|autosummary|toctree|index) ?::|\.\. _|:[a-zA-Z][^:`]*:(\s|$))"
)
_OPTIONS = re.compile(
    r"\s*(Other |Keyword )?(Parameters|Args|Arguments|Returns?|Yields|Raises|Attributes|See [Aa]lso|Methods|Warns|"
    r"Examples?|Inputs?|Outputs?|Contains|Usage):?$"
)
_DIRECTIVE = re.compile(r"^(\s*)\.\. [\w:-]+ ?::\s*")      # its content is kept
_ADDRESS = re.compile(r"\s*[*-]?\s*<?https?://\S+>?\s*$")
_RULE = re.compile(r"\s*([=\-~^*#\"'`+_])\1{3,}\s*$")


@dataclass(frozen=True)
class Harvest:
    """What to gather: `texts` and `docstrings` are patterns for members, `characters` the most to take in all, `cut`
    the most from one member. Members are tried in the order of the sha256 of their names, which favours no subject."""

    characters: int
    texts: Sequence[str] = ()
    docstrings: Sequence[str] = ()
    cut: int = 3000


def harvest(archive: zipfile.ZipFile, wanted: Harvest) -> Iterator[dict[str, str]]:
    """Yields `{"name", "text"}` for each document found, until `wanted.characters` are reached."""
    left = wanted.characters
    members = sorted(archive.namelist(), key=lambda name: hashlib.sha256(name.encode()).digest())
    for member in members:
        if left <= 0:
            return
        text = _document(archive, member, wanted)
        if len(text.split()) >= SHORTEST:
            left -= len(text)
            yield {"name": member, "text": text}


def _document(archive: zipfile.ZipFile, member: str, wanted: Harvest) -> str:
    """The text of one member that the patterns name, cleaned and cut; empty for every other member."""
    if any(fnmatchcase(member, pattern) for pattern in wanted.texts):
        text = archive.read(member).decode("utf-8").replace("\r\n", "\n")
        text = prose(_readme(text) if member.endswith("METADATA") else text)
    elif any(fnmatchcase(member, pattern) for pattern in wanted.docstrings):
        said = [prose(text) for text in statements(archive.read(member).decode("utf-8"))]
        text = "\n\n".join(part for part in said if len(part.split()) >= STATEMENT and not _LICENCE.search(part))
    else:
        return ""
    return first_part(text, wanted.cut)


def statements(source: str) -> list[str]:
    """Docstrings, and strings assigned to a name with DESCRIPTION in it, of a Python source in the order of lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # escapes that newer Pythons frown upon
        tree = ast.parse(source)
    found: dict[int, str] = {}
    for node in ast.walk(tree):
        value: ast.expr | None = None
        if isinstance(node, _OWNERS) and node.body and isinstance(node.body[0], ast.Expr):
            value = node.body[0].value
        elif isinstance(node, ast.Assign) and "DESCRIPTION" in ast.unparse(node.targets[0]):
            value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found[value.lineno] = _dedent(value.value)
    return [found[line] for line in sorted(found)]


def _dedent(text: str) -> str:
    """Strips the common margin of all lines but the first (written out: library versions differ between Pythons)."""
    lines = text.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in lines[1:] if line.strip()), default=0)
    return "\n".join([lines[0].strip(), *(line[margin:].rstrip() for line in lines[1:])]).strip()


def _readme(metadata: str) -> str:
    """The long description of a wheel without lines that are badges or markup."""
    body = metadata.partition("\n\n")[2]
    return "\n".join(line for line in body.split("\n") if not _BADGE.search(line))


def prose(text: str) -> str:
    """Takes sessions, code, pictures, addresses, lists of options and rules out, and roles down to their words."""
    kept: list[str] = []
    session, block, edge = False, False, -1     # a block ends at a line indented `edge` or less, or at a ruled head
    lines = unicodedata.normalize("NFC", text).split("\n")
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        bare, indent = line.strip(), len(line) - len(line.lstrip())
        session = bool(_SESSION.match(line)) or (session and bool(bare))
        if _RULE.match(line) or _ADDRESS.match(line):
            continue
        ruled = bool(bare and _RULE.match(following))
        if ruled or (bare and indent <= edge):
            block = False
        if _OPTIONS.match(line) or (_CODE.match(line) and not block):
            block, edge = True, -1 if ruled else indent
        clean = _ROLE.sub(r"\1", _DIRECTIVE.sub(r"\1", line)).rstrip()
        if not session and not block and (clean or (kept and kept[-1])):
            kept.append(clean)
    return "\n".join(kept).strip()


def first_part(text: str, most: int) -> str:
    """The longest run of whole paragraphs from the start within `most` characters, or of words where there is none."""
    if len(text) <= most:
        return text
    end = text.rfind("\n\n", 0, most)
    return text[: end if end > most // 4 else max(text.rfind(" ", 0, most), 0)].rstrip()
