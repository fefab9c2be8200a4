"""Text of Debian's documentation packages as a corpus, for training on more and more varied text than `builtin` has.

    apt-get download debian-handbook perl-doc dict-wn …
    python -m lamplighter.experiments.deb_text FOLDER OUT.jsonl

FOLDER holds the .deb files; `dpkg-deb` unpacks them and nothing in them is run. Beside the corpus stands
OUT.packages.json: name, sha256 and characters taken of each package.
"""

import gzip
import hashlib
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from ..store.records import Refused

MOST = 1_500_000        # characters taken from one package, so that none is most of the corpus
DOCUMENT = 12_000       # characters from which a document ends with the next paragraph
SHORTEST = 40           # characters of a paragraph that is kept
LETTERS = 0.75          # least share of letters and spaces in one: tables, code and indices have fewer
BREAKS = {"p", "li", "dd", "dt", "td", "th", "div", "br", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "title"}
SILENT = {"script", "style", "pre", "nav", "head", "code"}
_TEXT = re.compile(r"\.(html?|xhtml|page|txt|pod|info|dict)(\.gz|\.dz)?$|/fortunes/[a-z-]+$")
_PAGE = re.compile(r"\.(html?|xhtml|page)(\.gz)?$")
_ABOUT = re.compile(r"changelog|copyright|/NEWS|README\.Debian", re.IGNORECASE)
_FOREIGN = re.compile(
    r"/(help|html|doc|share/doc/[^/]+)/(?!C/|en)[a-z]{2}([-_][A-Za-z]{2,4})?/|\.(?!en)[a-z]{2}\.html$"
)
_POD = re.compile(r"[A-Z]<+\s?([^<>]*?)\s?>+")
_BLANK, _ENTRY = re.compile(r"\n\s*\n|\n%\n"), re.compile(r"\n(?=\S)")


class _Page(HTMLParser):
    """The blocks of a page, without code, scripts and menus."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = [""]
        self._silent = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._silent += tag in SILENT
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in SILENT and self._silent > 0
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.blocks[-1] += data

    def _break(self, tag: str) -> None:
        if tag in BREAKS:
            self.blocks.append("")


def documents(package: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each document of a package, MOST characters in all; members in order of their names' sha256."""
    left, seen = MOST, set[str]()
    members = _members(package)
    for name in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        kept = [p for p in paragraphs(name, members[name]) if p not in seen and not seen.add(p)]  # type: ignore[func-returns-value]
        for number, text in enumerate(_cut(kept)):
            if left <= 0:
                return
            left -= len(text)
            yield f"{name.removeprefix('./')}#{number}", text


def _members(package: Path) -> dict[str, bytes]:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
            files = ((m.name, archive.extractfile(m)) for m in archive if m.isfile() and is_text(m.name))
            return {name: file.read() for name, file in files if file is not None}


def is_text(name: str) -> bool:
    """Whether a member's name is that of English documentation."""
    return bool(_TEXT.search(name)) and not _ABOUT.search(name) and not _FOREIGN.search(name)


def paragraphs(name: str, data: bytes) -> Iterator[str]:
    """The paragraphs of a member that are running text, white space made single."""
    text = (gzip.decompress(data) if name.endswith(("gz", "dz")) else data).decode("utf-8", "replace")
    if _PAGE.search(name):
        blocks = _Page(text).blocks
    elif ".dict" in name:
        blocks = _ENTRY.split(text)
    else:
        blocks = _BLANK.split(_POD.sub(r"\1", text) if name.endswith(".pod") else text)
    for block in blocks:
        paragraph = " ".join(block.split())
        plain = sum(c.isalpha() or c == " " for c in paragraph)
        if len(paragraph) >= SHORTEST and plain >= LETTERS * len(paragraph) and "\ufffd" not in paragraph:
            yield paragraph


def _cut(kept: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for paragraph in kept:
        held.append(paragraph)
        if sum(map(len, held)) >= DOCUMENT:
            yield "\n\n".join(held)
            held = []
    if held:
        yield "\n\n".join(held)


def main(folder: Path, out: Path) -> None:
    """Writes the corpus and what it is of. Raises Refused for a folder without packages."""
    packages = sorted(folder.glob("*.deb"))
    if not packages:
        raise Refused(f"{folder} holds no .deb files; fetch some with `apt-get download NAME`.")
    notes = []
    with out.open("w", encoding="utf-8") as lines:
        for package in packages:
            texts = list(documents(package))
            for name, text in texts:
                lines.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
            characters = sum(len(text) for _, text in texts)
            digest = hashlib.sha256(package.read_bytes()).hexdigest()
            notes.append({"package": package.stem, "sha256": digest, "characters": characters})
            print(f"{package.stem}: {characters:,} characters", file=sys.stderr)
    out.with_suffix(".packages.json").write_text(json.dumps(notes, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
