"""Makes a rule for a unit from the explain side alone, with no LLM.

What is known there without a forward pass: some dozens of firing places (a sample of each stratum of y/P), how often
the unit fires (N), and every token. A clause that covers the share r of the weighted sample and matches M places has
TP = r N true ones among them. Clauses are proposed from what firing places have in common, narrowed by what stands
before them, and joined greedily; then windows in which they predict are read, which gives their precision.

Chosen is the highest F1 = 2 TP / (M + N) less PRICE an atom, ALTERNATIVE for each word of a list beyond the first,
and DOUBT × the share of substitution experiments that the rule gets wrong. A word of a list counts for what firing
places in OTHER documents say of it: with k documents TP shrinks by (k − 1) / k, and a word seen once counts nothing.
Without that, a list of the exemplars' own words would look perfect.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import re2
from nltk.stem import PorterStemmer
from scipy.stats import binom

from ..store.records import Evidence, Refused
from .collect import position_key
from .measures import FIRES, MAX_ATOMS, MAX_CLAUSES, STRATA, WINDOW
from .rules import CLASSES, MAX_IDS, NUMBER_WORDS, Clause, Flags, Floats, Ints, Matcher, Near, Rule, SideText
from .rules import Text, Tokens, side_text
from .subject import Subject
from .units import UnitId

READS = 150            # windows read at most
PRICE, ALTERNATIVE, DOUBT = 0.01, 0.001, 0.1
MIN_DOCUMENTS = 8      # below this a shared pattern may be one author's or chance; the score side asks as many
MIN_F1 = 0.2           # four clauses fitted to chance reach about .1 on the explain side
REACH = 6              # exact distances tried, in tokens and in words
RANGES = (2, 3, 5, 8, 16, 32, 62)
DEPTH = 3              # conditions added to one matcher
SHORTLIST = 16         # clauses that are read
UNLIKELY = 0.01        # chance that firing places avoid a context as they do, from which "not" is considered

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
    "number word": ("number words", ""), "blank": ("blanks", ""), "any": ("any token", ""),
}  # fmt: skip
WORD_CLASSES = tuple(name for name, (_, one) in CALLED.items() if one)  # no word is in two of them
COUNTS = ("", "", "two", "three", "four", "five", "six")

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
    """A rule and its sentence, or neither and the reason. The estimates are of the explain side, hence favourable."""

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
    tokens to read; 0 estimates precision from the exemplars alone, with no forward pass.

    With reads, precision is weighted by 1 / the chance that each window was drawn, TP = precision × M, and
    recall = TP / N. A clause's value is its mean y/P over the places read (without reads: over firing exemplars,
    times precision). Abstains with a reason where the unit fires in fewer than 8 explain documents that are no near
    copies, or the best F1 is below .2. Raises Refused if evidence is of another unit.
    """
    foreign = next((e for e in evidence if (e.unit, e.sign) != (unit.bare, unit.sign)), None)
    if foreign is not None:
        raise Refused(f"the evidence is of {foreign.unit} and the rule is for {unit.bare}; give this unit's own.")
    known = _Known(subject, sweep, unit)
    documents = len(set(known.cluster.tolist()))
    if documents < MIN_DOCUMENTS:
        reason = f"it fires in {documents} explain documents that are no near copies; a pattern needs {MIN_DOCUMENTS}."
        return Induced(None, None, reason, None, None, None, 0)
    search = _Search(subject, known, _Trials(subject, evidence))
    rule, pool = search.cover()
    judge: _Judge = known
    windows = 0
    if reads and pool:
        reader = _Reader(known, [search.exact(c) for c in search.shortlist(rule, pool)], reads)
        reader.read(subject, sweep, unit)
        judge, windows = reader, len(reader.rows)
        rule = search.assemble(reader, reader.candidates)
    return _conclude(search, judge, [search.exact(c) for c in rule], windows)


def _conclude(search: "_Search", judge: "_Judge", rule: "list[_Candidate]", windows: int) -> Induced:
    precision, recall = judge.rates(rule) if rule else (0.0, 0.0)
    f1 = _harmonic(precision, recall)
    how = f"{windows} windows read" if windows else "from exemplars, none read"
    if f1 < MIN_F1:
        reason = f"the best pattern found has F1 {f1:.2f} on the explain side ({how}); below {MIN_F1} it may be chance."
        return Induced(None, None, reason, f1, precision, recall, windows)
    clauses = tuple(replace(c.clause, value=judge.value(c)) for c in rule)
    sentence = "fires on " + "; also on ".join(search.phrase(c) for c in rule)
    reason = f"F1 {f1:.2f} on the explain side, {how}."
    return Induced(Rule(clauses), sentence, reason, f1, precision, recall, windows)


def _harmonic(p: float, r: float) -> float:
    return 2 * p * r / (p + r) if p + r else 0.0


