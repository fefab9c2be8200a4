"""Rules: patterns that predict, with no LLM, how strongly a unit fires at each token of a text.

A rule is an OR of clauses. A clause says what the token is (its id, its word, or a class of words), which piece
of the word, and what must or must not stand before it. The prediction at a token is the highest value among the
clauses that match there, else 0; a clause's value is its mean y/P on the explain side. Patterns are RE2, so any
pattern runs in time linear in the text.

Words: a run of letters and digits, with apostrophes inside it (don't) and, in a number, points and commas between
digits (1,000 or 3.5). A hyphen or an underscore parts words. Every other mark, and every newline, is a word of
its own. A token belongs to the word that holds its last character that is no blank. A token of blanks alone is in
no word (class "blank" matches it), and nothing ever matches the sink, at position 0.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import re2
from nltk.tokenize import RegexpTokenizer

from ..store.records import Refused
from .measures import MAX_ATOMS, MAX_CLAUSES, WINDOW

MAX_IDS = 32          # tokens in one matcher: more would be a look-up table, not a rule
MAX_PATTERN = 400     # characters of a pattern
MAX_VALUE = 100       # y/P; real ones stay below about 2
CACHED = 2**26        # bytes of masks over a text that are remembered
PIECES = ("last", "first", "inner", "any")
UNITS = ("tokens", "words")

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
    "billion trillion dozen first second third fourth fifth sixth seventh eighth ninth tenth"
)
# A class is a pattern with a name. � stands for part of a character and belongs to no class but "any".
CLASSES: dict[str, str] = {
    "number": r"\d+([.,]\d+)*",
    "number word": f"(?i){NUMBER_WORDS.replace(' ', '|')}",
    "uppercase": r"\p{Lu}{2,}",
    "capitalised": r"\p{Lu}[\p{L}'’]*\p{Ll}[\p{L}'’]*",
    "lowercase": r"\p{Ll}[\p{Ll}'’]*",
    "punctuation": r"[^\pL\pN\pM\s\x{FFFD}]",
    "newline": r"\n",
    "blank": r"[^\S\n]+",  # tokens only: it is never part of a word
    "any": r"(?s).*",
}

_LETTER = r"(?:[^\W_]|[\u0300-\u036f\ufffd])"
_WORDS = RegexpTokenizer(rf"\d+(?:[.,]\d+)+{_LETTER}*|{_LETTER}+(?:['’]{_LETTER}+)*|\n|_|[^\w\s]")

# What `Rule.from_json` reads, for whoever writes rules without seeing token numbers ("ids" has no place in it).
_MATCHER = {
    "anyOf": [
        {"type": "object", "properties": {key: schema}, "required": [key], "additionalProperties": False}
        for key, schema in (
            ("word", {"type": "string", "maxLength": 120, "description": "RE2 pattern of the whole word"}),
            ("class", {"enum": [name for name in CLASSES if name not in ("any", "blank")]}),
        )
    ]
}
_RANGE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
_NEAR = {
    "type": "object",
    "properties": {
        "match": _MATCHER,
        "within": {**_RANGE, "description": "distance before the token, from 1 (default [1, 1])"},
        "unit": {"enum": ["tokens", "words"]},
    },
    "required": ["match", "within", "unit"],
    "additionalProperties": False,
}
_CLAUSE = {
    "type": "object",
    "properties": {
        "at": {**_MATCHER, "description": "the word that the token belongs to"},
        "piece": {"enum": list(PIECES), "description": "which token of the word (default last)"},
        "need": {"type": "array", "items": _NEAR, "maxItems": 3, "description": "all of these stand before it"},
        "not": {"type": "array", "items": _NEAR, "maxItems": 3, "description": "none of these stands before it"},
        "position": {**_RANGE, "description": "only at these places of the text, from 1, whatever else stands there"},
        "repeat": {"type": "boolean", "description": "only where it follows what it followed once before"},
    },
    "required": ["at"],
    "additionalProperties": False,
}
RULE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"clauses": {"type": "array", "items": _CLAUSE, "minItems": 1, "maxItems": MAX_CLAUSES}},
    "required": ["clauses"],
    "additionalProperties": False,
}

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Speller(Protocol):
    """What of a subject the rules need: the strings of its tokens."""

    def pieces(self, ids: Sequence[int]) -> list[str]: ...


def split_words(text: str) -> list[str]:
    """The words of a text, in order, by the definition at the top of this module."""
    return [text[a:b] for a, b in _WORDS.span_tokenize(text)]


@dataclass(frozen=True)
class Tokens:
    """One window, cut into words. `ids[0]` is the sink.

    words: every word in order, an empty one for the sink in front; word[t]: which of them token t belongs to, or
    for a blank token the one before it; first[t], last[t]: whether t is the first and the last token of its word
    (a blank token is both). A mark whose token goes on to another mark, as the point in `."`, is a word without
    a token.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    words: tuple[str, ...]
    word: tuple[int, ...]
    blank: tuple[bool, ...]
    first: tuple[bool, ...]
    last: tuple[bool, ...]

    @classmethod
    def of(cls, subject: Speller, ids: Sequence[int]) -> "Tokens":
        pieces = subject.pieces(ids)
        lengths = np.array([0, *map(len, pieces[1:])])
        ends = np.cumsum(lengths)
        text = "".join(pieces[1:])
        spans = [(0, 0), *_WORDS.span_tokenize(text)]
        # The last word to begin before the token ends is the token's own, unless it ended before the token began.
        word = np.searchsorted([a for a, _ in spans[1:]], ends, side="left")
        blank = np.array([b for _, b in spans])[word] <= ends - lengths
        blank[0] = False
        full = np.flatnonzero(~blank)
        first, last = blank.copy(), blank.copy()
        first[full[np.unique(word[full], return_index=True)[1]]] = True
        last[full[::-1][np.unique(word[full[::-1]], return_index=True)[1]]] = True
        words = (text[a:b] for a, b in spans)
        flags = (tuple(map(bool, mask)) for mask in (blank, first, last))
        return cls(tuple(map(int, ids)), tuple(pieces), tuple(words), tuple(map(int, word)), *flags)


