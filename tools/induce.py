"""Makes a rule for a unit from the explain side alone, with no LLM.

What is known there without a forward pass: some dozens of firing places (a sample of each stratum of y/P), how often
the unit fires (N), and every token. A clause that covers the share r of the weighted sample and matches M places has
TP = r N true ones among them (`estimate`). Clauses are proposed from what firing places share, narrowed by what stands
before them (`propose`, with the words of `lexicon`), and joined greedily (`search_rules`). Then windows that hold the
proposals are read: their labels correct the precision of every word and clause, and the search is made again.

Chosen is the highest F1 = 2 TP / (M + N), of which DOUBT × the share of experiments that the rule gets wrong is lost
(`trials`), less PRICE an atom, ALTERNATIVE for each word of a list beyond the first that no experiment showed to fire,
and GUESS for each distance that none found. A word of a list counts for what firing places in OTHER documents say of
it: with k documents TP shrinks by (k − 1) / k, and a word seen once counts nothing. Without that, a list of the
exemplars' own words would look perfect.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from ..store.records import Evidence, Refused
from . import stats
from .conditions import positions
from .estimate import Candidate, Explained, Known
from .lexicon import called, joined, quoted, spelled
from .rules import Clause, Rule, Text
from .search_rules import Search
from .subject import Subject
from .trials import TOOLS, Trials
from .units import UnitId

READS = 150            # windows read at most
MIN_DOCUMENTS = 8      # below this a shared pattern may be one author's or chance; the score side asks as many
FEW_WORDS = 12         # words of one part of a rule that are named
COMMON = 24            # commonest words: where a pair must repeat, those that make pairs by chance may be left out
MIN_F1 = 0.2           # rules fitted to random activations reach .07 once they are read
BY_LUCK = 1e-16       # unread they reach .37, and their luck in meeting the firing places 4 in 10^12


@dataclass(frozen=True)
class Induced:
    """A rule and its sentence, or neither and the reason. The estimates are of the explain side, hence favourable.

    weak: in place of a rule the best that was found, where the evidence for it is too thin to put it forward.
    reads: windows read. The estimates are None where nothing was fitted. words: of each part of the rule (at, need,
    not) the words of the explain side that it matches, where these are few, the commonest first; where pairs must
    repeat (repeat) the commonest words there.
    """

    rule: Rule | None
    sentence: str | None
    reason: str
    explain_f1: float | None
    explain_precision: float | None
    explain_recall: float | None
    reads: int
    weak: Rule | None = None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def induce(
    subject: Subject, sweep: Explained, unit: UnitId, evidence: Sequence[Evidence] = (), reads: int = READS
) -> Induced:
    """Makes the rule of at most 4 clauses and 8 atoms that best predicts where `unit` fires on the explain side.

    evidence: results of experiments (`trials.TOOLS`) on this unit; what was kept proposes contexts, what keeps or
    raises widens lists, where words may stand proposes ranges, and each experiment that a rule gets wrong costs it.
    reads: windows of 64 tokens read at most; 0 estimates precision from the exemplars alone, with no forward pass.

    Precision: of the places read, each weighted by 1 / the chance that its window was drawn, with PRIOR places' worth
    of the exemplars' estimate TP / M; recall = precision × M / N. A clause's value is its mean y/P over the places
    read (without reads: precision × the mean over firing exemplars). Abstains, with a reason, where the unit fires in
    fewer than 8 explain documents that are no near copies, where the best F1 is below .2, and, without reads, where
    the rule meets the firing exemplars no better than chance could (BY_LUCK). Raises Refused if evidence is of
    another unit.
    """
    used = [e for e in evidence if e.tool in TOOLS]
    foreign = next((e for e in used if (e.unit, e.sign) != (unit.bare, unit.sign)), None)
    if foreign is not None:
        raise Refused(f"the evidence is of {foreign.unit} and the rule is for {unit}; give this unit's own.")
    known = Known(subject, sweep, unit)
    documents = known.documents()
    if documents < MIN_DOCUMENTS:
        reason = f"it fires in {documents} explain documents that are no near copies; a pattern needs {MIN_DOCUMENTS}."
        return Induced(None, None, reason, None, None, None, 0)
    search = Search(subject, known, Trials(subject, used))
    rule, pool = search.cover()
    if reads:
        chosen = search.chosen(pool)
        known.read([*search.shared_words(), *(c.at for c in chosen)], reads // 2)
        known.learn()
        rule, pool = search.cover()
        chosen = search.chosen([*rule, *pool])
        known.read([c.at for c in chosen], reads)
        rule = search.assemble(chosen)
    rule = search.polish(rule)
    return _conclude(subject.piece, known, [search.exact(c) for c in rule])


def _conclude(spell: Callable[[int], str], known: Known, rule: list[Candidate]) -> Induced:
    windows = len(np.unique(known.window[known.read_at]))
    precision, recall = known.rates(rule)
    f1 = float(stats.f1(precision, recall))
    clauses = tuple(replace(c.clause, value=known.value(c)) for c in rule)
    made = Rule(clauses) if clauses else None
    how = f"{windows} windows read" if windows else "from exemplars, none read"
    if f1 < MIN_F1 or not (windows or known.luck(rule) < BY_LUCK):
        bar = f"below {MIN_F1}" if f1 < MIN_F1 else "with so few exemplars"
        reason = f"the best pattern found has F1 {f1:.2f} on the explain side ({how}); {bar} it may be chance."
        return Induced(None, None, reason, f1, precision, recall, windows, made)
    sentence = "fires on " + "; also on ".join(_phrase(spell, known, c) for c in rule)
    reason, words = f"F1 {f1:.2f} on the explain side, {how}.", _words(known, clauses)
    return Induced(made, sentence, reason, f1, precision, recall, windows, words=words)


def _words(known: Known, clauses: Sequence[Clause]) -> dict[str, tuple[str, ...]]:
    """The words that the matchers of each part of a rule match, of those that match few."""
    found: dict[str, Counter[str]] = {"at": Counter(), "need": Counter(), "not": Counter()}
    text = known.text
    for clause in clauses:
        nears = [*(("need", near.match) for near in clause.need), *(("not", near.match) for near in clause.avoid)]
        for part, matcher in [("at", clause.at), *nears]:
            kinds = np.unique(text.kind[text.words(matcher)], return_counts=True)
            if len(kinds[0]) <= FEW_WORDS:
                found[part].update({text.vocabulary[k]: int(n) for k, n in zip(*kinds, strict=True)})
    words = {part: tuple(word for word, _ in counts.most_common(FEW_WORDS)) for part, counts in found.items()}
    return words | {"repeat": _commonest(known.text)} if any(clause.repeat for clause in clauses) else words


def _commonest(text: Text) -> tuple[str, ...]:
    """The commonest words of letters."""
    order = np.argsort(-np.bincount(text.kind, minlength=len(text.vocabulary)), kind="stable").tolist()
    return tuple(islice((word for k in order if (word := text.vocabulary[k]).isalpha()), COMMON))


def _phrase(spell: Callable[[int], str], known: Known, c: Candidate) -> str:
    """A clause in plain English, with the words that firing places show."""
    text = known.text
    at = known.at[known.matched(c.at)]
    shown = Counter(text.vocabulary[text.kind[text.word[i]]] for i in at if not text.blank[i])
    examples = [word for word, _ in shown.most_common(4) if word.strip()]
    whole = len(at) == 0 or float((text.first[at] & text.last[at]).mean()) > 0.5
    if c.clause.at.ids:
        counts = Counter(int(i) for i in text.ids[at])
        names = spelled(spell, sorted(c.clause.at.ids, key=lambda i: -counts[i]))
        said = called(names) if whole else _as_tokens(names, examples)
    else:
        plain = whole or c.clause.piece == "any" or c.words == "any token"
        said = c.words if plain else f"the {c.clause.piece} piece of {c.words}"
        if examples and not any(f"“{word.lower()}”" in said.lower() for word in examples):
            said += f", such as {', '.join(examples)}"
    before = [condition.said for condition in c.conditions]
    if c.clause.position is not None:
        before.append(positions(*c.clause.position))
    if c.clause.repeat:
        before.append("where the same two tokens have stood together before")
    for k, condition in enumerate(before):
        said += (", " if k or ", such as" in said or condition.startswith("not") else " ") + condition
    return said


def _as_tokens(names: list[str], examples: list[str]) -> str:
    inside = [word for word in examples if word not in names][:3]
    said = f"the token{'s' * (len(names) > 1)} {quoted(names[:6], 'and')}"
    return said + (f", as in {joined(inside, 'and')}" if inside else "")
