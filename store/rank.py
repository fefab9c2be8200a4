"""Rankings of cards: by meaning, by word, by what units write, and several of them as one.

By meaning: the cosine of two embeddings by the same model, exact, over vectors in memory. By word: BM25 (Robertson and
Zaragoza, 2009) in SQL, words taken without their endings. By direction: the cosine of what two units write. Several:
the sum of 1 / (60 + rank) (reciprocal rank fusion; Cormack et al., 2009).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cards import WORDS, State, Vectors, stem
from .one_select import Connection
from .records import Refused

Directions = Callable[[str], NDArray[Any] | None]
Found = list[tuple[int, float]]          # cards and what they are ordered by, best first
Words = dict[str, tuple[int, float]]     # each word of a text: its number and its weight

K1, B = 1.2, 0.75
RRF = 60                 # how little the first ranks count above the next
MOST_WORDS = 64          # of a text; the rarest are taken
DIGITS = 6               # of scores; what differs by less is equal, and ordered by unit

# Weights stand in a CASE, which takes half the time of a join with them.
_BM25 = f"""
    WITH scored AS MATERIALIZED (
        SELECT card, round(sum(
            CASE word {{weights}} END * n * {K1 + 1} / (n + {K1} * ({1 - B} + {B} * length / $mean))
        ), {DIGITS}) AS score
        FROM words WHERE word IN ({{words}}) {{among}} GROUP BY card
    )
    SELECT card, score FROM scored JOIN cards USING (card)
    WHERE score >= (SELECT min(score) FROM (SELECT score FROM scored ORDER BY score DESC LIMIT $many))
    ORDER BY score DESC, unit, sign DESC, card LIMIT $many