@dataclass(frozen=True)
class Matcher:
    """What a token is: one of `ids`, or in a word that `word` (RE2) matches whole, or in one of class `cls`."""

    ids: tuple[int, ...] = ()
    word: str | None = None
    cls: str | None = None

    def __post_init__(self) -> None:
        if bool(self.ids) + (self.word is not None) + (self.cls is not None) != 1:
            raise Refused('a matcher has exactly one of "ids" (not empty), "word" and "class".')
        if any(type(i) is not int or not 0 <= i < 2**31 for i in self.ids) or len(self.ids) > MAX_IDS:
            raise Refused(f'"ids" of a matcher must be 1 to {MAX_IDS} token numbers of at least 0.')
        object.__setattr__(self, "ids", tuple(sorted(set(self.ids))))
        if self.cls is not None and self.cls not in CLASSES:
            raise Refused(f"the class {str(self.cls)[:40]!r} is unknown; choose one of {', '.join(CLASSES)}.")
        if self.word is not None:
            _compile(self.word)

    @property
    def pattern(self) -> str | None:
        return CLASSES[self.cls] if self.cls is not None else self.word

    @classmethod
    def from_json(cls, value: Any) -> "Matcher":
        values = _object(value, ("ids", "word", "class"), "a matcher")
        ids = values.get("ids", [])
        if not isinstance(ids, list):
            raise Refused('"ids" of a matcher must be a list of token numbers.')
        for key in ("word", "class"):
            if key in values and not isinstance(values[key], str):
                raise Refused(f'"{key}" of a matcher must be a string, and not {str(values[key])[:40]!r}.')
        return cls(tuple(ids), values.get("word"), values.get("class"))

    def to_json(self) -> dict[str, Any]:
        if self.ids:
            return {"ids": list(self.ids)}
        return {"word": self.word} if self.word is not None else {"class": self.cls}

    def text(self, piece: Callable[[int], str] | None = None) -> str:
        if self.ids:
            shown = [f"“{piece(i)}”" if piece else str(i) for i in self.ids]
            return f"token {' or '.join(shown)}"
        return f"word /{self.word}/" if self.word is not None else f"word of class {self.cls}"


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> Any:
    if len(pattern) > MAX_PATTERN:
        raise Refused(f"a pattern of {len(pattern)} characters is too long; use at most {MAX_PATTERN}.")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = 1 << 21
    try:
        return re2.compile(pattern.encode(), options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise Refused(f"the pattern {pattern[:60]!r} is no RE2 pattern: {reason[:120]}.") from error


@dataclass(frozen=True)
class Near:
    """Something that stands before the token: `match` at a distance from `low` to `high`, 1 being just before.

    Counted in words, the distance is from the token's own word; a word matches `ids` when one of its tokens does.
    """

    match: Matcher
    low: int = 1
    high: int = 1
    unit: str = "tokens"

    def __post_init__(self) -> None:
        _range("within", self.low, self.high)
        if self.unit not in UNITS:
            raise Refused(f'"unit" must be tokens or words, and not {str(self.unit)[:40]!r}.')

    @classmethod
    def from_json(cls, value: Any) -> "Near":
        values = _object(value, ("match", "within", "unit"), "a context")
        if "match" not in values:
            raise Refused('a context lacks "match"; give the matcher of what stands before the token.')
        low, high = _pair("within", values.get("within", [1, 1]))
        return cls(Matcher.from_json(values["match"]), low, high, values.get("unit", "tokens"))

    def to_json(self) -> dict[str, Any]:
        return {"match": self.match.to_json(), "within": [self.low, self.high], "unit": self.unit}

    def text(self, piece: Callable[[int], str] | None = None) -> str:
        span = str(self.low) if self.low == self.high else f"{self.low} to {self.high}"
        return f"{self.match.text(piece)} {span} {self.unit if self.high > 1 else self.unit[:-1]} before"


@dataclass(frozen=True)
class Clause:
    """One way to fire: the token is `at`, on this `piece` of its word, after every `need` and none of `avoid`.

    position: window positions allowed (1 = just after the sink); repeat: only where an earlier token equal to the
    previous one was followed by a token equal to this one. piece defaults to "last", and for ids to "any".
    value: the mean y/P where the clause matches on the explain side (1 where nobody has measured it).
    """

    at: Matcher
    piece: str = ""
    need: tuple[Near, ...] = ()
    avoid: tuple[Near, ...] = ()
    position: tuple[int, int] | None = None
    repeat: bool = False
    value: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "piece", self.piece or self._usual)
        if self.piece not in PIECES:
            raise Refused(f'"piece" must be one of {", ".join(PIECES)}, and not {str(self.piece)[:40]!r}.')
        if self.position is not None:
            _range("position", *self.position)
        if type(self.repeat) is not bool:
            raise Refused(f'"repeat" must be true or false, and not {str(self.repeat)[:40]!r}.')
        if type(self.value) not in (int, float) or not 0 < self.value <= MAX_VALUE:
            raise Refused(f'"value" must be a number above 0, at most {MAX_VALUE}, and not {str(self.value)[:40]!r}.')
        object.__setattr__(self, "value", float(self.value))

    @property
    def _usual(self) -> str:
        return "any" if self.at.ids else "last"

    @property
    def atoms(self) -> int:
        """Parts of the clause: its matcher, each context, and what of piece, position and repeat is not the default."""
        extra = (self.piece != self._usual) + (self.position is not None) + self.repeat
        return 1 + len(self.need) + len(self.avoid) + extra

    @classmethod
    def from_json(cls, value: Any) -> "Clause":
        keys = ("at", "piece", "need", "not", "position", "repeat", "value")
        values = _object(value, keys, "a clause")
        if "at" not in values:
            raise Refused('a clause lacks "at"; give the matcher of the token itself.')
        piece = values.get("piece", "")
        if not isinstance(piece, str) or ("piece" in values and piece not in PIECES):
            raise Refused(f'"piece" must be one of {", ".join(PIECES)}, and not {str(piece)[:40]!r}.')
        lists = [values.get(key, []) for key in ("need", "not")]
        if not all(isinstance(items, list) and len(items) <= MAX_ATOMS for items in lists):
            raise Refused(f'"need" and "not" of a clause must be lists of at most {MAX_ATOMS} contexts.')
        need, avoid = (tuple(map(Near.from_json, items)) for items in lists)
        position = values.get("position")
        pair = None if position is None else _pair("position", position)
        at = Matcher.from_json(values["at"])
        return cls(at, piece, need, avoid, pair, values.get("repeat", False), values.get("value", 1.0))

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at.to_json(), "piece": self.piece, "need": [n.to_json() for n in self.need],
            "not": [n.to_json() for n in self.avoid], "position": self.position and list(self.position),
            "repeat": self.repeat, "value": self.value,
        }  # fmt: skip

    def mask(self, text: "Text") -> Flags:
        """Where the clause matches [N], over the tokens of a prepared text."""
        found = text.tokens(self.at) & text.piece(self.piece)
        for near in self.need:
            found &= text.near(near)
        for near in self.avoid:
            found &= ~text.near(near)
        if self.position is not None:
            found &= (text.position >= self.position[0]) & (text.position <= self.position[1])
        return found & text.repeats if self.repeat else found

    def text(self, piece: Callable[[int], str] | None = None) -> str:
        parts = [self.at.text(piece)]
        if self.piece != "any":
            parts = [f"{self.piece} piece of a {parts[0]}"]
        parts += [f"after a {near.text(piece)}" for near in self.need]
        parts += [f"not after a {near.text(piece)}" for near in self.avoid]
        if self.position is not None:
            parts.append(f"at positions {self.position[0]} to {self.position[1]}")
        return ", ".join(parts + ["repeating an earlier pair of tokens"] * self.repeat)


