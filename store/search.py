"""Search: which explanations mean nearly the same as a text, have its words, or both; and units like a unit.

What an explanation says of inputs and outputs and its rule count for words, what it says of inputs for meaning. Those
that other tools made are searched like ours; `source` names the tool, and is None for ours. The embedder and what units
write are passed in, so that this folder needs no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from .cards import State, Vectors
from .filters import Filters, check_page, page_of
from .index import Index
from .one_select import Connection, fetched
from .rank import Directions, Found, Ranker, Words, fused, listed, parsed
from .records import Refused

Embed = Callable[[list[str]], list[list[float]]]

BY = ("meaning", "word", "both", "direction")
DEEP = 200               # ranks of each ranking that are put together, at least
SHOWN = (
    "unit", "sign", "explanation", "rule", "output_explanation", "input_f1", "input_f1_low", "input_f1_high",
    "output_score", "output_low", "output_high", "floor_f1", "verdict", "planner", "review", "source",
)  # fmt: skip
_UNEMBEDDED = "vector IS NULL AND explanation IS NOT NULL"
_EXPLAINED = "(explanation IS NOT NULL OR output_explanation IS NOT NULL)"
_OF_UNIT = "unit = ? AND sign IS NOT DISTINCT FROM ?"


@dataclass(frozen=True)
class Searched:
    """What was found, how, and what there is to say about it. as_of: until when what is recorded was searched (UTC)."""

    rows: list[dict[str, Any]]
    by: str
    notes: list[str]
    as_of: str | None


def search(
    index: Index,
    text: str | None = None,
    embed: Embed | None = None,
    *,
    by: str | None = None,
    like: str | None = None,
    directions: Directions | None = None,
    filters: Filters | None = None,
    top: int = 10,
    skip: int = 0,
) -> list[dict[str, Any]]:
    """The explanations nearest to `text`, or to that of the unit `like` (which is not among them), best first.

    by: `meaning` (of a text it wants `embed`), `word`, `both`; by default both, or word for a text without `embed`. For
    `like` also `direction`, what the units write (see `Ranker.by_direction`). `skip` leaves out as many of the first.

    Keys: those of SHOWN, then `score` (what they are ordered by), `similarity` (the cosine of the embeddings; None
    where there is none), `words` (those of the text that it has), `ranks` (of each ranking; None where it is not among
    the first) and `why`, the same in a phrase. Raises Refused for an empty text, and for what cannot be ranked.
    """
    by = by or ("both" if embed is not None or like is not None else "word")
    _check(text, embed, by, like, directions, top, skip)
    filters = filters or Filters()
    with index.reading() as (con, state):
        many = top + skip if by != "both" else max(DEEP, 2 * (top + skip))
        ranker = Ranker(con, state, _among(filters), filters.given, many)
        this = None if like is None else _card_of(con, like, needed=by != "direction")
        ranker.but = frozenset() if like is None else _cards_of(con, like)
        rankings: dict[str, Found] = {}
        vector: Vectors | None = None
        words: Words = {}
        if by in ("meaning", "both"):
            vector = _wanted(ranker, index.embedder, text, embed, this, needed=by == "meaning")
            rankings["meaning"] = [] if vector is None else ranker.by_meaning(vector)
        if by in ("word", "both"):
            said = str(text if this is None else this["explanation"])
            words = ranker.words(said)
            if by == "word" and not words and not any(map(str.isalnum, said)):
                raise Refused(f"{said!r} has no word; write one, or search by meaning.")
            rankings["word"] = ranker.by_word(words)
        if by == "direction":
            assert like is not None and directions is not None
            rankings["direction"] = ranker.by_direction(like, directions)
        found = fused(rankings) if by == "both" else rankings[by]
        return _rows(con, state, found[skip : skip + top], rankings, vector, words)


def _among(filters: Filters) -> str:
    """The condition on cards that are searched."""
    return f"{_EXPLAINED} AND {filters.where}"


def _check(
    text: str | None, embed: Embed | None, by: str, like: str | None, directions: Directions | None, top: int, skip: int
) -> None:
    if by not in BY:
        raise Refused(f"{by!r} is no way to search; search by {', '.join(BY[:-1])} or {BY[-1]}.")
    check_page(top, skip)
    if text is not None and not text.strip():
        raise Refused("The search text is empty; write what the unit should respond to.")
    if (text is None) == (like is None):
        raise Refused("A search is for a text or for units like one; give one of the two.")
    if by == "direction" and (like is None or directions is None):
        raise Refused("Only units like one are found by direction, with its model at hand; name the unit.")
    if text is not None and embed is None and by in ("meaning", "both"):
        raise Refused("A search by meaning needs an embedder; search by word, or hand one over.")


def _card_of(con: Connection, like: str, needed: bool) -> dict[str, Any] | None:
    """The card of a unit; where there is none with an explanation, None or, if `needed`, Refused."""
    sql = f"SELECT * FROM cards WHERE {_OF_UNIT} ORDER BY explanation IS NULL, card LIMIT 1"
    rows = fetched(con, sql, parsed(like))
    if needed and (not rows or rows[0]["explanation"] is None):
        raise Refused(f"No explanation of {like!r} is recorded; name a unit that has one.")
    return rows[0] if rows else None


def _cards_of(con: Connection, unit: str) -> frozenset[int]:
    found = con.execute(f"SELECT card FROM cards WHERE {_OF_UNIT}", parsed(unit)).fetchall()
    return frozenset(card for (card,) in found)


def _wanted(
    ranker: Ranker, embedder: str, text: str | None, embed: Embed | None, this: dict[str, Any] | None, needed: bool
) -> Vectors | None:
    """What is searched for, a vector of length 1; where there is nothing to compare it with, None or Refused."""
    if this is not None and this["vector"] is None:
        if needed:
            raise Refused(f"The explanation of {this['unit']} has no embedding by {embedder}; search by word.")
        return None
    if this is not None:
        return ranker.state.vectors_at(np.array([this["vector"]])).ravel()
    sql = f"SELECT count(*) AS explained, count(vector) AS known FROM cards WHERE {ranker.where}"
    counts = fetched(ranker.con, sql, ranker.given)[0]
    if not counts["known"]:
        if needed and counts["explained"]:
            raise Refused(
                f"None of the {counts['explained']} explanations has an embedding by {embedder}; search by word, or "
                "with the embedder of the run that made them."
            )
        return None
    assert text is not None and embed is not None
    made: Vectors = np.asarray(embed([text])[0], dtype=np.float32)
    if len(made) != ranker.state.numbers:
        raise Refused(
            f"The text's embedding has {len(made)} dimensions and those by {embedder} have {ranker.state.numbers}; "
            "search with the embedder of the run that made them."
        )
    made /= np.linalg.norm(made) or 1.0
    return made


def _rows(
    con: Connection, state: State, found: Found, rankings: Mapping[str, Found], vector: Vectors | None, words: Words
) -> list[dict[str, Any]]:
    """Found cards as they are shown, each with why it was found."""
    chosen = listed(card for card, _ in found)
    # by rowid, since all columns would be read to find the rows otherwise
    sql = f"SELECT * FROM cards WHERE rowid IN (SELECT rowid FROM cards WHERE card IN ({chosen}))"
    cards = {row["card"]: row for row in fetched(con, sql)}
    similar = _similarities(state, cards, vector)
    asked = listed(word for word, _ in words.values())
    has = set(con.execute(f"SELECT card, word FROM words WHERE card IN ({chosen}) AND word IN ({asked})").fetchall())
    places = {by: {card: place for place, (card, _) in enumerate(ranked, 1)} for by, ranked in rankings.items()}
    rows = []
    for card, score in found:
        row = {name: cards[card][name] for name in SHOWN}
        row |= {"score": score, "similarity": similar.get(card)}
        row |= {"words": [term for term, (word, _) in words.items() if (card, word) in has]}
        row |= {"ranks": {by: place.get(card) for by, place in places.items()}}
        rows.append(row | {"why": _why(row)})
    return rows


def _similarities(state: State, cards: Mapping[int, dict[str, Any]], vector: Vectors | None) -> dict[int, float]:
    known = [card for card, row in cards.items() if row["vector"] is not None]
    if vector is None or not known:
        return {}
    cosines = state.vectors_at(np.array([cards[card]["vector"] for card in known])) @ vector
    return dict(zip(known, np.round(cosines.astype(np.float64), 6).tolist(), strict=True))


def _why(row: Mapping[str, Any]) -> str:
    """`3rd by meaning (cosine 0.61), 1st by word (ordinal, ending)`."""
    told = []
    for by, rank in row["ranks"].items():
        if rank is not None:
            cosine = f"cosine {row['similarity' if by == 'meaning' else 'score']:.2f}"
            told.append(f"{_ordinal(rank)} by {by} ({', '.join(row['words']) if by == 'word' else cosine})")
    return ", ".join(told)


def _ordinal(n: int) -> str:
    last = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{'th' if n % 100 in (11, 12, 13) else last}"


# What there is


def explained(
    index: Index, filters: Filters | None = None, *, order: str = "unit", top: int = 50, skip: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """A page of the units explained here that pass the filters, with the keys of SHOWN, and how many there are."""
    with index.reading() as (con, _):
        cards = f"SELECT {', '.join(SHOWN)} FROM cards WHERE source IS NULL AND {_EXPLAINED}"
        return page_of(partial(fetched, con), cards, filters or Filters(), order, top, skip)


def any_of(index: Index, filters: Filters) -> bool:
    """Whether there is an explanation, of whatever source, that passes the filters."""
    with index.reading() as (con, _):
        return bool(fetched(con, f"SELECT 1 AS one FROM cards WHERE {_among(filters)} LIMIT 1", filters.given))


def compared(index: Index, units: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Some units side by side, with the keys of SHOWN, and how like each two of their explanations are.

    Pairs are {a, b, similarity, words}: the cosine of the embeddings, None where one has none, and how many words both
    have. Raises Refused for a unit of which no explanation is recorded.
    """
    with index.reading() as (con, state):
        cards = [_card_of(con, unit, needed=True) or {} for unit in units]
        sql = f"SELECT card, list(word) FROM words WHERE card IN ({listed(c['card'] for c in cards)}) GROUP BY card"
        words = {card: set(found) for card, found in con.execute(sql).fetchall()}
    pairs = []
    for (a, one), (b, other) in combinations(zip(units, cards, strict=True), 2):
        both = None not in (one["vector"], other["vector"])
        similarity = None
        if both:
            first, second = state.vectors_at(np.array([one["vector"], other["vector"]]))
            similarity = round(float(first @ second), 6)
        shared = words.get(one["card"], set()) & words.get(other["card"], set())
        pairs.append({"a": a, "b": b, "similarity": similarity, "words": len(shared)})
    return [{name: card[name] for name in SHOWN} for card in cards], pairs