"""


@dataclass
class Ranker:
    """Ranks the cards for which `where` (with the parameters `given`) holds, without those in `but`; `many` at most."""

    con: Connection
    state: State
    where: str
    given: Mapping[str, Any]
    many: int
    but: frozenset[int] = frozenset()

    def by_meaning(self, vector: Vectors) -> Found:
        """By the cosine with a vector of length 1; cards without a vector are left out."""
        sql = f"SELECT card, vector FROM cards WHERE vector IS NOT NULL AND {self.where}"
        known = self.con.execute(sql, self.given).fetchnumpy()
        if not len(known["card"]):
            return []
        cosines = np.concatenate([chunk @ vector for chunk in self.state.chunks])
        return self._best(known["card"], cosines[known["vector"]])

    def words(self, text: str) -> Words:
        """The words of a text that cards have, and what each weighs.

        A word of more than half of the cards tells little apart: where all are such, the two rarest count, else none of
        them.
        """
        terms = self.con.execute(f"SELECT {WORDS} FROM (SELECT ? AS text)", [text]).fetchall()[0][0]
        sql = "SELECT term, word FROM terms WHERE term IN (SELECT unnest(?::VARCHAR[]))"
        known = dict(self.con.execute(sql, [terms]).fetchall())
        stems = {term: stem(term) for term in dict.fromkeys(terms) if term not in known}
        if stems:
            sql = "SELECT stem, word FROM stems WHERE stem IN (SELECT unnest(?))"
            numbers = dict(self.con.execute(sql, [list(stems.values())]).fetchall())
            known |= {term: numbers[ending] for term, ending in stems.items() if ending in numbers}
        sql = f"SELECT word, count(*) FROM words WHERE word IN ({listed(known.values())}) GROUP BY word"
        count = dict(self.con.execute(sql).fetchall())
        total = self.state.cards
        rarest = sorted(count, key=lambda word: (count[word], word))
        rarest = [word for word in rarest if count[word] <= total / 2][:MOST_WORDS] or rarest[:2]
        weight = {word: math.log(1 + (total - count[word] + 0.5) / (count[word] + 0.5)) for word in rarest}
        return {term: (known[term], weight[known[term]]) for term in terms if known.get(term) in weight}

    def by_word(self, words: Words) -> Found:
        """By BM25; cards without any of the words are left out."""
        weights = dict(words.values())
        if not weights:
            return []
        among = f"AND card IN (SELECT card FROM cards WHERE {self.where})" if self.given else ""
        cases = " ".join(f"WHEN {word} THEN {weight!r}::DOUBLE" for word, weight in weights.items())
        sql = _BM25.format(words=listed(weights), weights=cases, among=among)
        asked = {"mean": self.state.mean_length, "many": self.many + len(self.but), **self.given}
        found = self.con.execute(sql, asked).fetchall()
        return [(card, score) for card, score in found if card not in self.but][: self.many]

    def by_direction(self, like: str, directions: Directions) -> Found:
        """By the cosine of what units of the same model write with what `like` writes.

        `directions` gives the rows of a site [units, d], or None: units of such a site are left out. Raises Refused
        where `like` has none. A unit with several cards is found by the first.
        """
        unit, sign = parsed(like)
        model, site, number = unit.rsplit("/", 2) if unit.count("/") > 1 else ("", unit, "")
        rows = directions(site) if number.isdecimal() else None
        if rows is None or int(number) >= len(rows):
            raise Refused(f"{like!r} has no write direction; name an MLP neuron or a feature, as in m/5-mlp/511.")
        wanted = sign * rows[int(number)]
        sql = f"""SELECT card, site, "index", sign FROM cards
                  WHERE model = $of AND "index" IS NOT NULL AND sign IS NOT NULL AND {self.where}
                  QUALIFY row_number() OVER (PARTITION BY unit, sign ORDER BY card) = 1"""
        cards = self.con.execute(sql, {"of": model, **self.given}).fetchnumpy()
        cosines = np.full(len(cards["card"]), np.nan)
        for site in dict.fromkeys(cards["site"]):
            rows = directions(str(site))
            if rows is None or rows.shape[1:] != wanted.shape:
                continue
            here = np.flatnonzero((cards["site"] == site) & (cards["index"] < len(rows)))
            written = rows[cards["index"][here]] * cards["sign"][here, None]
            sizes = np.linalg.norm(written, axis=1) * np.linalg.norm(wanted)
            cosines[here] = np.divide(written @ wanted, sizes, out=np.zeros(len(here)), where=sizes > 0)
        known = ~np.isnan(cosines)
        return self._best(cards["card"][known], cosines[known])

    def _best(self, cards: NDArray[Any], scores: NDArray[Any]) -> Found:
        """The highest scores; of equal ones those of the first units."""
        others = ~np.isin(cards, list(self.but))
        cards, scores = cards[others], np.round(scores[others].astype(np.float64), DIGITS)
        if len(scores) > self.many:
            good = scores >= np.partition(scores, -self.many)[-self.many]
            cards, scores = cards[good], scores[good]
        sql = f"SELECT card, unit, sign FROM cards WHERE card IN ({listed(cards)})"
        units = {card: (unit, -(sign or 0)) for card, unit, sign in self.con.execute(sql).fetchall()}
        found = zip(cards.tolist(), scores.tolist(), strict=True)
        return sorted(found, key=lambda one: (-one[1], units[one[0]], one[0]))[: self.many]


def fused(rankings: Mapping[str, Found]) -> Found:
    """Several rankings as one; of equal ones those that are better by the first."""
    scores: dict[int, float] = {}
    for ranked in rankings.values():
        for place, (card, _) in enumerate(ranked, 1):
            scores[card] = scores.get(card, 0.0) + 1 / (RRF + place)
    return sorted(scores.items(), key=lambda one: -one[1])


def parsed(unit: str) -> tuple[str, int]:
    """A unit's name without its sign, and the sign."""
    return (unit.removesuffix("-"), -1) if unit.endswith("-") else (unit, 1)


def listed(numbers: Iterable[int]) -> str:
    """Whole numbers as SQL lists them."""
    return ", ".join(str(int(number)) for number in numbers) or "NULL"