@dataclass(frozen=True)
class Rule:
    """An OR of one to four clauses."""

    clauses: tuple[Clause, ...]

    def __post_init__(self) -> None:
        if not self.clauses:
            raise Refused("a rule has no clause; give one at least.")

    @property
    def atoms(self) -> int:
        """The rule's complexity: the atoms of its clauses together."""
        return sum(clause.atoms for clause in self.clauses)

    @classmethod
    def from_json(cls, value: Any) -> "Rule":
        """Reads a rule that anybody may have written.

        Raises Refused where it is malformed, a pattern is not RE2, or it exceeds MAX_CLAUSES or MAX_ATOMS.
        """
        clauses = _object(value, ("clauses",), "a rule").get("clauses")
        if not isinstance(clauses, list) or not 1 <= len(clauses) <= MAX_CLAUSES:
            raise Refused(f'"clauses" of a rule must be a list of 1 to {MAX_CLAUSES} clauses.')
        rule = cls(tuple(map(Clause.from_json, clauses)))
        if rule.atoms > MAX_ATOMS:
            raise Refused(f"the rule has {rule.atoms} atoms and {MAX_ATOMS} are allowed; leave conditions out.")
        return rule

    def to_json(self) -> dict[str, Any]:
        return {"clauses": [clause.to_json() for clause in self.clauses]}

    def predict(self, tokens: Tokens) -> Floats:
        """The prediction ŷ/P at each token of one window [T]; 0 at the sink."""
        return self.predict_flat(Text([tokens]))

    def predict_flat(self, text: "Text") -> Floats:
        """The prediction at every token of a prepared text [N], window after window."""
        result = np.zeros(len(text.ids))
        for clause in self.clauses:
            np.maximum(result, clause.value, out=result, where=clause.mask(text))
        return result

    def predict_all(self, text: "Text") -> list[Floats]:
        """The predictions of each window of a prepared text."""
        flat = self.predict_flat(text)
        return [flat[a:b] for a, b in pairwise(text.starts)]

    def text(self, piece: Callable[[int], str] | None = None) -> str:
        """The rule in words; `piece` turns a token number into its string."""
        return " OR ".join(clause.text(piece) for clause in self.clauses)

    __str__ = text


