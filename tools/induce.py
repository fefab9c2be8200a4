"""Makes a rule for a unit from the explain side alone, with no LLM.

What is known there without a forward pass: some dozens of firing places (a sample of each stratum of y/P), how often
the unit fires (N), and every token. A clause that covers the share r of the weighted sample and matches M places has
TP = r N true ones among them. Clauses are proposed from what firing places share, narrowed by what stands before
them, and joined greedily. Then windows that hold the proposals are read: their labels correct the precision of every
word and clause, and the search is made again.

Chosen is the highest F1 = 2 TP / (M + N) less PRICE an atom, ALTERNATIVE for each word of a list beyond the first,
and DOUBT × the share of substitution experiments that the rule gets wrong. A word of a list counts for what firing
places in OTHER documents say of it: with k documents TP shrinks by (k − 1) / k, and a word seen once counts nothing.
Without that, a list of the exemplars' own words would look perfect.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, groupby
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import re2
from nltk.stem import PorterStemmer
from scipy.special import bdtrc

from ..store.records import Evidence, Refused
from .collect import position_key
from .measures import FIRES, MAX_ATOMS, MAX_CLAUSES, STRATA, WINDOW
from .rules import (
    CLASSES,
    MAX_IDS,
    MAX_PATTERN,
    Clause,
    Flags,
    Floats,
    Ints,
    Matcher,
    Near,
    Rule,
    Text,
    Tokens,
    side_text,
)
from .subject import Subject
from .units import UnitId

READS = 150            # windows read at most
PRICE, ALTERNATIVE, DOUBT = 0.02, 0.001, 0.1
MIN_DOCUMENTS = 8      # below this a shared pattern may be one author's or chance; the score side asks as many
MIN_F1 = 0.2           # rules fitted to random activations reach .07 once they are read
BY_LUCK = 1e-10       # unread they reach .36, and their luck in meeting the firing places one in 10^8
LONGEST = 40           # characters of a word that a list may hold
PRIOR = 4.0            # places' worth of belief in the exemplars' precision once places are read
REACH = 6              # exact distances tried, in tokens and in words
RANGES = (2, 3, 5, 8, 16, 32, 62)
SPANS = ((1, 1), (1, 2), (1, 3), (1, 5), (1, 8), (1, 16), (4, WINDOW - 1), (8, WINDOW - 1), (32, WINDOW - 1))
DEPTH = 3              # conditions added to one matcher
FRONTIER = 4           # clauses that get a further condition
SHORTLIST = 16         # clauses that a rule is put together from
READ = 8               # of these, the clauses that are read
UNLIKELY = 1e-3        # a condition counts if firing places meet it this improbably well for their matched neighbours

# Shapes and closed classes that people have a name for.
KNOWN: tuple[tuple[str, str], ...] = (
    ("numbers with an ordinal ending", r"\d+(st|nd|rd|th)"),
    ("years", r"1\d{3}|20\d\d"),
    ("decades", r"(1\d|20)?\d0['’]?s"),
    ("decimal numbers", r"\d+\.\d+"),
    ("numbers with thousands separators", r"\d{1,3}(,\d{3})+"),
    ("Roman numerals", r"[IVXLCDM]+"),
    ("single capital letters", r"\p{Lu}"),
    ("names of months", "January|February|March|April|May|June|July|August|September|October|November|December"),
    ("names of weekdays", "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"),
    ("articles", "(?i)a|an|the"),
    ("personal pronouns", "(?i)i|you|he|she|it|we|they|me|him|her|us|them"),
    ("possessive pronouns", "(?i)my|your|his|her|its|our|their"),
    ("forms of “be”", "(?i)be|am|is|are|was|were|been|being"),
    ("forms of “have”", "(?i)have|has|had|having"),
    ("modal verbs", "(?i)can|could|may|might|must|shall|should|will|would"),
    ("question words", "(?i)who|whom|whose|which|what|when|where|why|how"),
    ("prepositions", "(?i)of|in|to|for|with|on|at|from|by|about|into|over|after|under|between|through|during|before"),
    ("opening brackets", r"[(\[{]"),
    ("closing brackets", r"[)\]}]"),
    ("quotation marks", "[\"'“”‘’«»]"),
    ("marks that end a sentence", "[.!?]"),
)
CALLED = {
    "number": ("numbers", "a number"), "uppercase": ("words in capitals", "a word in capitals"),
    "capitalised": ("capitalised words", "a capitalised word"), "lowercase": ("lower-case words", "a lower-case word"),
    "punctuation": ("punctuation marks", "a punctuation mark"), "newline": ("line breaks", "a line break"),
    "number word": ("numbers written as words", ""), "blank": ("blanks", ""), "any": ("any token", ""),
}  # fmt: skip
WORD_CLASSES = tuple(name for name, (_, one) in CALLED.items() if one)  # no word is in two of them
COUNTS = ("no", "one", "two", "three", "four", "five", "six")

Place = tuple[int, int]


class Explained(Protocol):
    """What of a sweep an induction asks for; it is only ever asked about the explain side."""

    @property
    def documents(self) -> Sequence[Any]: ...
    def statistics(self, unit: UnitId) -> Any: ...
    def exemplars(self, unit: UnitId, side: str) -> Sequence[Any]: ...
    def windows(self, side: str) -> Iterable[tuple[int, int, Sequence[int]]]: ...
    def read(self, subject: Any, unit: UnitId, places: Sequence[Place]) -> Any: ...


@dataclass(frozen=True)
class Induced:
    """A rule and its sentence, or neither and the reason. The estimates are of the explain side, hence favourable.

    reads: windows read. The estimates are None where nothing was fitted.
    """

    rule: Rule | None
    sentence: str | None
    reason: str
    explain_f1: float | None
    explain_precision: float | None
    explain_recall: float | None
    reads: int


def induce(
    subject: Subject, sweep: Explained, unit: UnitId, evidence: Sequence[Evidence] = (), reads: int = READS
) -> Induced:
    """Makes the rule of at most 4 clauses and 8 atoms that best predicts where `unit` fires on the explain side.

    evidence: results of `minimal_example` and `substitute` on this unit; what was kept proposes contexts, substitutes
    that keep or raise widen the lists, and each experiment that a rule gets wrong costs it. reads: windows of 64
    tokens read at most; 0 estimates precision from the exemplars alone, with no forward pass.

    Precision: of the places read, each weighted by 1 / the chance that its window was drawn, with PRIOR places' worth
    of the exemplars' estimate TP / M; recall = precision × M / N. A clause's value is its mean y/P over the places
    read (without reads: precision × the mean over firing exemplars). Abstains, with a reason, where the unit fires in
    fewer than 8 explain documents that are no near copies, where the best F1 is below .2, and, without reads, where
    the rule meets the firing exemplars no better than chance could (BY_LUCK). Raises Refused if evidence is of
    another unit.
    """
    used = [e for e in evidence if e.tool in ("minimal_example", "substitute")]
    foreign = next((e for e in used if (e.unit, e.sign) != (unit.bare, unit.sign)), None)
    if foreign is not None:
        raise Refused(f"the evidence is of {foreign.unit} and the rule is for {unit}; give this unit's own.")
    known = _Known(subject, sweep, unit)
    documents = len(set(known.cluster.tolist()))
    if documents < MIN_DOCUMENTS:
        reason = f"it fires in {documents} explain documents that are no near copies; a pattern needs {MIN_DOCUMENTS}."
        return Induced(None, None, reason, None, None, None, 0)
    trials = _Trials(subject, used)
    search = _Search(subject, known, trials)
    rule, pool = search.cover()
    if reads:
        chosen = search.shortlist(pool)[:READ]
        known.read(subject, sweep, unit, [*search.shared_words(), *(c.at for c in chosen)], reads // 2)
        known.learn()
        search = _Search(subject, known, trials)
        rule, pool = search.cover()
        chosen = search.shortlist([*rule, *pool])[:READ]
        known.read(subject, sweep, unit, [c.at for c in chosen], reads)
        rule = search.assemble(chosen)
    return _conclude(search, [search.exact(c) for c in rule])


def _conclude(search: "_Search", rule: "list[_Candidate]") -> Induced:
    known = search.known
    windows = len(np.unique(known.window[known.read_at]))
    precision, recall = known.rates(rule) if rule else (0.0, 0.0)
    f1 = _harmonic(precision, recall)
    how = f"{windows} windows read" if windows else "from exemplars, none read"
    if f1 < MIN_F1 or not (windows or known.luck(rule) < BY_LUCK):
        bar = f"below {MIN_F1}" if f1 < MIN_F1 else "with so few exemplars"
        reason = f"the best pattern found has F1 {f1:.2f} on the explain side ({how}); {bar} it may be chance."
        return Induced(None, None, reason, f1, precision, recall, windows)
    clauses = tuple(replace(c.clause, value=known.value(c)) for c in rule)
    sentence = "fires on " + "; also on ".join(search.phrase(c) for c in rule)
    return Induced(Rule(clauses), sentence, f"F1 {f1:.2f} on the explain side, {how}.", f1, precision, recall, windows)


def _harmonic(p: float, r: float) -> float:
    return 2 * p * r / (p + r) if p + r else 0.0


# What is known


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A clause, the places `at` it matches (flat, ascending), and trust[P]: what each firing place counts (0 = missed).

    listed: words in its lists beyond the first; words, before: how to say its matcher and its conditions.
    """

    clause: Clause
    at: Ints
    trust: Floats
    listed: int
    words: str
    before: tuple[str, ...] = ()

    @cached_property
    def key(self) -> bytes:
        return self.at.tobytes()


