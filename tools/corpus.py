"""Text as documents, clusters of near copies, and the three sides that no cluster straddles.

A document is a file, a row or a topic; a long file is cut at its top headings. Sides are drawn by a hash of the
cluster (measures.SALT), so that the same text lands on the same side on every machine and in every run.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..store.records import Refused
from . import measures
from .copies import components, near_copies
from .models import folder

COMMITTED = Path(__file__).with_name("builtin.jsonl")
LONG = 1500         # words from which a file is cut at its headings
TEXT_FILES = (".txt", ".md", ".rst")
ROW_FILES = (".jsonl", ".parquet")
_WIKITEXT = re.compile(r"^ = [^=\n].*[^=\n] = *$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_RST = re.compile(r"^(?P<over>([^\w\s])\2{2,})?\n?(?P<title>\S.*)\n(?P<under>([^\w\s])\5{2,})[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Document:
    """One text; `id` is the sha256 of it, `name` says where it came from."""

    id: str
    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Documents with, for each, the number of its cluster and its side (`explain`, `tune` or `score`).

    `digest` covers the documents in their order and measures.VERSION; `notes` counts what was read, dropped and joined.
    """

    name: str
    digest: str
    documents: tuple[Document, ...]
    clusters: tuple[int, ...]
    sides: tuple[str, ...]
    notes: dict[str, float]

    def side(self, name: str) -> list[int]:
        """Indices of the documents of one side, shuffled by their digests: a prefix is a fair sample."""
        if name not in measures.SIDES:
            raise Refused(f"{name!r} is no side of a corpus; the sides are {', '.join(measures.SIDES)}.")
        return sorted((i for i, side in enumerate(self.sides) if side == name), key=lambda i: self.documents[i].id)


def load_corpus(ref: str, tokens: int | None = None) -> Corpus:
    """The corpus called `builtin` or `local`, or the text at a path, as documents with clusters and sides.

    A path is a file or folder of .txt, .md, .rst (cut at top headings when long), .jsonl (an object with `text` a
    line) or .parquet (a column `text`). `tokens` keeps about that many tokens (one for four bytes of UTF-8) in whole
    clusters, drawn by their hash; sides are those of the whole corpus, so that a document keeps its side at every size.
    Raises Refused, naming file and place, for what is missing, empty, not UTF-8 or malformed.
    """
    if not ref.strip():
        raise Refused("the corpus has no name; give builtin, local, or a file or folder of text.")
    read = list({"builtin": _builtin, "local": _local}.get(ref, lambda: _path(ref))())
    unique: dict[str, Document] = {}
    for found in read:
        if found.text.split():
            unique.setdefault(found.id, found)
    if not unique:
        raise Refused(f"the corpus {ref!r} is empty; give a file or folder with text in it, or use builtin.")
    documents = tuple(unique.values())
    pairs = near_copies([document.text for document in documents])
    clusters = components(len(documents), pairs)
    keys, big = _keys(documents, clusters)
    kept = _within(documents, clusters, keys, tokens)
    sides = {cluster: "explain" if cluster in big else _side(key) for cluster, key in keys.items()}
    digest = hashlib.sha256(f"measures {measures.VERSION}".encode())
    for i in kept:
        digest.update(documents[i].id.encode())
    return Corpus(
        name=ref,
        digest=digest.hexdigest(),
        documents=tuple(documents[i] for i in kept),
        clusters=tuple(clusters[i] for i in kept),
        sides=tuple(sides[clusters[i]] for i in kept),
        notes={
            "documents": len(kept),
            "clusters": len({clusters[i] for i in kept}),
            "words": sum(len(documents[i].text.split()) for i in kept),
            "left_out": len(documents) - len(kept),
            "empty_dropped": sum(not found.text.split() for found in read),
            "duplicates_dropped": sum(bool(found.text.split()) for found in read) - len(documents),
            "near_copy_pairs": len(pairs),
            "big_clusters": len(big),
        },
    )


def filler_text() -> str:
    """The text committed with the project, always at hand: where seeded filler tokens are drawn from."""
    return "\n\n".join(document.text for document in _rows(COMMITTED))