class Text:
    """Many windows prepared once, so that many rules run over them fast.

    Flat over all tokens [N]: ids, position (in the window), word (index of the token's word), blank, first, last.
    Flat over all words [M]: kind (index into vocabulary), place (its number in the window, the sink's being 0).
    starts [windows + 1]: where each window begins.
    """

    def __init__(self, windows: Sequence[Tokens]) -> None:
        self.starts: Ints = np.cumsum([0, *(len(w.ids) for w in windows)], dtype=np.int64)
        self.ids: Ints = _flat((w.ids for w in windows), np.int64)
        self.position: Ints = _flat((np.arange(len(w.ids)) for w in windows), np.int64)
        self.blank: Flags = _flat((w.blank for w in windows), np.bool_)
        self.first: Flags = _flat((w.first for w in windows), np.bool_)
        self.last: Flags = _flat((w.last for w in windows), np.bool_)
        base = np.cumsum([0, *(len(w.words) for w in windows)])
        self.word: Ints = _flat((np.add(w.word, b) for w, b in zip(windows, base, strict=False)), np.int64)
        self.place: Ints = _flat((np.arange(len(w.words)) for w in windows), np.int64)
        known: dict[str, int] = {}
        kinds = (known.setdefault(word, len(known)) for w in windows for word in w.words)
        self.kind: Ints = np.fromiter(kinds, np.int64)
        self.vocabulary = list(known)
        self._encoded = [s.encode("utf-8", "replace") for s in known]
        self._masks: OrderedDict[Any, Flags] = OrderedDict()
        self._held = 0

    @classmethod
    def of(cls, subject: Speller, windows: Sequence[Sequence[int]]) -> "Text":
        """Prepares windows of ids, each with the sink first."""
        return cls([Tokens.of(subject, ids) for ids in windows])

    def tokens(self, matcher: Matcher) -> Flags:
        """Tokens that the matcher matches [N]."""
        if matcher.ids:
            return self._cached(matcher, lambda: np.isin(self.ids, matcher.ids) & (self.position > 0))
        return self._cached(matcher, lambda: self._in_words(matcher))

    def _in_words(self, matcher: Matcher) -> Flags:
        inside = self.words(matcher)[self.word] & ~self.blank
        return inside | self.blank if matcher.cls in ("blank", "any") else inside

    def words(self, matcher: Matcher) -> Flags:
        """Words that the matcher matches [M]."""
        return self._cached((matcher, "words"), lambda: self._words(matcher))

    def _words(self, matcher: Matcher) -> Flags:
        if matcher.ids:
            found = np.zeros(len(self.kind), dtype=np.bool_)
            found[self.word[self.tokens(matcher) & ~self.blank]] = True
            return found
        return self._cached((matcher, "kinds"), lambda: self._kinds(matcher))[self.kind] & (self.place > 0)

    def _kinds(self, matcher: Matcher) -> Flags:
        test = _compile(str(matcher.pattern)).fullmatch
        return np.fromiter((test(word) is not None for word in self._encoded), np.bool_, len(self._encoded))

    def piece(self, piece: str) -> Flags:
        """Tokens that are this piece of their word [N]."""
        if piece == "inner":
            return ~self.first & ~self.last
        return {"first": self.first, "last": self.last}.get(piece, np.ones_like(self.last))

    def near(self, near: Near) -> Flags:
        """Tokens with the context before them [N]."""
        return self._cached(near, lambda: self._near(near))

    def _near(self, near: Near) -> Flags:
        words = near.unit == "words"
        found = self.words(near.match) if words else self.tokens(near.match)
        place = self.place if words else self.position
        before = _look_back(found, place, near.low, near.high)
        if not words:
            return before
        # Between a blank token and the word before it lies no other word, so that word is one away, not none.
        beside = _look_back(found, place, near.low - 1, near.high - 1)
        return np.where(self.blank, beside[self.word], before[self.word])

    @cached_property
    def repeats(self) -> Flags:
        """Tokens whose pair with the token before them has stood earlier in the window [N]."""
        pairs = np.flatnonzero(self.position >= 2)
        row = np.searchsorted(self.starts, pairs, side="right")
        keys = np.stack([row, self.ids[pairs - 1], self.ids[pairs]], axis=1)
        _, earliest = np.unique(keys, axis=0, return_index=True)
        result = np.zeros(len(self.ids), dtype=np.bool_)
        result[pairs] = True
        result[pairs[earliest]] = False
        return result

    def _cached(self, key: Any, make: Callable[[], Flags]) -> Flags:
        if key not in self._masks:
            self._masks[key] = make()
            self._masks[key].flags.writeable = False
            self._held += self._masks[key].nbytes
            while self._held > CACHED and len(self._masks) > 1:
                self._held -= self._masks.popitem(last=False)[1].nbytes
        self._masks.move_to_end(key)
        return self._masks[key]


