"""Substitution: which words can stand in for the words of a minimal example without the unit falling silent.

Proposals come from a masked language model, and for numbers also from their written form. Words are those of
`rules`, and a word is replaced whole: its ids are cut out and the substitute's are put in, so that no other token is
read differently (joining strings and tokenising again moves boundaries).
"""

import hashlib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, takewhile, zip_longest
from pathlib import Path
from textwrap import shorten
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..store.records import Evidence, Refused
from . import models
from .measures import KEEP, KILLS, RAISES, SHARE_SETS, UNSURE
from .prune import filler_pool, kept_text, make_frame, prune, read_means, track
from .rules import split_words
from .subject import Subject
from .units import UnitId

Span = tuple[int, int]


def substitute(
    subject: Subject,
    masked: "MaskedLM",
    unit: UnitId,
    *,
    text: str | None = None,
    ids: Sequence[int] | None = None,
    kept: Sequence[int] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Evidence:
    """Swaps each word of a text's minimal example for other words and reads whether the unit still fires.

    The text is pruned first, as `minimal_example` does in mode resample, and the kept tokens are widened to the words
    they lie in ("9th" to "19th"), because only words have substitutes. Each of these words is replaced by up to n
    proposals of the masked LM for it in the whole text, and, where it is a number, by up to n by form ("19th" →
    "15th", "fifth", …). The reading is taken in the minimal example's own frame: the other kept words in place, the
    rest resampled with the same draws, mean over the draws. ratio = activation / reading of the minimal example with
    its words whole, so that a word put in its own place has ratio 1 exactly; effect: kills (< 0.25), unsure (< 0.5),
    keeps (< 1.25), raises.

    The tracked position moves with the swap. Where the tracked token is itself swapped, the reading is taken at the
    substitute's last token if it was its word's last, else at the token of the same rank from the word's start (at
    most the last), and the text ends there.

    Rows {position, original, substitute, activation, ratio, effect, ids, proposer}. ids: the cut text with the
    substitute in place, sink first, ending at the token that was read; position: index in these ids of the
    substitute's first token (a blank token before the word is replaced with it and not counted to it); proposer:
    masked or form. checks: kept, kept_text and reading (minimal) of the minimal example; positions (held) and reading
    (whole) of its words, the divisor of ratio; left_out: proposals that the subject's tokens cannot spell in place or
    that do not fit into its context. Raises Refused as `minimal_example` does, for n < 1, for kept
    positions that are none, and where the held words read nothing.

    Args:
        text: the text; the sink token is put in front of it.
        ids: token ids instead of text, the first being the sink.
        kept: positions to hold in place of the pruning's result, the text's strongest token among them.
        n: proposals a word from each proposer.
        seed: seeds the draws and the pruning.
    """
    if n < 1:
        raise Refused(f"n = {n} asks for no substitutes; give at least 1.")
    given = subject.take(text, ids)
    chosen = masked.choose_mode(subject)
    with subject.metered() as cost:
        row, peak = track(subject, unit, given)
        frame = make_frame(row, "resample", filler_pool(subject), seed)
        core = frozenset(_asked(kept, len(row)) or prune(subject, unit, frame, peak, KEEP, seed, SHARE_SETS).kept)
        spelled = Spelled(subject, given)
        words = spelled.words_of(core)
        held = core.union(*(range(w.first, min(w.end, len(row))) for w in words))
        swaps = [s for word in words for s in _swaps(spelled, word, masked, chosen["mode"], n, len(row))]
        done = [s for s in swaps if s.new and len(s.put_in(row)) <= subject.context]
        base = frame.rows(held)
        groups = [frame.rows(core), base, *([s.put_in(r) for r in base] for s in done)]
        minimal, whole, *values = read_means(subject, unit, groups)
    if whole <= 0:
        raise Refused(f"{unit} reads {whole:.3g} on the kept words alone, so no ratio exists; keep more positions.")
    rows = [_row(swap, value, whole, row) for swap, value in zip(done, values, strict=True)]
    pieces = subject.pieces(row)
    checks = {
        "fired": int(cost["forward_rows"]),
        "kept": sorted(core),
        "kept_text": kept_text(pieces, core),
        "minimal": minimal,
        "held": sorted(held),
        "whole": whole,
        "masked_mode": chosen["mode"],
        "left_out": len(swaps) - len(done),
    }
    return Evidence(
        tool="substitute",
        unit=unit.bare,
        sign=unit.sign,
        arguments={
            "text": text, "ids": None if ids is None else given, "kept": None if kept is None else sorted(core),
            "n": n, "seed": seed,
        },
        summary=_summary(unit, kept_text(pieces, held), rows),
        rows=rows,
        checks=checks,
        warnings=[] if rows else ["no kept token lies in a word that has substitutes"],
        cost=cost,
    )  # fmt: skip


def effect(ratio: float) -> str:
    """What a substitute does to the reading, by its ratio."""
    if ratio < KILLS:
        return "kills"
    if ratio < UNSURE:
        return "unsure"
    return "keeps" if ratio < RAISES else "raises"


def _asked(kept: Sequence[int] | None, length: int) -> list[int] | None:
    if kept is None:
        return None
    held = sorted({int(i) for i in kept})
    if not held or held[0] < 1 or held[-1] != length - 1:
        last = length - 1
        raise Refused(f"kept positions {held} must lie in 1 to {last} and hold {last}, the strongest token.")
    return held


def _row(swap: "Swap", value: float, whole: float, row: list[int]) -> dict[str, Any]:
    ratio = value / whole
    return {
        "position": swap.first + swap.blanks,
        "original": swap.original,
        "substitute": swap.substitute,
        "activation": value,
        "ratio": ratio,
        "effect": effect(ratio),
        "ids": swap.put_in(row),
        "proposer": swap.proposer,
    }


def _summary(unit: UnitId, kept: str, rows: list[dict[str, Any]]) -> str:
    parts = [f"{unit} on {shorten(kept, 80, placeholder='…')!r}, {len(rows)} substitutes."]
    for name in ("raises", "keeps", "unsure", "kills"):
        mine = [f"{r['original']}→{r['substitute']}" for r in rows if r["effect"] == name]
        if mine:
            parts.append(f"{name.capitalize()} ({len(mine)}): {', '.join(mine[:5])}{', …' if len(mine) > 5 else ''}.")
    return " ".join(parts)


# Words on tokens


@dataclass(frozen=True)
class Word:
    """One word: its span in the text and the tokens [first, end) that hold it."""

    text: str
    span: Span
    first: int
    end: int


class Spelled:
    """A row of ids beside its text: which tokens hold which word, and how another word is put in its place."""

    def __init__(self, subject: Subject, ids: Sequence[int]) -> None:
        self.subject, self.ids = subject, list(ids)
        pieces = ["\n" if i in subject.special else subject.piece(i) for i in ids]
        pieces[0] = ""
        self.ends = list(accumulate(map(len, pieces)))
        self.starts = [0, *self.ends[:-1]]
        self.pieces = pieces
        self.text = "".join(pieces)

    def words(self) -> list[Word]:
        """Every word with its tokens; white space that is a token of its own goes with the word after it.

        Where one token holds several marks, as in `."`, only the first of them counts as a word.
        """
        found: list[Word] = []
        b = 0
        for word in split_words(self.text):
            a = self.text.index(word, b)
            b = a + len(word)
            first, end = bisect_right(self.ends, a), bisect_left(self.starts, b)
            if first > 1 and self.starts[first] == a and self.pieces[first - 1].isspace():
                first -= 1
            if not word.isspace() and (not found or found[-1].end < end):
                found.append(Word(word, (a, b), first, end))
        return found

    def words_of(self, kept: Iterable[int]) -> list[Word]:
        """The words that hold a kept token; words with a character that is split among tokens are left out."""
        held = set(kept)
        return [w for w in self.words() if held.intersection(range(w.first, w.end)) and "�" not in w.text]

    def respell(self, word: Word, other: str) -> list[int]:
        """Ids of `other` in the place of `word`, with all that shares the word's tokens; [] if it cannot be spelled."""
        (a, b), start, end = word.span, self.starts[word.first], self.ends[word.end - 1]
        wanted = self.text[start:a] + other + self.text[b:end]
        direct = self.subject.encode(wanted)[1:]
        if "".join(self.subject.pieces(direct)) == wanted:
            return direct
        # Some tokenizers put a space in front of a text; behind a line break they do not.
        line, behind = self.subject.encode("\n")[1:], self.subject.encode("\n" + wanted)[1:]
        rest = behind[len(line) :]
        spelled = behind[: len(line)] == line and "".join(self.subject.pieces(rest)) == wanted
        return rest if spelled else []


@dataclass(frozen=True)
class Swap:
    """`new` ids in the place of the tokens [first, end); cut off where the text is read."""

    original: str
    substitute: str
    proposer: str
    first: int
    end: int
    new: tuple[int, ...]
    blanks: int

    def put_in(self, row: Sequence[int]) -> list[int]:
        return [*row[: self.first], *self.new, *row[self.end :]]


def _swaps(spelled: Spelled, word: Word, masked: "MaskedLM", mode: str, n: int, length: int) -> list[Swap]:
    """The word's substitutes, each once, itself left out; `length` is that of the cut row."""
    seen, swaps = {word.text.casefold()}, []
    named = [("masked", p) for p in masked.propose(spelled.text, word.span, n, mode)]
    for proposer, other in [*named, *(("form", p) for p in by_form(word.text)[:n])]:
        if other.casefold() in seen:
            continue
        seen.add(other.casefold())
        new = spelled.respell(word, other)
        if word.end > length:  # the tracked token is an inner piece of this word
            new = new[: length - word.first]
        blanks = sum(1 for _ in takewhile(str.isspace, spelled.subject.pieces(new)))
        swaps.append(Swap(word.text, other, proposer, word.first, word.end, tuple(new), blanks))
    return swaps


# Numbers by form

_SPELLED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_RANKS = (
    "first", "second", "third", "fourth", "fifth", "sixth",
    "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth",
)  # fmt: skip
_ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")
_FORMS = {
    "ordinal": (("15th", "3rd", "21st", "17th", "42nd"), ("fifth", "ninth", "third", "7", "seven")),
    "year": (("1850", "1923", "2001", "1776", "1605"), ("seven", "7th", "42", "fifth")),
    "digits": ((), ("seven", "fifth", "7th", "twelve")),
    "rank": (("fifth", "ninth", "third", "seventh", "twelfth"), ("15th", "3rd", "7", "five")),
    "count": (("seven", "five", "three", "nine", "twelve"), ("7", "15", "fifth", "3rd")),
    "roman": (("I", "III", "IV", "VII", "X"), ("2", "two", "1", "second")),
}


def by_form(word: str) -> list[str]:
    """Other numbers written as `word` is, in turn with numbers written otherwise; [] for what is no number.

    Kinds: ordinals in digits (19th), years (1000 to 2099), anything else with digits (each digit moved on, so that
    "3.50" gives "4.61"), ranks (fifth) and counts (five) up to twelve, Roman numerals from II to XII.
    """
    kind = _kind(word)
    if kind is None:
        return []
    same, other = _FORMS[kind]
    same = same or tuple(_move_digits(word, by) for by in (1, 3, 4, 6, 8))
    kinds = ([_like(p, word) for p in group if p.casefold() != word.casefold()] for group in (same, other))
    return [p for p in chain.from_iterable(zip_longest(*kinds)) if p]


def _kind(word: str) -> str | None:
    lower = word.casefold()
    if re.fullmatch(r"[0-9]+(st|nd|rd|th)", lower):
        return "ordinal"
    if re.fullmatch(r"1[0-9]{3}|20[0-9]{2}", word):
        return "year"
    if re.search("[0-9]", word):
        return "digits"
    if lower in _RANKS:
        return "rank"
    if lower in _SPELLED:
        return "count"
    return "roman" if word in _ROMAN[1:] and word not in ("V", "X") else None


def _move_digits(word: str, by: int) -> str:
    """Each digit moved on by `by`; none becomes 0, so that no number gains a leading zero."""
    return re.sub("[0-9]", lambda m: str((int(m[0]) + by - 1) % 9 + 1), word)


def _like(proposal: str, word: str) -> str:
    """`proposal` in the case of `word`; a Roman numeral has capitals of its own and lends them to no word."""
    roman = proposal.upper() in _ROMAN and (len(proposal) > 1 or word in _ROMAN)
    if word in _ROMAN[1:]:
        return proposal.upper() if roman else proposal
    if roman or (word.isupper() and sum(c.isalpha() for c in word) > 1):
        return proposal.upper()
    return proposal[:1].upper() + proposal[1:] if word[:1].isupper() else proposal


# The masked language model

PROBES = (
    ("The ", "doctor", " saw her at the hospital."),
    ("We took the train to ", "London", "."),
    ("She wore a ", "red", " dress."),
    ("They ", "played", " in the garden."),
    ("He drank a cup of ", "coffee", "."),
)


class MaskedLM:
    """A BERT-like masked language model that proposes words in the place of one."""

    def __init__(self, model: Any, tokenizer: Any, name: str, mode: str | None = None) -> None:
        pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        if tokenizer.mask_token_id is None or not tokenizer.is_fast or not any(p.startswith("##") for p in pieces):
            raise Refused(f"{name} does not use BERT's word pieces; name a BERT or DistilBERT masked language model.")
        if mode not in (None, "masked", "unmasked"):
            raise Refused(f"masked LM mode {mode!r} is unknown; choose masked or unmasked.")
        self.model, self.tokenizer, self.name, self.given = model.eval().requires_grad_(False), tokenizer, name, mode
        special = set(tokenizer.all_special_tokens)
        self._words = ["" if p in special or p.startswith(("##", "[unused")) else p for p in pieces]
        self._modes: WeakKeyDictionary[Subject, dict[str, Any]] = WeakKeyDictionary()

    @classmethod
    def load(cls, name: str | Path, mode: str | None = None) -> "MaskedLM":
        """Loads an embedded name, a folder or a hub id: safetensors only. A `mode` that is given is not measured."""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        embedded = str(name) in models.table()
        place = models.folder(str(name)) if embedded else name
        local = embedded or Path(place).is_dir()
        try:
            model = AutoModelForMaskedLM.from_pretrained(place, use_safetensors=True, local_files_only=local)
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local)
        except (OSError, ValueError) as error:
            first = next(filter(None, str(error).splitlines()), type(error).__name__)
            raise Refused(
                f"the masked LM {str(name)!r} cannot be loaded ({first}); name an embedded one, a folder or a hub id."
            ) from error
        return cls(model, tokenizer, str(name), mode)

    @cached_property
    def digest(self) -> str:
        """sha256 over the word pieces and every weight's name, shape and bytes: equal digests propose equal."""
        total = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return total.hexdigest()

    def propose(self, text: str, span: Span, n: int, mode: str) -> list[str]:
        """The n likeliest words at text[span], best first, in its case; itself and its own pieces are left out.

        mode masked: the word's pieces become one mask; unmasked: they stay, and log-probabilities are averaged over
        them. Words get words, numbers words or numbers, punctuation punctuation; inner pieces ("##s") are no words.
        A text beyond the model's context is cropped around the word.
        """
        ids, at = self._place(text, span, mode)
        if not at:
            return []
        with torch.inference_mode():
            logits: Tensor = self.model(input_ids=torch.tensor([ids])).logits[0, at]
        word = text[span[0] : span[1]]
        own = {word.casefold(), *(p.removeprefix("##") for p in self.tokenizer.tokenize(word))}
        found: dict[str, None] = {}
        for i in logits.log_softmax(-1).mean(0).argsort(descending=True).tolist():
            other = self._words[i] if i < len(self._words) else ""
            if other and _same_kind(other, word) and other.casefold() not in own:
                found[_like(other, word)] = None
            if len(found) == n:
                break
        return list(found)

    def _place(self, text: str, span: Span, mode: str) -> tuple[list[int], list[int]]:
        """Ids between [CLS] and [SEP], within the context, and the indices at which the word is read."""
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside = [k for k, (a, b) in enumerate(coded["offset_mapping"]) if a < span[1] and b > span[0]]
        if not inside:
            return [], []
        first, end = inside[0], inside[-1] + 1
        middle = [self.tokenizer.mask_token_id] if mode == "masked" else coded["input_ids"][first:end]
        room = self.model.config.max_position_embeddings - 2 - len(middle)
        left = coded["input_ids"][max(0, first - room // 2) : first]
        right = coded["input_ids"][end : end + room - len(left)]
        ids = [self.tokenizer.cls_token_id, *left, *middle, *right, self.tokenizer.sep_token_id]
        return ids, list(range(1 + len(left), 1 + len(left) + len(middle)))

    def choose_mode(self, subject: Subject) -> dict[str, Any]:
        """Whether words are proposed masked or unmasked: {mode, masked, unmasked, sentences}.

        masked, unmasked: mean over five sentences and the ten proposals of each mode for one word in it, of
        Σ log p under the subject over the proposal's tokens and all that follow [nats]. Measured once a subject.
        """
        if self.given:
            return {"mode": self.given, "masked": None, "unmasked": None, "sentences": 0}
        if subject not in self._modes:
            means = {mode: self._likelihood(subject, mode) for mode in ("masked", "unmasked")}
            self._modes[subject] = {"mode": max(means, key=means.__getitem__), **means, "sentences": len(PROBES)}
        return self._modes[subject]

    def _likelihood(self, subject: Subject, mode: str) -> float:
        rows, starts = [], []
        for left, word, right in PROBES:
            span = (len(left), len(left) + len(word))
            spelled = Spelled(subject, subject.encode(left + word + right))
            place = next(w for w in spelled.words() if w.span == span)
            for other in self.propose(spelled.text, span, 10, mode):
                new = spelled.respell(place, other)
                if new:
                    rows.append([*spelled.ids[: place.first], *new, *spelled.ids[place.end :]])
                    starts.append(place.first)
        if not rows:
            raise Refused(f"{self.name} proposes no word that {subject.name} can spell; name another masked LM.")
        return sum(_log_likelihoods(subject, rows, starts)) / len(rows)


def _same_kind(other: str, word: str) -> bool:
    if any(c.isdigit() for c in word):
        return other.isalnum()
    if any(c.isalpha() for c in word):
        return other.isalpha()
    return not any(c.isalnum() for c in other)


def _log_likelihoods(subject: Subject, rows: list[list[int]], starts: list[int]) -> list[float]:
    """Σ log p(token | what stands before) over each row from its start on [nats]."""
    result = [0.0] * len(rows)
    for batch in subject.batches(rows, tokens=512):
        logits = subject.run([rows[i] for i in batch], logits=True).logits
        assert logits is not None
        for line, i in zip(logits.float().log_softmax(-1), batch, strict=True):
            at = range(starts[i], len(rows[i]))
            result[i] = sum(line[k - 1, rows[i][k]].item() for k in at)
    return result