class _Known:
    """The explain side of one unit: its text, firing places [P] with weights (summing to N), and what was read.

    A firing place found by reading has weight 0: it says that its word fires in one more document, not how often.
    """

    def __init__(self, subject: Subject, sweep: Explained, unit: UnitId) -> None:
        statistics = sweep.statistics(unit)
        self.side = side_text(subject, sweep, "explain")
        self.text: Text = self.side.text
        self.peak = float(statistics.peak)
        self.firings = float(max(statistics.firings["explain"], 1))
        self.clusters = [document.cluster for document in sweep.documents]
        # A place may be both among the best and in the sample; the sample's entry wins.
        found = {e.place: e for e in sorted(sweep.exemplars(unit, "explain"), key=lambda e: e.band != "top")}
        fires = [e for _, e in sorted(found.items()) if e.activation >= FIRES * self.peak > 0]
        self.at: Ints = np.array([self.side.index(e.place) for e in fires], dtype=np.int64)
        self.ratio: Floats = np.array([e.activation / self.peak for e in fires])
        self.cluster: Ints = np.array([self.clusters[e.document] for e in fires], dtype=np.int64)
        sampled = np.array([e.band != "top" for e in fires], dtype=np.bool_)
        self.weight = self._weigh(sampled, statistics.strata["explain"])
        self.window: Ints = np.repeat(np.arange(len(self.text.starts) - 1), np.diff(self.text.starts))
        self.key: Floats = position_key(np.arange(len(self.text.starts) - 1))
        self.chance: Floats = np.zeros(len(self.key))
        self.open: Flags = np.zeros(len(self.window), dtype=np.bool_)
        self.read_at: Ints = np.zeros(0, dtype=np.int64)
        self.read_ratio: Floats = np.zeros(0)

    def _weigh(self, sampled: Flags, strata: Sequence[int]) -> Floats:
        """N_h / n_h in each firing stratum; its best documents' maxima count only if everything there is known."""
        weight = np.zeros(len(self.at))
        for h, (low, high) in enumerate(((STRATA[0], np.inf), (STRATA[1], STRATA[0]))):
            inside = (self.ratio >= low) & (self.ratio < high)
            if strata[h] > inside.sum() and (inside & sampled).any():
                inside &= sampled
            weight[inside] = max(strata[h], inside.sum()) / max(inside.sum(), 1)
        return weight * self.firings / weight.sum() if weight.any() else weight

    def read(
        self, subject: Subject, sweep: Explained, unit: UnitId, groups: Sequence[Ints], reads: int
    ) -> None:
        """Reads whole windows that hold places of the groups: of each group its windows of smallest key.

        chance[window]: the chance that it is read, 0 where no group reaches; open [N]: places where it is above 0.
        """
        own = [np.unique(self.window[at]) for at in groups]
        own = [rows[np.argsort(self.key[rows])] for rows in own]

        def chances(size: int) -> Floats:
            # The key of the first window left out is the chance that any one of the group's windows is read.
            chance = self.chance.copy()
            for rows in own:
                chance[rows] = np.maximum(chance[rows], self.key[rows[size]] if size < len(rows) else 1.0)
            return chance

        done = self.key < self.chance
        low, high = 0, max(map(len, own), default=0)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if (self.key < chances(middle)).sum() <= reads else (low, middle - 1)
        self.chance = chances(low) if low else self.chance
        self.open = (self.chance > 0)[self.window] & (self.text.position > 0)
        flat = np.flatnonzero(self.open & (self.key < self.chance)[self.window] & ~done[self.window])
        if len(flat):
            places = [(int(self.side.document[i]), int(self.side.offset[i])) for i in flat]
            ratio = np.asarray(sweep.read(subject, unit, places), dtype=np.float64) / self.peak
            self.read_at, self.read_ratio = np.append(self.read_at, flat), np.append(self.read_ratio, ratio)

    def learn(self) -> None:
        """Takes the firing places read so far among the known ones."""
        new = (self.read_ratio >= FIRES) & ~np.isin(self.read_at, self.at)
        self.at = np.append(self.at, self.read_at[new])
        self.ratio = np.append(self.ratio, self.read_ratio[new])
        self.weight = np.append(self.weight, np.zeros(int(new.sum())))
        clusters = [self.clusters[d] for d in self.side.document[self.read_at[new]]]
        self.cluster = np.append(self.cluster, np.array(clusters, dtype=np.int64))

    def matched(self, at: Ints) -> Flags:
        """Which firing places are among `at` (ascending)."""
        if not len(at):
            return np.zeros(len(self.at), dtype=np.bool_)
        found: Flags = at[np.minimum(np.searchsorted(at, self.at), len(at) - 1)] == self.at
        return found

    def documents(self, which: Flags) -> int:
        return len(set(self.cluster[which].tolist()))

    def shrink(self, covered: Flags, size: int) -> float:
        """(k − 1) / k for k clusters covered, and no more true places than the `size` there are."""
        k, total = self.documents(covered), float(self.weight[covered].sum())
        return (k - 1) / k * min(1.0, size / max(total, 1e-9)) if k else 0.0

    def rates(self, rule: Sequence[_Candidate]) -> tuple[float, float]:
        """Precision and recall of a rule."""
        mask = _mask(rule, len(self.text.ids))
        size = int(np.count_nonzero(mask))
        if not size:
            return 0.0, 0.0
        weight = self.weight * np.max([c.trust for c in rule], axis=0)
        inside = self.open[self.at]
        opened = int((mask & self.open).sum())
        true = min(float(weight[~inside].sum()), size - opened)
        true += opened * self._precision(mask, opened, float(weight[inside].sum()) / max(opened, 1), rule)
        return true / size, min(1.0, true / self.firings)

    def _precision(self, mask: Flags, opened: int, prior: float, rule: Sequence[_Candidate]) -> float:
        """Precision in the windows that could be read: of the places that were, with some belief in the exemplars."""
        hit = mask[self.read_at]
        if not hit.any():
            return min(prior, 1.0)
        weight = 1 / self.chance[self.window[self.read_at[hit]]]
        covered = mask[self.at]
        trust = np.max([c.trust for c in rule], axis=0)[covered]
        seen = float((weight * (self.read_ratio[hit] >= FIRES)).sum() / weight.sum())
        seen *= float(trust.mean()) if len(trust) else 0.0
        count = float(weight.sum() ** 2 / (weight**2).sum())
        belief = PRIOR * (1 - int(hit.sum()) / opened)
        return (count * seen + belief * min(prior, 1.0)) / (count + belief)

    def luck(self, rule: Sequence[_Candidate]) -> float:
        """The chance that as many firing documents fall on the rule's places if firing has nothing to do with it."""
        mask = _mask(rule, len(self.text.ids))
        k, n = self.documents(mask[self.at]), self.documents(self.weight >= 0)
        return float(bdtrc(k - 1, n, mask.mean())) if k else 1.0

    def value(self, c: _Candidate) -> float:
        """Mean y/P where a clause matches."""
        hit = _mask([c], len(self.text.ids))[self.read_at]
        if hit.any():
            mean = float(np.average(self.read_ratio[hit], weights=1 / self.chance[self.window[self.read_at[hit]]]))
        else:
            weight = self.weight * c.trust
            mean = self.rates([c])[0] * float((weight * self.ratio).sum() / max(weight.sum(), 1e-9))
        return round(max(mean, 0.01), 4)