def _keys(documents: tuple[Document, ...], clusters: list[int]) -> tuple[dict[int, str], set[int]]:
    """Each cluster's smallest document id, and the clusters too big to be scored on.

    A cluster is big with more than BIG_CLUSTER of all words: words stand in for tokens, which need a model.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for i, cluster in enumerate(clusters):
        members[cluster].append(i)
    sizes = [len(document.text.split()) for document in documents]
    limit = measures.BIG_CLUSTER * sum(sizes)
    keys = {cluster: min(documents[i].id for i in inside) for cluster, inside in members.items()}
    return keys, {cluster for cluster, inside in members.items() if sum(sizes[i] for i in inside) > limit}


def _drawn(key: str) -> int:
    return int(hashlib.sha256((measures.SALT + key).encode()).hexdigest(), 16)


def _side(key: str) -> str:
    """explain, tune or score, from sha256(salt ‖ smallest document id of the cluster) mod 100."""
    draw = _drawn(key) % 100
    if draw < measures.EXPLAIN_BELOW:
        return "explain"
    return "tune" if draw < measures.TUNE_BELOW else "score"


def _within(
    documents: tuple[Document, ...], clusters: list[int], keys: dict[int, str], tokens: int | None
) -> list[int]:
    """Indices of the documents kept, in order: all, or those of clusters in hash order until `tokens` are reached."""
    if tokens is None:
        return list(range(len(documents)))
    if tokens < 1:
        raise Refused(f"a corpus of {tokens} tokens cannot be measured; ask for at least 1.")
    weight: dict[int, int] = defaultdict(int)
    for document, cluster in zip(documents, clusters, strict=True):
        weight[cluster] += len(document.text.encode()) // 4
    kept, held = set(), 0
    for cluster in sorted(keys, key=lambda cluster: _drawn(keys[cluster])):
        if held >= tokens:
            break
        kept.add(cluster)
        held += weight[cluster]
    return [i for i, cluster in enumerate(clusters) if cluster in kept]


def _document(name: str, text: str) -> Document:
    return Document(hashlib.sha256(text.encode()).hexdigest(), name, text)


def _builtin() -> Iterator[Document]:
    """The committed text, then the documentation that was pulled."""
    pulled = folder("builtin-corpus") / "corpus.jsonl"
    yield from _rows(COMMITTED)
    yield from _rows(pulled)


def _local() -> Iterator[Document]:
    """What this environment happens to hold: long descriptions of installed packages and Python's help topics."""
    from pydoc_data import topics  # type: ignore[import-not-found, unused-ignore]

    found = {}
    for package in metadata.distributions():
        about = package.metadata
        body = about.get_payload() if hasattr(about, "get_payload") else None
        if isinstance(body, str):
            found[f"{about['Name']} {about['Version']}"] = body
    found |= {f"pydoc {topic}": text for topic, text in topics.topics.items()}
    for name in sorted(found):
        yield _document(name, found[name])


def _path(ref: str) -> Iterator[Document]:
    """The documents of a file, or of all files of the known kinds in a folder, in the order of their paths."""
    path = Path(ref).expanduser()
    known = TEXT_FILES + ROW_FILES
    if path.is_dir():
        visible = (each for each in path.rglob("*") if not any(p.startswith(".") for p in each.relative_to(path).parts))
        files = sorted(each for each in visible if each.suffix.lower() in known and each.is_file())
        if not files:
            raise Refused(f"the folder {ref} holds no {', '.join(known)} file, so there is no corpus in it.")
    elif not path.is_file():
        raise Refused(f"{ref!r} is no corpus: there is no such file or folder; by name there are builtin and local.")
    elif path.suffix.lower() not in known:
        raise Refused(f"{ref} cannot be read as a corpus; files of text end in {', '.join(known)}.")
    else:
        files = [path]
    for file in files:
        yield from _rows(file) if file.suffix.lower() in ROW_FILES else _pieces(file)


def _decoded(path: Path) -> str:
    """The text of a UTF-8 file; raises Refused with the offset of the first byte that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise Refused(
            f"{path} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at offset {error.start:,}); "
            "convert it first, for example with iconv."
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}).") from error


def _rows(path: Path) -> Iterator[Document]:
    """One document for each row of a JSONL or Parquet file, called by its `name` or its number."""
    for name, text in _jsonl(path) if path.suffix.lower() == ".jsonl" else _parquet(path):
        yield _document(name, text)


def _jsonl(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Refused(f"{path} line {number} is no JSON ({error}).") from None
        text, name = (row.get("text"), row.get("name")) if isinstance(row, dict) else (None, None)
        if not isinstance(text, str):
            raise Refused(f"{path} line {number} is no object with a string called text, as in {{\"text\": \"…\"}}.")
        yield name if isinstance(name, str) else f"{path.name}:{number}", text


def _parquet(path: Path) -> Iterator[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        kind = table.schema_arrow.field("text").type if "text" in table.schema_arrow.names else None
        if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise Refused(f"{path} has no column of strings called text; it has {', '.join(table.schema_arrow.names)}.")
        texts = (text for batch in table.iter_batches(columns=["text"]) for text in batch.column(0).to_pylist())
        yield from ((f"{path.name}:{number}", text) for number, text in enumerate(texts, start=1) if text is not None)
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from error


def _pieces(path: Path) -> Iterator[Document]:
    """One document for each part of a text file between top headings, or one for a file that is short or has none."""
    text = _decoded(path)
    starts = headings(text) if len(text.split()) >= LONG else []
    edges = sorted({0, *starts, len(text)})
    for start, end in zip(edges, edges[1:], strict=False):
        part = text[start:end].strip()
        title = part.split("\n", 1)[0].strip(" =#")
        if part:
            yield _document(f"{path.name}: {title}" if starts else path.name, part)


def headings(text: str) -> list[int]:
    """Offsets of the top headings: of the highest level that has at least two, in WikiText, Markdown or RST."""
    wikitext = [found.start() for found in _WIKITEXT.finditer(text)]
    bare = _FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)      # a comment in code is no heading
    markdown = [[found.start() for found in re.finditer(rf"^{'#' * k} ", bare, re.MULTILINE)] for k in (1, 2, 3)]
    styles: dict[tuple[bool, str], list[int]] = {}
    for found in _RST.finditer(text):
        if len(found["under"]) >= len(found["title"].rstrip()):
            styles.setdefault((found["over"] is not None, found["under"][0]), []).append(found.start())
    levels = [wikitext, *markdown, *styles.values()]
    return next((level for level in levels if len(level) > 1), [])