# What is known


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A clause, the places `at` it matches (flat, ascending), and trust[P]: what each firing place counts (0 = missed).

    alternatives: words listed in its patterns; words, before: how to say its matcher and its contexts.
    """

    clause: Clause
    at: Ints
    trust: Floats
    alternatives: int
    words: str
    before: tuple[str, ...] = ()


class _Judge(Protocol):
    def rates(self, rule: Sequence[_Candidate]) -> tuple[float, float]: ...
    def value(self, candidate: _Candidate) -> float: ...


class _Known:
    """The explain side of one unit: its text, firing places [P] with weights (summing to N), y/P and clusters."""

    def __init__(self, subject: Subject, sweep: Explained, unit: UnitId) -> None:
        statistics = sweep.statistics(unit)
        self.side: SideText = side_text(subject, sweep, "explain")
        self.text: Text = self.side.text
        self.peak = float(statistics.peak)
        self.firings = float(max(statistics.firings["explain"], 1))
        exemplars = {e.place: e for e in sweep.exemplars(unit, "explain") if e.band == "top"}
        exemplars |= {e.place: e for e in sweep.exemplars(unit, "explain") if e.band != "top"}
        fires = [e for e in exemplars.values() if e.activation >= FIRES * self.peak and self.peak > 0]
        fires.sort(key=lambda e: e.place)
        self.at: Ints = np.array([self.side.index(e.place) for e in fires], dtype=np.int64)
        self.ratio: Floats = np.array([e.activation / self.peak for e in fires])
        self.cluster: Ints = np.array([sweep.documents[e.document].cluster for e in fires], dtype=np.int64)
        sampled = np.array([e.band != "top" for e in fires], dtype=np.bool_)
        self.weight = self._weigh(sampled, statistics.strata["explain"])

    def _weigh(self, sampled: Flags, strata: Sequence[int]) -> Floats:
        """N_h / n_h in each firing stratum; the best documents count only where the sample leaves them out of nothing."""
        weight = np.zeros(len(self.at))
        edges = (np.inf, *STRATA)
        for h in range(2):
            inside = (self.ratio >= edges[h + 1]) & (self.ratio < edges[h])
            counted = inside if strata[h] <= inside.sum() or not (inside & sampled).any() else inside & sampled
            if counted.any():
                weight[counted] = max(strata[h], counted.sum()) / counted.sum()
        total = weight.sum()
        return weight * self.firings / total if total else weight

    def matched(self, at: Ints) -> Flags:
        """Which firing places are among `at` (ascending)."""
        if not len(at):
            return np.zeros(len(self.at), dtype=np.bool_)
        return at[np.minimum(np.searchsorted(at, self.at), len(at) - 1)] == self.at

    def shrink(self, covered: Flags, size: int) -> float:
        """(k − 1) / k for k clusters covered, and no more true places than the `size` there are."""
        k, total = len(np.unique(self.cluster[covered])), self.weight[covered].sum()
        return float((k - 1) / k * min(1.0, size / total)) if k and total else 0.0

    def rates(self, rule: Sequence[_Candidate]) -> tuple[float, float]:
        """Precision and recall of a rule, from the exemplars."""
        size = len(_union(rule))
        true = min(float((self.weight * np.max([c.trust for c in rule], axis=0)).sum()), size)
        return (true / size if size else 0.0), min(1.0, true / self.firings)

    def value(self, candidate: _Candidate) -> float:
        weight = self.weight * candidate.trust
        mean = float((weight * self.ratio).sum() / weight.sum())
        return round(max(self.rates([candidate])[0] * mean, 0.01), 4)


def _union(rule: Sequence[_Candidate]) -> Ints:
    return rule[0].at if len(rule) == 1 else np.unique(np.concatenate([c.at for c in rule]))


class _Reader:
    """Estimates from windows read: each candidate's windows of smallest key, as many of each as `reads` allow."""

    def __init__(self, known: _Known, candidates: list[_Candidate], reads: int) -> None:
        self.known, self.candidates = known, candidates
        starts = known.text.starts
        keys = position_key(np.arange(len(starts) - 1))
        own = [np.unique(np.searchsorted(starts, c.at, side="right") - 1) for c in candidates]
        own = [rows[np.argsort(keys[rows])] for rows in own]
        low, high = 0, max(map(len, own), default=0)
        while low < high:
            middle = (low + high + 1) // 2
            fits = len(np.unique(np.concatenate([rows[:middle] for rows in own]))) <= reads
            low, high = (middle, high) if fits else (low, middle - 1)
        self.rows: Ints = np.unique(np.concatenate([rows[:low] for rows in own]))
        self.chance = np.zeros(len(starts) - 1)
        for rows in own:
            edge = float(keys[rows[low]]) if low < len(rows) else 1.0
            self.chance[rows[:low]] = np.maximum(self.chance[rows[:low]], edge)
        self.ratio: Floats = np.full(len(known.text.ids), np.nan)

    def read(self, subject: Subject, sweep: Explained, unit: UnitId) -> None:
        starts, side = self.known.text.starts, self.known.side
        flat = np.concatenate([np.arange(starts[row] + 1, starts[row + 1]) for row in self.rows])
        places = [(int(side.document[i]), int(side.offset[i])) for i in flat]
        self.ratio[flat] = np.asarray(sweep.read(subject, unit, places), dtype=np.float64) / self.known.peak

    def _seen(self, at: Ints) -> tuple[Floats, Floats]:
        at = at[~np.isnan(self.ratio[at])]
        rows = np.searchsorted(self.known.text.starts, at, side="right") - 1
        return self.ratio[at], 1 / self.chance[rows]

    def rates(self, rule: Sequence[_Candidate]) -> tuple[float, float]:
        """Precision of the places read, and the recall that it implies."""
        at = _union(rule)
        ratio, weight = self._seen(at)
        if not len(ratio):
            return 0.0, 0.0
        trust = np.max([c.trust for c in rule], axis=0)
        covered = self.known.weight * (np.max([self.known.matched(c.at) for c in rule], axis=0))
        honest = float((self.known.weight * trust).sum() / covered.sum()) if covered.sum() else 0.0
        precision = float((weight * (ratio >= FIRES)).sum() / weight.sum()) * honest
        return precision, min(1.0, precision * len(at) / self.known.firings)

    def value(self, candidate: _Candidate) -> float:
        ratio, weight = self._seen(candidate.at)
        return round(max(float((weight * ratio).sum() / weight.sum()), 0.01), 4)