def unembedded(index: Index, filters: Filters | None = None) -> int:
    """How many explanations a search by meaning cannot see, as they have no embedding."""
    filters = filters or Filters()
    with index.reading() as (con, _):
        sql = f"SELECT count(*) AS n FROM cards WHERE {_UNEMBEDDED} AND {_among(filters)}"
        return int(fetched(con, sql, filters.given)[0]["n"])


def to_embed(index: Index, most: int) -> list[dict[str, Any]]:
    """The first of these: hypothesis, sentence, run, investigation, unit, sign."""
    sql = f"""SELECT hypothesis, explanation AS sentence, run, investigation, unit, sign FROM cards
              WHERE {_UNEMBEDDED} ORDER BY card LIMIT ?"""
    with index.reading() as (con, _):
        return fetched(con, sql, [most])


def why_none(index: Index, filters: Filters, words: bool = False) -> str:
    """One sentence on why a search found nothing. words: it was by word alone."""
    given = {name: value for name, value in filters.given.items() if name not in ("min_score", "max_score")}
    with index.reading() as (con, _):
        everything = fetched(con, f"SELECT count(*) AS n FROM cards WHERE {_EXPLAINED}")[0]["n"]
        passing = fetched(con, f"SELECT count(*) AS n FROM cards WHERE {_among(filters)}", filters.given)[0]["n"]
        lone = {name: Filters(**{name: value}) for name, value in given.items()}
        none = [
            name for name, one in lone.items()
            if not fetched(con, f"SELECT count(*) AS n FROM cards WHERE {_among(one)}", one.given)[0]["n"]
        ]  # fmt: skip
        known = con.execute(_VALUES.format(name=none[0])).fetchall() if none else []
    if not everything:
        return "no explanations are recorded yet; lamplighter run makes some."
    if none:
        there = ", ".join(str(value) for (value,) in known) or "none"
        return f"no explanation is of the {none[0]} {given[none[0]]!r}; there are some of {there}."
    if passing and words:
        return "no explanation that passes the filters has any of these words; write others, or search by meaning."
    if passing:
        return "no other explanation that passes the filters shares words with it, or has an embedding to compare."
    named = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in filters.given.items())
    lower = " or lower the score" if filters.min_score is not None else ""
    return f"no explanation passes the filters ({named}); leave one out{lower}."


_VALUES = f"SELECT DISTINCT {{name}} FROM cards WHERE {{name}} IS NOT NULL AND {_EXPLAINED} ORDER BY {{name}} LIMIT 20"