class Windows(Protocol):
    """What of a sweep is needed to prepare one side of its corpus."""

    def windows(self, side: str) -> Iterable[tuple[int, int, Sequence[int]]]: ...


@dataclass(frozen=True, eq=False)
class SideText:
    """One side of a corpus prepared for rules, with each token's place: document[N] and offset[N] (−1 at sinks)."""

    text: Text
    document: Ints
    offset: Ints

    @cached_property
    def _begins(self) -> dict[tuple[int, int], int]:
        """Flat index of the token of each window whose offset is a multiple of WINDOW − 1."""
        begins = self.text.starts[:-1] + 1
        return {(int(self.document[i]), int(self.offset[i])): int(i) for i in begins if i < len(self.offset)}

    def index(self, place: tuple[int, int]) -> int:
        """The flat index of a place (document, offset). Raises KeyError if the place is not on this side."""
        document, offset = place
        within = offset % (WINDOW - 1)
        return self._begins[document, offset - within] + within


_prepared: WeakKeyDictionary[Any, dict[str, SideText]] = WeakKeyDictionary()


def side_text(subject: Speller, sweep: Windows, side: str) -> SideText:
    """All windows of one side, prepared once for as long as the sweep object lives."""
    ready = _prepared.setdefault(sweep, {})
    if side not in ready:
        rows = list(sweep.windows(side))
        steps = [np.arange(-1, len(ids) - 1) for _, _, ids in rows]
        document = _flat((np.full(len(ids), d) for d, _, ids in rows), np.int64)
        offset = _flat((np.where(s < 0, -1, s + first) for s, (_, first, _) in zip(steps, rows, strict=True)), np.int64)
        ready[side] = SideText(Text.of(subject, [ids for _, _, ids in rows]), document, offset)
    return ready[side]