def _mask(rule: Sequence[_Candidate], size: int) -> Flags:
    mask = np.zeros(size, dtype=np.bool_)
    for c in rule:
        mask[c.at] = True
    return mask


# Ways to group words


@dataclass(frozen=True, eq=False)
class _Family:
    """One way to group words: codes[kind of word] (−1: says nothing), names[code], and how names are written.

    loose: the pattern goes beyond the words seen, so it must be shown by different words, not by one word many times.
    """

    codes: Ints
    names: list[str]
    write: Callable[[list[str]], str]
    call: Callable[[list[str]], str]
    most: int
    loose: bool = True


class _Lexicon:
    """The families over the vocabulary of one text, and where each word (folded) stands in it."""

    def __init__(self, text: Text) -> None:
        folded = [word.lower() for word in text.vocabulary]
        plain = [word if word.replace("'", "").replace("’", "").isalpha() else None for word in folded]
        stem = PorterStemmer().stem
        stems = [stem(word) if word else None for word in plain]
        members: dict[str, dict[str, None]] = {}
        for word, root in zip(folded, stems, strict=True):
            members.setdefault(root or "", {})[word] = None
        self.folded = _family(folded, _listing, _called, 24, loose=False)
        self.kinds = _family([_class(w) for w in text.vocabulary], lambda n: n[0], lambda n: CALLED[n[0]][1], 1)
        exact = _family(text.vocabulary, _options, _called, 24, loose=False)
        short = {root: min(words, key=len) for root, words in members.items()}
        forms = _family(stems, lambda n: _listing([w for root in n for w in list(members[root])[:8]]),
                        lambda n: f"forms of {_quoted([short[root] for root in n[:6]], 'and')}", 8)  # fmt: skip
        numbers = _family([_digits(w) for w in text.vocabulary], _digit_pattern, _digit_call, 6)
        shapes = _family([_shape(w) for w in text.vocabulary], "|".join, _shape_call, 4)
        self.all = [exact, self.folded, forms, numbers, shapes]
        for size in range(1, 6):
            ends = [word[-size:] if word and len(word) > size + 1 else None for word in plain]
            heads = [word[:size] if word and len(word) > size + 1 else None for word in plain]
            self.all.append(_family(ends, lambda n: rf"(?i)[\pL'’]{{2,}}({_options(n)})", _ending, 4))
            self.all.append(_family(heads, lambda n: rf"(?i)({_options(n)})[\pL'’]{{2,}}", _beginning, 1))
        codes = self.folded.codes[text.kind]
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(self.folded.names) + 1))
        self.places = [order[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def _family(
    values: Sequence[str | None], write: Callable[[list[str]], str], call: Callable[[list[str]], str], most: int,
    loose: bool = True,
) -> _Family:  # fmt: skip
    known: dict[str, int] = {}
    usable = (value if value and len(value) <= LONGEST else None for value in values)
    codes = [-1 if value is None else known.setdefault(value, len(known)) for value in usable]
    return _Family(np.array(codes, dtype=np.int64), list(known), write, call, most, loose)


_lexicons: WeakKeyDictionary[Text, _Lexicon] = WeakKeyDictionary()


def _lexicon(text: Text) -> _Lexicon:
    if text not in _lexicons:
        _lexicons[text] = _Lexicon(text)
    return _lexicons[text]


def _escape(word: str) -> str:
    return word if word.isalnum() else str(re2.escape(word))


def _options(names: Sequence[str]) -> str:
    """Alternatives of a pattern, as many as fit into one."""
    written = [_escape(name) for name in names]
    lengths = accumulate(len(name) + 1 for name in written)
    return "|".join(name for name, length in zip(written, lengths, strict=True) if length < MAX_PATTERN - LONGEST)


def _listing(names: Sequence[str]) -> str:
    return "(?i)" + _options(names)


def _digits(word: str) -> str | None:
    """Numbers with something to them: 19th → \\d+th."""
    if word.isdigit() or not any(c.isdigit() for c in word):
        return None
    return "".join(r"\d+" if digit else _escape("".join(run)) for digit, run in groupby(word, str.isdigit))


def _digit_pattern(names: list[str]) -> str:
    tails = [name.removeprefix(r"\d+") for name in names]
    if len(names) > 1 and all(t.isalpha() and n == rf"\d+{t}" for n, t in zip(names, tails, strict=True)):
        return rf"\d+({'|'.join(tails)})"
    return "|".join(names)


def _digit_call(names: list[str]) -> str:
    tails = [name.removeprefix(r"\d+") for name in names]
    if all(tail.isalpha() for tail in tails):
        return f"numbers ending in {_quoted(tails, 'or')}"
    return "numbers with marks or letters inside"


def _shape(word: str) -> str | None:
    """Runs of capitals, small letters and digits: 1976 → \\d{4}, NASA → \\p{Lu}+."""
    if not any(c.isalnum() for c in word):
        return None
    if word.isdigit():
        return rf"\d{{{len(word)}}}"
    parts = []
    for kind, run in groupby(word, _letter_kind):
        many = "".join(run)
        parts.append({"A": r"\p{Lu}" + "+" * (len(many) > 1), "a": r"\p{Ll}+", "9": r"\d+"}.get(kind, _escape(many)))
    return "".join(parts)


def _letter_kind(c: str) -> str:
    return "A" if c.isupper() else "a" if c.islower() else "9" if c.isdigit() else c


def _shape_call(names: list[str]) -> str:
    counts = [name[3:-1] for name in names if name.startswith(r"\d{")]
    if len(counts) == len(names):
        return f"numbers of {_joined(sorted(counts, key=int), 'or')} digit{'s' * (counts != ['1'])}"
    signs = ((r"\p{Lu}+", "AA"), (r"\p{Lu}", "A"), (r"\p{Ll}+", "aa"), (r"\d+", "99"), ("\\", ""))
    shown = []
    for name in names:
        for sign, plain in signs:
            name = name.replace(sign, plain)
        shown.append(name)
    return f"words written like {_quoted(shown, 'or')}"


def _class(word: str) -> str | None:
    return next((name for name in WORD_CLASSES if re2.fullmatch(CLASSES[name], word)), None) if word else None


def _ending(names: list[str]) -> str:
    return f"words ending in {_quoted(['-' + name for name in names], 'or')}"


def _beginning(names: list[str]) -> str:
    return f"words beginning with {_quoted([name + '-' for name in names], 'or')}"


def _called(names: Sequence[str]) -> str:
    """The words themselves, quoted; of more than six, the first six."""
    if list(names) == ["\n"]:
        return "a line break"
    what = "word" if any(c.isalnum() for name in names for c in name) else "mark"
    if len(names) > 6:
        return f"{what}s such as {_quoted(names[:6], 'and')}"
    return f"the {what}{'s' * (len(names) > 1)} {_quoted(names, 'and')}"


def _quoted(names: Sequence[str], last: str) -> str:
    return _joined([f"“{name}”".replace("\n", "⏎") for name in names], last)


def _joined(items: Sequence[str], last: str) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def _after(what: str, distance: int) -> str:
    count = COUNTS[distance] if distance < len(COUNTS) else str(distance)
    return f"after {what}" if distance == 1 else f"with {what} {count} words before"


def _within(what: str, distance: int) -> str:
    return f"with {what} among the {distance} words before"


# What experiments say


class _Trials:
    """Substitution experiments as labelled texts, and the words that they and minimal examples found to matter."""

    def __init__(self, subject: Subject, evidence: Sequence[Evidence]) -> None:
        told = ("kills", "keeps", "raises")
        rows = [r for e in evidence if e.tool == "substitute" for r in e.rows if r["effect"] in told]
        self.fires: Flags = np.array([r["effect"] != "kills" for r in rows], dtype=np.bool_)
        windows = [Tokens.of(subject, r["ids"]) for r in rows]
        self.text = Text(windows)
        self.last: Ints = self.text.starts[1:] - 1
        self.tracked: Counter[str] = Counter()
        self.kept: dict[int, Counter[str]] = {}
        self.killing: dict[int, Counter[str]] = {}
        for e in evidence:
            if e.tool == "minimal_example" and e.rows:
                self._note(Tokens.of(subject, e.rows[0]["ids"]), e.rows[0]["kept"], True)
        for row, tokens in zip(rows, windows, strict=True):
            self._note(tokens, [row["position"]], row["effect"] != "kills")

    def _note(self, tokens: Tokens, indices: Sequence[int], keeps: bool) -> None:
        """Files the words at these tokens under their distance in words from the tracked token, the last."""
        for index in indices:
            back, word = tokens.word[-1] - tokens.word[index], tokens.words[tokens.word[index]].lower()
            if not word or len(word) > LONGEST:
                continue
            if back == 0 and keeps:
                self.tracked[word] += 1
            elif back > 0:
                (self.kept if keeps else self.killing).setdefault(back, Counter())[word] += 1

    def conditions(self) -> Iterator[tuple[Near, str, int, bool]]:
        """Contexts worth a try: the context, how to say it, how many words it lists, and whether it is needed."""
        where: dict[str, list[int]] = {}
        for back, words in sorted(self.kept.items()):
            for word in words:
                where.setdefault(word, []).append(back)
            common = [word for word, _ in words.most_common(12)]
            often = [word for word in common if words[word] > 1]
            for names in {len(n): n for n in (common, often, common[:1]) if n}.values():
                near = Near(Matcher(word=_listing(names)), back, back, "words")
                yield near, _after(_called(names), back), len(names), True
        for word, backs in where.items():
            if len(backs) > 1:
                near = Near(Matcher(word=_listing([word])), min(backs), max(backs), "words")
                yield near, _within(_called([word]), max(backs)), 1, True
        for back, words in sorted(self.killing.items()):
            names = [word for word, count in words.most_common(12) if count > 1]
            if names:
                near = Near(Matcher(word=_listing(names)), back, back, "words")
                yield near, _after(_called(names), back), len(names), False

    def wrong(self, rule: Sequence[_Candidate]) -> float:
        """The share of the experiments that a rule gets wrong."""
        if not len(self.fires):
            return 0.0
        said = np.any([c.clause.mask(self.text)[self.last] for c in rule], axis=0)
        return float((said != self.fires).mean())


# Search


@dataclass(frozen=True)
class _Rest:
    """What a rule so far leaves: places [N] it does not match, firing places [P] it misses, its TP and its size."""

    free: Flags
    fresh: Flags
    true: float
    size: int


@dataclass(frozen=True)
class _Pick:
    """A list of values, and what each firing place counts under it."""

    values: Ints
    trust: Floats


@dataclass(frozen=True)
class _Values:
    """Places seen by a value: the matched ones (flat) with their values, and the firing ones [P] (−1 = none)."""

    at: Ints
    codes: Ints
    firing: Ints


class _Search:
    """Proposes clauses and joins them."""

    def __init__(self, subject: Subject, known: _Known, trials: _Trials) -> None:
        self.spell = subject.piece
        self.known, self.text, self.trials = known, known.text, trials
        self.lexicon = _lexicon(known.text)
        self.conditions = list(trials.conditions())
        self.drawn: Floats = np.zeros(len(self.text.ids))
        self.drawn[known.read_at] = 1 / known.chance[known.window[known.read_at]]
        self.fires = np.zeros(len(self.text.ids), dtype=np.bool_)
        self.fires[known.read_at[known.read_ratio >= FIRES]] = True

    def worth(self, rule: Sequence[_Candidate]) -> float:
        """F1 less the price of size and of experiments that contradict the rule; −1 if the rule is too large."""
        atoms = sum(c.clause.atoms for c in rule)
        if atoms > MAX_ATOMS or len(rule) > MAX_CLAUSES:
            return -1.0
        price = PRICE * atoms + ALTERNATIVE * sum(c.listed for c in rule)
        return _harmonic(*self.known.rates(rule)) - price - DOUBT * self.trials.wrong(rule) if rule else 0.0

    def cover(self) -> tuple[list[_Candidate], list[_Candidate]]:
        """The best rule found clause by clause, and the better clauses seen on the way."""
        rule: list[_Candidate] = []
        pool: list[_Candidate] = []
        while len(rule) < MAX_CLAUSES:
            options = self._clauses(rule)
            pool += [c for _, c in options[:SHORTLIST]]
            if not options or options[0][0] <= self.worth(rule):
                break
            rule.append(options[0][1])
        return self.assemble(self.shortlist([*rule, *pool])), [*rule, *pool]

    def assemble(self, pool: Sequence[_Candidate]) -> list[_Candidate]:
        """The best rule from these clauses: from each of the three best begun, the best added while it helps."""
        best: tuple[float, list[_Candidate]] = (0.0, [])
        for first in sorted(pool, key=lambda c: -self.worth([c]))[:3]:
            now, rule = self.worth([first]), [first]
            while True:
                worth, longer = max(((self.worth([*rule, c]), [*rule, c]) for c in pool), key=lambda item: item[0])
                if worth <= now:
                    break
                now, rule = worth, longer
            best = max(best, (now, rule), key=lambda item: item[0])
        return best[1]

    def shortlist(self, pool: Sequence[_Candidate]) -> list[_Candidate]:
        """The clauses of most worth by themselves, each set of places once, and the rule found clause by clause."""
        ranked = sorted(pool, key=lambda c: -self.worth([c]))
        distinct = {c.key: c for c in reversed([*pool[:MAX_CLAUSES], *ranked])}
        return list(reversed(distinct.values()))[:SHORTLIST]

    def shared_words(self) -> list[Ints]:
        """The places of each token seen firing, where one that always fires would not be drowned in others."""
        groups = (np.flatnonzero(self.text.ids == token) for token in np.unique(self.text.ids[self.known.at]))
        return [at for at in groups if len(at) <= 5 * self.known.firings]

    def exact(self, c: _Candidate) -> _Candidate:
        """The candidate with the places that its patterns match when they are really run."""
        at = np.flatnonzero(c.clause.mask(self.text))
        return replace(c, at=at, trust=np.where(self.known.matched(at), c.trust, 0.0))

    def _clauses(self, rule: list[_Candidate]) -> list[tuple[float, _Candidate]]:
        """Clauses that could be added to a rule, with what the rule would then be worth, best first."""
        rest = self._rest(rule)
        found: dict[bytes, tuple[float, _Candidate]] = {}

        def rate(candidates: Iterable[_Candidate | None]) -> list[tuple[float, _Candidate]]:
            new = []
            for c in candidates:
                if c is not None and c.trust.any():
                    item = (self.worth([*rule, c]), c)
                    if found.get(c.key, (-1.0,))[0] < item[0]:
                        found[c.key] = item
                        new.append(item)
            return sorted(new, key=lambda item: -item[0])

        first = rate(self._matchers(rest))
        wide = sorted(first, key=lambda item: -float((self.known.weight * item[1].trust).sum()))
        frontier = list({id(c): c for _, c in (*first[:FRONTIER], *wide[:2], *_spread(wide))}.values())
        for _ in range(DEPTH):
            frontier = [c for _, c in rate(n for c in frontier for n in self._narrower(c, rest))[:FRONTIER]]
        return sorted(found.values(), key=lambda item: -item[0])

    def _rest(self, rule: Sequence[_Candidate]) -> _Rest:
        free = self.text.position > 0
        if not rule:
            return _Rest(free, np.ones(len(self.known.at), dtype=np.bool_), 0.0, 0)
        mask = _mask(rule, len(free))
        size = int(mask.sum())
        return _Rest(free & ~mask, ~mask[self.known.at], self.known.rates(rule)[0] * size, size)

    # Matchers of the token itself

    def _matchers(self, rest: _Rest) -> Iterator[_Candidate]:
        text = self.text
        yield from self._valued(text.ids, rest, None, lambda v: (Clause(Matcher(tuple(v.tolist()))), ""))
        for piece in self._pieces(rest.fresh):
            allowed = text.piece(piece) & ~text.blank & (text.position > 0)
            for family in self.lexicon.all:
                codes = np.where(allowed, family.codes[text.kind][text.word], -1)
                yield from self._valued(codes, rest, family, partial(_of_words, family, piece))
            for matcher, words in _named():
                yield self._plain(Clause(matcher, piece), words, rest)
        if self.trials.tracked:
            names = [word for word, _ in self.trials.tracked.most_common(24)]
            told = self._plain(Clause(Matcher(word=_listing(names))), _called(names), rest)
            yield replace(told, listed=len(names) - 1)

    def _pieces(self, fresh: Flags) -> list[str]:
        """The pieces of a word that most firing places are, and "any" where they are no one piece."""
        at, text = self.known.at[fresh], self.text
        if not len(at):
            return ["last"]
        whole = float((text.last[at] & text.first[at]).mean())
        shares = {p: float(text.piece(p)[at].mean()) for p in ("last", "first", "inner")}
        chosen = [p for p in shares if shares[p] >= 0.5 and not (p == "first" and whole >= 0.9)]
        return chosen if max(shares.values()) >= 0.9 else [*chosen, "any"]

    def _plain(self, clause: Clause, words: str, rest: _Rest) -> _Candidate:
        at = np.flatnonzero(clause.mask(self.text))
        covered = self.known.matched(at)
        trust = np.where(covered, self.known.shrink(covered & rest.fresh, len(at)), 0.0)
        return _Candidate(clause, at, trust, 0, words)

    def _valued(
        self, codes: Ints, rest: _Rest, family: _Family | None, make: Callable[[Ints], tuple[Clause, str]]
    ) -> Iterator[_Candidate]:
        """Clauses on the values that firing places share: the best list, and the best value alone."""
        at = np.flatnonzero(rest.free & (codes >= 0))
        values = _Values(at, codes[at], np.where(rest.fresh, codes[self.known.at], -1))
        for pick in self._choose(values, self.known.weight, family, rest):
            clause, words = make(pick.values)
            at = np.flatnonzero(_among(codes, pick.values) & (self.text.position > 0))
            yield _Candidate(clause, at, pick.trust, len(pick.values) - 1, words)

    def _choose(self, seen: _Values, weight: Floats, family: _Family | None, rest: _Rest) -> list[_Pick]:
        """Values of firing places that raise F1: the best list of them, and the best one alone.

        Adding a value raises F1 as long as its own precision exceeds F1 / 2, so the best list is a prefix by precision.
        """
        has = seen.firing >= 0
        if not has.any():
            return []
        values, inverse = np.unique(seen.firing[has], return_inverse=True)
        support = np.zeros(len(values))
        loose = family is not None and family.loose
        shown = (self.text.kind[self.text.word[self.known.at]] if loose else self.known.cluster)[has]
        for v, _ in set(zip(inverse.tolist(), shown.tolist(), strict=True)):
            support[v] += 1
        size, true = self._true(seen, values, inverse, weight[has], self.known.open[self.known.at[has]])
        trust = (support - 1) / support
        order = np.argsort(-trust * true / np.maximum(size, 1), kind="stable")
        order = order[(trust * true)[order] > 0][: family.most if family else MAX_IDS]
        if not len(order):
            return []
        gain, fixed = (trust * true)[order], rest.size + self.known.firings
        prefix = int(np.argmax((rest.true + np.cumsum(gain)) / (fixed + np.cumsum(size[order])))) + 1
        single = order[[int(np.argmax((rest.true + gain) / (fixed + size[order])))]]
        picks = []
        for chosen in [order[:prefix]] + [single] * (prefix > 1):
            worth = np.zeros(len(values))
            worth[chosen] = trust[chosen]
            whole = np.zeros(len(has))
            whole[has] = worth[inverse]
            picks.append(_Pick(values[chosen], whole))
        return picks

    def _true(self, seen: _Values, values: Ints, inverse: Ints, weight: Floats, inside: Flags) -> tuple[Ints, Floats]:
        """How many places each value has, and how many of them fire, estimated as in `_Known.rates`."""
        if not self.known.open.any():
            found = np.bincount(seen.codes, minlength=int(values.max()) + 1)[values]
            return found, np.minimum(np.bincount(inverse, weights=weight, minlength=len(values)), found)
        slot = np.full(int(max(seen.codes.max(initial=0), values.max())) + 2, -1)
        slot[values] = np.arange(len(values))
        mine = slot[seen.codes]
        at, mine = seen.at[mine >= 0], mine[mine >= 0]

        def count(which: Flags | slice, weights: Floats | None = None) -> Floats:
            return np.bincount(mine[which], weights=weights, minlength=len(values)).astype(np.float64)

        size, opened, drawn = count(slice(None)), count(self.known.open[at]), self.drawn[at]
        prior = np.bincount(inverse[inside], weights=weight[inside], minlength=len(values)) / np.maximum(opened, 1)
        outside = np.bincount(inverse[~inside], weights=weight[~inside], minlength=len(values))
        read = count(drawn > 0)
        fires = count(slice(None), drawn * self.fires[at]) / np.maximum(count(slice(None), drawn), 1e-9)
        belief = PRIOR * (1 - read / np.maximum(opened, 1))
        precision = (read * fires + belief * np.minimum(prior, 1)) / np.maximum(read + belief, 1e-9)
        return size.astype(np.int64), opened * precision + np.minimum(outside, size - opened)

    # What stands before it

    def _narrower(self, c: _Candidate, rest: _Rest) -> Iterator[_Candidate | None]:
        """The candidate with one condition more; None for a condition that may be chance."""
        inside = rest.free[c.at]
        rows = np.searchsorted(c.at, self.known.at).clip(0, len(c.at) - 1)
        mine = rest.fresh & self.known.matched(c.at) & (c.trust > 0)
        if not mine.any():
            return
        for distance in range(1, REACH + 1):
            for codes, family, write in self._behind(c.at, distance):
                stands = inside & (codes >= 0)
                seen = _Values(c.at[stands], codes[stands], np.where(mine, codes[rows], -1))
                for pick in self._choose(seen, self.known.weight * c.trust, family, rest):
                    near, said = write(pick.values)
                    kept = _among(codes, pick.values)
                    yield self._keep(c, kept, _with(c, near, True), said, len(pick.values) - 1, pick.trust)
                avoided = self._rare(seen)
                if len(avoided):
                    near, said = write(avoided)
                    kept, listed = ~_among(codes, avoided), len(avoided) - 1
                    yield self._keep(c, kept, _with(c, near, False), f"not {said}", listed)
        for near, said, needed, kept in self._ranged(c, rows[mine]):
            yield self._keep(c, kept, _with(c, near, needed), said, 0)
        yield from self._placed(c)
        for near, said, size, needed in self.conditions:
            kept, said = self.text.near(near)[c.at] == needed, said if needed else f"not {said}"
            yield self._keep(c, kept, _with(c, near, needed), said, size - 1, tried=True)

    def _keep(
        self, c: _Candidate, keep: Flags, clause: Clause, said: str, listed: int,
        trust: Floats | None = None, tried: bool = False,
    ) -> _Candidate | None:  # fmt: skip
        """The candidate at the places kept; None if as many firing documents would have kept theirs by chance.

        A condition that experiments propose needs no such luck: the corpus may never show the token without it.
        """
        at = c.at[keep]
        covered = self.known.matched(at) & (c.trust > 0)
        n, k = self.known.documents(c.trust > 0), self.known.documents(covered)
        if not k or not (tried or bdtrc(k - 1, n, len(at) / len(c.at)) < UNLIKELY):
            return None
        each = np.minimum(c.trust, self.known.shrink(covered, len(at)) if trust is None else trust)
        return _Candidate(clause, at, np.where(covered, each, 0.0), c.listed + listed, c.words, (*c.before, said))

    def _behind(
        self, at: Ints, distance: int
    ) -> Iterator[tuple[Ints, _Family | None, Callable[[Ints], tuple[Near, str]]]]:
        """What stands at this distance before places, seen in each way: its values, and how to write a list."""
        text = self.text
        ids = np.where(text.position[at] > distance, text.ids[at - distance], -1)
        yield ids, None, partial(self._near_ids, distance)
        back = distance - text.blank[at]
        inside = text.place[text.word[at]] > back
        kind = text.kind[np.where(inside, text.word[at] - back, 0)]
        for family in (self.lexicon.folded, self.lexicon.kinds):
            yield np.where(inside, family.codes[kind], -1), family, partial(_near_words, family, distance)

    def _near_ids(self, distance: int, values: Ints) -> tuple[Near, str]:
        ids = tuple(values.tolist())
        return Near(Matcher(ids), distance, distance), _after(_called(self._names(ids)), distance)

    def _names(self, ids: Sequence[int]) -> list[str]:
        return list(dict.fromkeys(self.spell(i).strip(" ") or "a blank" for i in ids))

    def _rare(self, seen: _Values) -> Ints:
        """Values common before the matched places, and before no firing one."""
        size = np.bincount(seen.codes)
        size[np.unique(seen.firing[seen.firing >= 0])] = 0   # every one of them stands before a matched place too
        values = np.flatnonzero(size >= max(10, 0.05 * len(seen.codes)))
        return values[np.argsort(-size[values])][:8]

    def _ranged(self, c: _Candidate, firing: Ints) -> Iterator[tuple[Near, str, bool, Flags]]:
        """Words that stand somewhere before firing places more often than before the other matched ones, or less."""
        near = [self._words_before(i) for i in c.at[firing]]
        sample = [self._words_before(i) for i in c.at[np.argsort(position_key(c.at))[:100]]]
        often, usual = (Counter(v for group in groups for v in group) for groups in (near, sample))
        lift = {v: often[v] / len(near) - usual[v] / len(sample) for v in (often | usual) if v >= 0}
        ranked = sorted(lift, key=lambda v: (-lift[v], v))
        for needed, values in ((True, ranked[:6]), (False, ranked[:-7:-1])):
            for v in values:
                if (lift[v] > 0.1) == needed and abs(lift[v]) > 0.1:
                    since, names = self._since(c.at, v), [self.lexicon.folded.names[v]]
                    inside = since[firing] < WINDOW
                    reaches = [*RANGES, int(since[firing][inside].max(initial=1))]
                    share = [float((since[firing] <= h).mean() - (since <= h).mean()) for h in reaches]
                    reach = reaches[int(np.argmax(share if needed else np.negative(share)))]
                    said = ("" if needed else "not ") + _within(_called(names), reach)
                    near_v = Near(Matcher(word=_listing(names)), 1, reach, "words")
                    yield near_v, said, needed, (since <= reach) == needed

    def _words_before(self, i: int) -> set[int]:
        word = int(self.text.word[i])
        span = slice(word - int(self.text.place[word]) + 1, word + int(self.text.blank[i]))
        return set(self.lexicon.folded.codes[self.text.kind[span]].tolist())

    def _since(self, at: Ints, value: int) -> Ints:
        """How many words before each place the value last stood; WINDOW if it did not, in the same window."""
        text, places = self.text, self.lexicon.places[value]
        word, blank = text.word[at], text.blank[at].astype(np.int64)
        slot = np.searchsorted(places, word + blank) - 1
        back = word - places[slot.clip(0)]
        return np.where((slot >= 0) & (text.place[word] > back), back + blank, WINDOW)

    def _placed(self, c: _Candidate) -> Iterator[_Candidate | None]:
        """The candidate only at early or late positions, or only where a pair of tokens repeats."""
        position = self.text.position[c.at]
        for low, high in SPANS if c.clause.position is None else ():
            said = f"among the first {high} tokens of a text" if low == 1 else f"from the {low}th token of a text on"
            said = "at the first token of a text" if high == 1 else said
            keep = (position >= low) & (position <= high)
            yield self._keep(c, keep, replace(c.clause, position=(low, high)), said, 0)
        if not c.clause.repeat:
            said = "where the same two tokens have stood together before"
            yield self._keep(c, self.text.repeats[c.at], replace(c.clause, repeat=True), said, 0)

    # Saying it

    def phrase(self, c: _Candidate) -> str:
        """A clause in plain English, with the words that firing places show."""
        text, known = self.text, self.known
        at = known.at[known.matched(c.at)]
        shown = Counter(text.vocabulary[text.kind[text.word[i]]] for i in at if not text.blank[i])
        examples = [word for word, _ in shown.most_common(4) if word.strip()]
        whole = len(at) == 0 or float((text.first[at] & text.last[at]).mean()) > 0.5
        if c.clause.at.ids:
            said = self._ids_phrase(c.clause.at.ids, at, examples, whole)
        else:
            plain = whole or c.clause.piece == "any" or c.words == "any token"
            said = c.words if plain else f"the {c.clause.piece} piece of {c.words}"
            if examples and not any(f"“{word.lower()}”" in said.lower() for word in examples):
                said += f", such as {', '.join(examples)}"
        for k, condition in enumerate(c.before):
            said += (", " if k or ", such as" in said or condition.startswith("not") else " ") + condition
        return said

    def _ids_phrase(self, ids: Sequence[int], at: Ints, examples: list[str], whole: bool) -> str:
        counts = Counter(int(i) for i in self.text.ids[at])
        names = self._names(sorted(ids, key=lambda i: -counts[i]))
        if whole:
            return _called(names)
        inside = [word for word in examples if word not in names][:3]
        said = f"the token{'s' * (len(names) > 1)} {_quoted(names[:6], 'and')}"
        return said + (f", as in {_joined(inside, 'and')}" if inside else "")


def _with(c: _Candidate, near: Near, needed: bool) -> Clause:
    if needed:
        return replace(c.clause, need=(*c.clause.need, near))
    return replace(c.clause, avoid=(*c.clause.avoid, near))


def _of_words(family: _Family, piece: str, values: Ints) -> tuple[Clause, str]:
    names = [family.names[v] for v in values]
    return Clause(Matcher(word=family.write(names)), piece), family.call(names)


def _near_words(family: _Family, distance: int, values: Ints) -> tuple[Near, str]:
    names = [family.names[v] for v in values]
    word = family.write(names)
    matcher = Matcher(cls=word) if word in CLASSES else Matcher(word=word)
    return Near(matcher, distance, distance, "words"), _after(family.call(names), distance)


def _named() -> Iterator[tuple[Matcher, str]]:
    for words, pattern in KNOWN:
        yield Matcher(word=pattern), words
    for name, (words, _) in CALLED.items():
        yield Matcher(cls=name), words


def _among(codes: Ints, values: Ints) -> Flags:
    lookup = np.zeros(int(max(codes.max(initial=0), values.max(initial=0))) + 2, dtype=np.bool_)
    lookup[values] = True
    return lookup[codes]  # −1 reads the last entry, which no value holds


def _spread(wide: list[tuple[float, _Candidate]]) -> list[tuple[float, _Candidate]]:
    """Of candidates sorted by what they cover, the smallest that cover nine and six tenths as much as the first."""
    if not wide:
        return []
    most = float(wide[0][1].trust.sum())
    groups = ([item for item in wide if item[1].trust.sum() >= share * most] for share in (0.9, 0.6))
    return [min(group, key=lambda item: len(item[1].at)) for group in groups]