# Ways to group words


@dataclass(frozen=True, eq=False)
class _Family:
    """One way to group words: codes[kind of word] (−1: says nothing), names[code], and how a list of names is written."""

    codes: Ints
    names: list[str]
    write: Callable[[list[str]], str]
    call: Callable[[list[str]], str]
    most: int


class _Lexicon:
    """The families over the vocabulary of one text."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        folded = [word.lower() for word in vocabulary]
        plain = [word if word.replace("'", "").replace("’", "").isalpha() else None for word in folded]
        stemmer = PorterStemmer()
        stems = [stemmer.stem(word) if word else None for word in plain]
        members: dict[str, dict[str, None]] = {}
        for word, stem in zip(folded, stems, strict=True):
            members.setdefault(stem or "", {})[word] = None
        self.exact = _family([w or None for w in vocabulary], lambda n: "|".join(map(_escape, n)), _called, 24)
        self.folded = _family([w or None for w in folded], lambda n: "(?i)" + "|".join(map(_escape, n)), _called, 24)
        self.kinds = _family([_class(word) for word in vocabulary], lambda n: n[0], lambda n: CALLED[n[0]][1], 1)
        self.all = [
            self.exact, self.folded,
            _family(stems, lambda n: "(?i)" + "|".join(_escape(w) for s in n for w in members[s]),
                    lambda n: f"forms of {_quoted(n[:6], 'and')}", 8),
            _family([_digits(word) for word in vocabulary], _digit_pattern, _digit_call, 6),
            _family([_shape(word) for word in vocabulary], "|".join, lambda n: _shape_call(n), 4),
        ]  # fmt: skip
        for size in range(1, 6):
            ends = [word[-size:] if word and len(word) > size + 1 else None for word in plain]
            heads = [word[:size] if word and len(word) > size + 1 else None for word in plain]
            self.all.append(_family(ends, lambda n: rf"(?i)[\pL'’]{{2,}}({'|'.join(map(_escape, n))})", _ending, 4))
            if size > 1:
                self.all.append(
                    _family(heads, lambda n: rf"(?i)({'|'.join(map(_escape, n))})[\pL'’]{{2,}}", _beginning, 4)
                )


def _family(
    values: Sequence[str | None], write: Callable[[list[str]], str], call: Callable[[list[str]], str], most: int
) -> _Family:
    known: dict[str, int] = {}
    codes = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
    return _Family(np.array(codes, dtype=np.int64), list(known), write, call, most)


_lexicons: WeakKeyDictionary[Text, _Lexicon] = WeakKeyDictionary()


def _lexicon(text: Text) -> _Lexicon:
    if text not in _lexicons:
        _lexicons[text] = _Lexicon(text.vocabulary)
    return _lexicons[text]


def _escape(word: str) -> str:
    return word if word.isalnum() else str(re2.escape(word))


def _digits(word: str) -> str | None:
    """Numbers with something to them: 19th → \\d+th."""
    if word.isdigit() or not any(c.isdigit() for c in word):
        return None
    return "".join(r"\d+" if digit else _escape("".join(run)) for digit, run in groupby(word, str.isdigit))


def _digit_pattern(names: list[str]) -> str:
    tails = [name.removeprefix(r"\d+") for name in names]
    if len(names) > 1 and all(name.startswith(r"\d+") and tail.isalpha() for name, tail in zip(names, tails, strict=True)):
        return rf"\d+({'|'.join(tails)})"
    return "|".join(names)


def _digit_call(names: list[str]) -> str:
    tails = [name.removeprefix(r"\d+") for name in names]
    if all(tail.isalpha() for tail in tails):
        return f"numbers ending in {_quoted(tails, 'or')}"
    return "numbers with marks or letters inside"


def _shape(word: str) -> str | None:
    """Runs of capitals, small letters and digits: 1976 → \\d{4}, NASA → \\p{Lu}+."""
    if not word or not any(c.isalnum() for c in word):
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
        return f"numbers of {_listed(sorted(counts, key=int), 'or')} digit{'s' * (counts != ['1'])}"
    shown = [n.replace(r"\p{Lu}+", "AA").replace(r"\p{Lu}", "A").replace(r"\p{Ll}+", "aa").replace(r"\d+", "9") for n in names]
    return f"words written like {_quoted([s.replace(chr(92), '') for s in shown], 'or')}"


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
    return _listed([f"“{name}”" for name in names], last)


def _listed(items: Sequence[str], last: str) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


# What experiments say


class _Trials:
    """Substitution experiments as labelled texts, and the words that minimal examples kept before the tracked token."""

    def __init__(self, subject: Subject, evidence: Sequence[Evidence]) -> None:
        rows = [r for e in evidence if e.tool == "substitute" for r in e.rows if r["effect"] in ("kills", "keeps", "raises")]
        self.fires: Flags = np.array([r["effect"] != "kills" for r in rows], dtype=np.bool_)
        windows = [Tokens.of(subject, r["ids"]) for r in rows]
        self.text = Text(windows)
        self.last: Ints = self.text.starts[1:] - 1
        self.tracked: Counter[str] = Counter()
        self.kept: dict[int, Counter[str]] = {}
        self.killing: dict[int, Counter[str]] = {}
        for e in evidence:
            if e.tool == "minimal_example" and e.rows:
                tokens = Tokens.of(subject, e.rows[0]["ids"])
                self._note(tokens, e.rows[0]["kept"], True)
        for row, tokens in zip(rows, windows, strict=True):
            self._note(tokens, [row["position"]], row["effect"] != "kills")

    def _note(self, tokens: Tokens, kept: Sequence[int], keeps: bool) -> None:
        """Files the words at these tokens under their distance in words from the tracked token, the last."""
        for index in kept:
            back, word = tokens.word[-1] - tokens.word[index], tokens.words[tokens.word[index]].lower()
            if not word or not back >= 0:
                continue
            if back == 0 and keeps:
                self.tracked[word] += 1
            elif back:
                (self.kept if keeps else self.killing).setdefault(back, Counter())[word] += 1

    def contexts(self) -> Iterator[tuple[Near, str, int, bool]]:
        """Contexts worth a try: the context, how to say it, the words in it, and whether it is needed or forbidden."""
        where: dict[str, list[int]] = {}
        for back, words in sorted(self.kept.items()):
            for word in words:
                where.setdefault(word, []).append(back)
            common = [word for word, _ in words.most_common(12)]
            for names in [common] if len(common) < 2 else [common, common[:1]]:
                yield Near(Matcher(word=_listing(names)), back, back, "words"), _after(_called(names), back), len(names), True
        for word, backs in where.items():
            if len(backs) > 1:
                near = Near(Matcher(word=_listing([word])), min(backs), max(backs), "words")
                yield near, _within(_called([word]), max(backs)), 1, True
        for back, words in sorted(self.killing.items()):
            names = [word for word, count in words.most_common(12) if count > 1]
            if names:
                yield Near(Matcher(word=_listing(names)), back, back, "words"), _after(_called(names), back), len(names), False

    def wrong(self, rule: "Sequence[_Candidate]") -> float:
        """The share of the experiments that a rule gets wrong."""
        if not len(self.fires):
            return 0.0
        said = np.any([c.clause.mask(self.text)[self.last] for c in rule], axis=0)
        return float((said != self.fires).mean())


def _listing(names: Sequence[str]) -> str:
    return "(?i)" + "|".join(map(_escape, names))


def _after(what: str, distance: int) -> str:
    return f"after {what}" if distance == 1 else f"with {what} {COUNTS[distance] if distance < 7 else distance} words before"


def _within(what: str, distance: int) -> str:
    return f"with {what} among the {distance} words before"


# Search


@dataclass(frozen=True)
class _Pick:
    """A set of values, and what each firing place counts under it."""

    values: Ints
    trust: Floats


@dataclass(frozen=True)
class _Rest:
    """What a rule so far leaves: places [N] it does not match, firing places [P] it misses, its TP and its size."""

    free: Flags
    fresh: Flags
    true: float
    size: int


class _Search:
    """Proposes clauses and joins them. A state is a rule so far; its firing places are not looked at again."""

    def __init__(self, subject: Subject, known: _Known, trials: _Trials) -> None:
        self.spell = subject.piece
        self.known, self.text, self.trials = known, known.text, trials
        self.lexicon = _lexicon(known.text)
        self.contexts = list(trials.contexts())

    def worth(self, judge: _Judge, rule: Sequence[_Candidate]) -> float:
        """F1 less the price of size and of experiments that contradict the rule; −1 if the rule is too large."""
        atoms = sum(c.clause.atoms for c in rule)
        if not rule:
            return 0.0
        if atoms > MAX_ATOMS or len(rule) > MAX_CLAUSES:
            return -1.0
        listed = sum(c.alternatives for c in rule)
        price = PRICE * atoms + ALTERNATIVE * listed + DOUBT * self.trials.wrong(rule)
        return _harmonic(*judge.rates(rule)) - price

    def cover(self) -> tuple[list[_Candidate], list[_Candidate]]:
        """The rule that exemplars alone would choose, and the better clauses seen on the way, best first."""
        rule: list[_Candidate] = []
        pool: list[tuple[float, _Candidate]] = []
        while len(rule) < MAX_CLAUSES:
            options = self._clauses(rule)
            pool += options[:SHORTLIST]
            if not options or options[0][0] <= self.worth(self.known, rule):
                break
            rule.append(options[0][1])
        rule = self.assemble(self.known, [c for _, c in sorted(pool, key=lambda item: -item[0])[: 2 * SHORTLIST]])
        return rule, [c for _, c in pool]

    def assemble(self, judge: _Judge, pool: Sequence[_Candidate]) -> list[_Candidate]:
        """The best rule from these clauses: from each of the four best begun, the best added while it helps."""
        begun = sorted(([c] for c in pool), key=lambda rule: -self.worth(judge, rule))[:4]
        best: list[_Candidate] = []
        for rule in begun:
            while True:
                longer = max(([*rule, c] for c in pool), key=lambda r: self.worth(judge, r))
                if self.worth(judge, longer) <= self.worth(judge, rule):
                    break
                rule = longer
            best = max(best, rule, key=lambda r: self.worth(judge, r))
        return best

    def shortlist(self, rule: Sequence[_Candidate], pool: Sequence[_Candidate]) -> list[_Candidate]:
        """The chosen clauses and the best others that match other places."""
        distinct: dict[bytes, _Candidate] = {}
        for c in (*rule, *sorted(pool, key=lambda c: -self.worth(self.known, [c]))):
            distinct.setdefault(c.at.tobytes(), c)
        return list(distinct.values())[:SHORTLIST]

    def exact(self, c: _Candidate) -> _Candidate:
        """The candidate with the places that its patterns match when they are really run."""
        at = np.flatnonzero(c.clause.mask(self.text))
        return replace(c, at=at, trust=np.where(self.known.matched(at), c.trust, 0.0))

    def _clauses(self, rule: list[_Candidate]) -> list[tuple[float, _Candidate]]:
        """Clauses that could be added to a rule, with what the rule would then be worth, best first."""
        rest = self._rest(rule)
        found: dict[bytes, tuple[float, _Candidate]] = {}

        def rate(candidates: Iterable[_Candidate]) -> list[tuple[float, _Candidate]]:
            new = []
            for c in candidates:
                item = (self.worth(self.known, [*rule, c]), c)
                key = c.at.tobytes()
                if c.trust.any() and (key not in found or found[key][0] < item[0]):
                    found[key] = item
                    new.append(item)
            return sorted(new, key=lambda item: -item[0])

        first = rate(self._matchers(rest))
        wide = sorted(first, key=lambda item: -float((self.known.weight * item[1].trust).sum()))
        frontier = list({id(c): c for _, c in (*first[:6], *wide[:2], *_spread(wide))}.values())
        for _ in range(DEPTH):
            frontier = [c for _, c in rate(n for c in frontier for n in self._narrower(c, rest))[:4]]
        return sorted(found.values(), key=lambda item: -item[0])

    def _rest(self, rule: Sequence[_Candidate]) -> _Rest:
        free = self.text.position > 0
        if not rule:
            return _Rest(free, np.ones(len(self.known.at), dtype=np.bool_), 0.0, 0)
        at = _union(rule)
        free[at] = False
        true = float((self.known.weight * np.max([c.trust for c in rule], axis=0)).sum())
        return _Rest(free, free[self.known.at], true, len(at))

    # Matchers of the token itself

    def _matchers(self, rest: _Rest) -> Iterator[_Candidate]:
        text = self.text
        yield from self._valued(text.ids, rest, MAX_IDS, lambda v: (Clause(Matcher(tuple(v.tolist()))), ""))
        for piece in self._pieces(rest.fresh):
            allowed = text.piece(piece) & ~text.blank & (text.position > 0)
            for family in self.lexicon.all:
                codes = np.where(allowed, family.codes[text.kind][text.word], -1)
                yield from self._valued(codes, rest, family.most, partial(_of_words, family, piece))
            for matcher, words in _named():
                clause = Clause(matcher, piece)
                yield self._plain(clause, words, rest)
        if self.trials.tracked:
            names = [word for word, _ in self.trials.tracked.most_common(24)]
            clause = Clause(Matcher(word=_listing(names)))
            yield replace(self._plain(clause, _called(names), rest), alternatives=len(names) - 1)

    def _pieces(self, fresh: Flags) -> list[str]:
        """The pieces of a word that firing places are, most of them; "any" where they are no one piece."""
        at, weight = self.known.at[fresh], self.known.weight[fresh]
        total = max(float(weight.sum()), 1e-9)
        last, first = (float(weight[flags[at]].sum()) / total for flags in (self.text.last, self.text.first))
        inner = float(weight[~self.text.last[at] & ~self.text.first[at]].sum()) / total
        chosen = [p for p, share in (("last", last), ("first", first), ("inner", inner)) if share >= 0.5]
        if "first" in chosen and (self.text.last[at] & self.text.first[at]).mean() >= 0.9 and len(chosen) > 1:
            chosen.remove("first")
        return chosen if max(last, first, inner) >= 0.9 else [*chosen, "any"]

    def _plain(self, clause: Clause, words: str, rest: _Rest) -> _Candidate:
        at = np.flatnonzero(clause.mask(self.text))
        covered = self.known.matched(at)
        return _Candidate(clause, at, covered * self.known.shrink(covered & rest.fresh, len(at)), 0, words)

    def _valued(
        self, codes: Ints, rest: _Rest, most: int, make: Callable[[Ints], tuple[Clause, str]]
    ) -> Iterator[_Candidate]:
        """Clauses on the values that firing places share: the best single one and the best list."""
        mine = np.where(rest.fresh, codes[self.known.at], -1)
        for pick in self._choose(codes[rest.free], mine, self.known.weight, most, rest):
            clause, words = make(pick.values)
            at = np.flatnonzero(_among(codes, pick.values) & (self.text.position > 0))
            yield _Candidate(clause, at, pick.trust, len(pick.values) - 1, words)

    def _choose(self, everywhere: Ints, mine: Ints, weight: Floats, most: int, rest: _Rest) -> list[_Pick]:
        """Values of firing places (`mine`, −1 = none) that raise F1 among the values of all places matched so far.

        Adding a value raises F1 as long as its own precision exceeds F1 / 2, so the best list is a prefix by precision.
        """
        has = mine >= 0
        if not has.any():
            return []
        values, inverse = np.unique(mine[has], return_inverse=True)
        pairs = np.unique(np.stack([inverse, self.known.cluster[has]]), axis=1)[0]
        clusters = np.bincount(pairs, minlength=len(values))
        true = np.bincount(inverse, weights=weight[has], minlength=len(values))
        size = np.bincount(everywhere[everywhere >= 0], minlength=int(values.max()) + 1)[values]
        trust = (clusters - 1) / clusters * np.minimum(1.0, size / np.maximum(true, 1e-9))
        order = np.argsort(-trust * true / np.maximum(size, 1), kind="stable")
        order = order[trust[order] > 0][:most]
        if not len(order):
            return []
        gain, fixed = (trust * true)[order], rest.size + self.known.firings
        prefix = int(np.argmax((rest.true + np.cumsum(gain)) / (fixed + np.cumsum(size[order])))) + 1
        single = order[[int(np.argmax((rest.true + gain) / (fixed + size[order])))]]
        picks = []
        for chosen in [order[:prefix]] + [single] * (prefix > 1):
            worth = np.zeros(len(values))
            worth[chosen] = trust[chosen]
            whole = np.zeros(len(mine))
            whole[has] = worth[inverse]
            picks.append(_Pick(values[chosen], whole))
        return picks

    # What stands before it

    def _narrower(self, c: _Candidate, rest: _Rest) -> Iterator[_Candidate]:
        """The candidate with one condition more."""
        inside = rest.free[c.at]
        rows = np.searchsorted(c.at, self.known.at).clip(0, max(len(c.at) - 1, 0))
        mine = rest.fresh & self.known.matched(c.at) & (c.trust > 0)
        if not mine.any():
            return
        for distance in range(1, REACH + 1):
            for codes, most, write in self._behind(c.at, distance):
                at_firing = np.where(mine, codes[rows], -1)
                for pick in self._choose(codes[inside], at_firing, self.known.weight * c.trust, most, rest):
                    near, said = write(pick.values)
                    clause = replace(c.clause, need=(*c.clause.need, near))
                    yield self._keep(c, _among(codes, pick.values), clause, said, len(pick.values) - 1, pick.trust)
                avoided = self._avoided(codes[inside], at_firing[mine], most)
                if len(avoided):
                    near, said = write(avoided)
                    clause = replace(c.clause, avoid=(*c.clause.avoid, near))
                    yield self._keep(c, ~_among(codes, avoided), clause, f"not {said}", len(avoided) - 1)
        yield from self._ranged(c, mine, rows)
        yield from self._placed(c, mine, rows)
        for near, said, size, needed in self.contexts:
            name, stands = "need" if needed else "avoid", self.text.near(near)[c.at]
            clause = replace(c.clause, **{name: (*getattr(c.clause, name), near)})
            yield self._keep(c, stands == needed, clause, said if needed else f"not {said}", size - 1)

    def _keep(
        self, c: _Candidate, keep: Flags, clause: Clause, said: str, more: int, trust: Floats | None = None
    ) -> _Candidate:
        at = c.at[keep]
        covered = self.known.matched(at)
        own = self.known.shrink(covered & (c.trust > 0), len(at))
        each = np.minimum(c.trust, own) if trust is None else np.minimum(c.trust, trust)
        said_now = (*c.before, said) if said else c.before
        return _Candidate(clause, at, covered * each, c.alternatives + max(more, 0), c.words, said_now)

    def _behind(
        self, at: Ints, distance: int
    ) -> Iterator[tuple[Ints, int, Callable[[Ints], tuple[Near, str]]]]:
        """What stands at this distance before the places, grouped in each way: codes [len(at)] and how to write them."""
        text = self.text
        ids = np.where(text.position[at] > distance, text.ids[at - distance], -1)
        yield ids, MAX_IDS, partial(self._near_ids, distance)
        back = distance - text.blank[at]
        inside = text.place[text.word[at]] > back
        kind = text.kind[np.where(inside, text.word[at] - back, 0)]
        for family in (self.lexicon.folded, self.lexicon.kinds):
            yield np.where(inside, family.codes[kind], -1), family.most, partial(_near_words, family, distance)

    def _near_ids(self, distance: int, values: Ints) -> tuple[Near, str]:
        ids = tuple(values.tolist())
        names = list(dict.fromkeys(self.spell(i).strip() or "a blank" for i in ids))
        return Near(Matcher(ids), distance, distance), _after(_called(names), distance)

    def _avoided(self, everywhere: Ints, at_firing: Ints, most: int) -> Ints:
        """Values that firing places avoid: common before the matched places, and too rare before firing ones by chance."""
        here = everywhere[everywhere >= 0]
        if not len(at_firing) or not len(here):
            return np.zeros(0, dtype=np.int64)
        size = np.bincount(here)
        values = np.flatnonzero(size >= max(10, 0.05 * len(everywhere)))
        seen = np.array([(at_firing == v).sum() for v in values])
        chance = binom.cdf(seen, len(at_firing), size[values] / len(everywhere)) if len(values) else seen
        chosen = values[chance < UNLIKELY]
        return chosen[np.argsort(-size[chosen])][:most]

    def _ranged(self, c: _Candidate, mine: Flags, rows: Ints) -> Iterator[_Candidate]:
        """Words that stand somewhere before firing places more often than before the other matched ones, or less."""
        weight = (self.known.weight * c.trust)[mine]
        sample = c.at[np.argsort(position_key(c.at))[:150]]
        firing = self._share([self._words_before(i) for i in c.at[rows[mine]]], weight)
        others = self._share([self._words_before(i) for i in sample], np.ones(len(sample)))
        lift = {v: firing.get(v, 0.0) - others.get(v, 0.0) for v in firing | others}
        ranked = sorted(lift, key=lambda v: (-lift[v], v))
        for needed, values in ((True, [v for v in ranked[:8] if lift[v] >= 0.15]), (False, [v for v in ranked[-6:] if lift[v] <= -0.1])):
            near = [(v, self._since(c.at, v)) for v in values]
            scored = [(self._gain(c, (since <= h) == needed, mine, rows), h, v, since) for v, since in near for h in RANGES]
            best = max(scored, key=lambda item: item[0], default=None)
            for v, _ in near:
                _, h, _, since = max((item for item in scored if item[2] == v), key=lambda item: item[0])
                yield self._keep_near(c, [v], h, since, needed)
            if best and len(near) > 1:
                yield self._keep_near(c, *self._joined(c, best, near, needed, mine, rows), needed)

    def _joined(
        self, c: _Candidate, best: Any, near: list[tuple[int, Ints]], needed: bool, mine: Flags, rows: Ints
    ) -> tuple[list[int], int, Ints]:
        """Further words beside the best one, at the same reach, as long as each of them helps."""
        gain, reach, first, since = best
        chosen = [first]
        for v, other in near:
            both = np.minimum(since, other)
            now = self._gain(c, (both <= reach) == needed, mine, rows)
            if v != first and now > gain + ALTERNATIVE:
                gain, since = now, both
                chosen.append(v)
        return chosen, reach, since

    def _keep_near(self, c: _Candidate, values: list[int], reach: int, since: Ints, needed: bool) -> _Candidate:
        names = [self.lexicon.folded.names[v] for v in values]
        near = Near(Matcher(word=_listing(names)), 1, reach, "words")
        said = ("" if needed else "not ") + _within(_called(names), reach)
        name = "need" if needed else "avoid"
        clause = replace(c.clause, **{name: (*getattr(c.clause, name), near)})
        return self._keep(c, (since <= reach) == needed, clause, said, len(names) - 1)

    def _gain(self, c: _Candidate, keep: Flags, mine: Flags, rows: Ints) -> float:
        """F1 of the candidate by itself if it kept these of its places."""
        true = float((self.known.weight * c.trust)[mine & keep[rows]].sum())
        return 2 * true / (float(keep.sum()) + self.known.firings)

    def _words_before(self, i: int) -> Ints:
        word = self.text.word[i]
        span = slice(word - self.text.place[word] + 1, word + int(self.text.blank[i]))
        return np.unique(self.lexicon.folded.codes[self.text.kind[span]])

    def _share(self, groups: list[Ints], weight: Floats) -> dict[int, float]:
        flat = np.concatenate(groups) if groups else np.zeros(0, dtype=np.int64)
        if not len(flat):
            return {}
        each = np.repeat(weight, [len(group) for group in groups])
        sums = np.bincount(flat, weights=each) / weight.sum()
        return {int(v): float(sums[v]) for v in np.flatnonzero(sums)}

    def _since(self, at: Ints, value: int) -> Ints:
        """How many words before each place the value last stood; WINDOW if it did not, in the same window."""
        text = self.text
        index = np.arange(len(text.kind))
        latest = np.maximum.accumulate(np.where(self.lexicon.folded.codes[text.kind] == value, index, -1))
        word, blank = text.word[at], text.blank[at].astype(np.int64)
        found = np.where(blank == 1, latest[word], latest[word - 1])
        back = word - found
        return np.where((found >= 0) & (text.place[word] > back), back + blank, WINDOW)

    def _placed(self, c: _Candidate, mine: Flags, rows: Ints) -> Iterator[_Candidate]:
        """The candidate only at early or late positions, or only where a pair of tokens repeats."""
        position = self.text.position[c.at]
        spans = [(1, h) for h in (1, 2, 3, 5, 8, 16)] + [(low, WINDOW - 1) for low in (4, 8, 16, 32)]
        if c.clause.position is None:
            keeps = [((position >= low) & (position <= high), (low, high)) for low, high in spans]
            keep, span = max(keeps, key=lambda item: self._gain(c, item[0], mine, rows))
            said = f"at the first {span[1]} tokens" if span[0] == 1 else f"from token {span[0]} on"
            yield self._keep(c, keep, replace(c.clause, position=span), said, 0)
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
        split = float((~(text.first[at] & text.last[at])).mean()) if len(at) else 0.0
        said = self._ids_phrase(c.clause.at.ids, at, examples) if c.clause.at.ids else c.words
        if c.clause.piece in ("first", "inner", "last") and not c.clause.at.ids and split >= 0.5:
            said = f"the {c.clause.piece} piece of {said}"
        if examples and not c.clause.at.ids and "“" not in c.words.replace("“-", "").replace("-”", "") and c.words != "any token":
            said += f", such as {', '.join(examples)}"
        for k, context in enumerate(c.before):
            said += (", " if k or ", such as" in said or context.startswith("not") else " ") + context
        return said

    def _ids_phrase(self, ids: Sequence[int], at: Ints, examples: list[str]) -> str:
        counts = Counter(int(i) for i in self.text.ids[at])
        ranked = sorted(ids, key=lambda i: -counts[i])
        names = list(dict.fromkeys(self.spell(i).strip() or "a blank" for i in ranked))
        whole = bool(len(at)) and bool((self.text.first[at] & self.text.last[at]).mean() >= 0.5)
        if whole:
            return _called(names)
        said = f"the token{'s' * (len(names) > 1)} {_quoted(names[:6], 'and')}"
        inside = [word for word in examples if word not in names][:3]
        return said + (f", as in {_listed(inside, 'and')}" if inside else "")


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
    yield Matcher(word=f"(?i){NUMBER_WORDS.replace(' ', '|')}"), "numbers written as words"
    for name in CLASSES:
        yield Matcher(cls=name), CALLED[name][0]


def _among(codes: Ints, values: Ints) -> Flags:
    lookup = np.zeros(int(max(codes.max(initial=0), values.max(initial=0))) + 2, dtype=np.bool_)
    lookup[values] = True
    return lookup[codes]  # −1 reads the last entry, which no value holds


def _spread(items: list[tuple[float, _Candidate]]) -> list[tuple[float, _Candidate]]:
    """Of candidates sorted by what they cover, the smallest that cover at least nine, seven and five tenths as much."""
    if not items:
        return []
    most = float(items[0][1].trust.sum())
    groups = ([item for item in items if item[1].trust.sum() >= share * most] for share in (0.9, 0.7, 0.5))
    return [min(group, key=lambda item: len(item[1].at)) for group in groups if group]