def _flat(rows: Iterator[Any], kind: Any) -> Any:
    return np.concatenate([np.asarray(row, dtype=kind) for row in rows] or [np.zeros(0, kind)])


def _look_back(found: Flags, place: Ints, low: int, high: int) -> Flags:
    """Where `found` holds at a distance from low to high before, in the same window."""
    before = found.copy() if low == 0 else np.zeros_like(found)
    for distance in range(max(low, 1), min(high, len(found) - 1) + 1):
        before[distance:] |= found[:-distance] & (place[distance:] > distance)
    return before


def _object(value: Any, keys: Sequence[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refused(f"{what} must be a JSON object with {', '.join(keys)}, and not {str(value)[:40]!r}.")
    unknown = [key for key in value if key not in keys]
    if unknown:
        raise Refused(f"{what} has the unknown key {str(unknown[0])[:40]!r}; use {', '.join(keys)}.")
    return value


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise Refused(f'"{name}" must be a list of two whole numbers, as in [1, 3].')
    return value[0], value[1]


def _range(name: str, low: Any, high: Any) -> None:
    if type(low) is not int or type(high) is not int or not 1 <= low <= high < WINDOW:
        raise Refused(f'"{name}" must be two whole numbers from 1 to {WINDOW - 1}, the smaller first.')


__all__ = ["CLASSES", "Clause", "Matcher", "Near", "Rule", "SideText", "Text", "Tokens", "side_text", "split_words"]
