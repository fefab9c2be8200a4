"""Ways to group the words of a text, and plain names for the groups.

A rule should say "names of months" or "words ending in “-ing”" where that is what firing places share. A family is one
way to group words: by the word itself, its stem, its shape, its beginning or its end. It knows the group of every word
of a text, how a list of groups is written as a matcher, and how the list is called. The lexicon of a text is its
families; they are made once a text.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby
from weakref import WeakKeyDictionary

import numpy as np
import re2
from nltk.stem import PorterStemmer

from .rules import CLASSES, MAX_PATTERN, Ints, Matcher, Text

LONGEST = 40           # characters of a word that a list may hold
FOLD = "(?i)"          # marks a word of a list that matches in capitals or not
BLANK = "a blank"

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


def named() -> Iterator[tuple[Matcher, str]]:
    """Every shape and class that has a name, with the name."""
    for words, pattern in KNOWN:
        yield Matcher(word=pattern), words
    for name, (words, _) in CALLED.items():
        yield Matcher(cls=name), words


class Family:
    """One way to group words: codes[kind of word] (−1: in no group) and names[code].

    values: the group of each kind of word, by name. write, call: the matcher of a list of names, and what to call it.
    most: how long a list may be. loose: the pattern goes beyond the words seen, so it must be shown by different words,
    not by one word many times. words: the words, as `matching` takes them, that a list of names stands for; none where
    its matcher is no list of words.
    """

    def __init__(
        self, values: Sequence[str | None], write: Callable[[list[str]], Matcher], call: Callable[[list[str]], str],
        most: int, loose: bool = True, words: Callable[[list[str]], list[str]] = lambda _: [],
    ) -> None:  # fmt: skip
        known: dict[str, int] = {}
        usable = (value if value and len(value) <= LONGEST else None for value in values)
        codes = [-1 if value is None else known.setdefault(value, len(known)) for value in usable]
        self.codes: Ints = np.array(codes, dtype=np.int64)
        self.names = list(known)
        self.write, self.call, self.most, self.loose = write, call, most, loose
        self.words = words


class Lexicon:
    """The families over the vocabulary of one text.

    all: those that a token's own word is grouped by; folded, kinds: by the word in small letters and by its class, for
    the words before it.
    """

    def __init__(self, text: Text) -> None:
        folded = [word.lower() for word in text.vocabulary]
        plain = [word if word.replace("'", "").replace("’", "").isalpha() else None for word in folded]
        self.folded = Family(folded, listing, called, 24, loose=False, words=folding)
        classes = [_class(word) for word in text.vocabulary]
        self.kinds = Family(classes, lambda n: Matcher(cls=n[0]), lambda n: CALLED[n[0]][1], 1)
        exact = Family(text.vocabulary, matching, called, 24, loose=False, words=list)
        numbers = Family([_digits(w) for w in text.vocabulary], _digit_matcher, _digit_call, 6)
        shapes = Family([_shape(w) for w in text.vocabulary], lambda n: Matcher(word="|".join(n)), _shape_call, 4)
        self.all = [exact, self.folded, _forms(folded, plain), numbers, shapes]
        for size in range(1, 6):
            ends = [word[-size:] if word and len(word) > size + 1 else None for word in plain]
            heads = [word[:size] if word and len(word) > size + 1 else None for word in plain]
            self.all.append(Family(ends, lambda n: Matcher(word=rf"(?i)[\pL'’]{{2,}}({_options(n)})"), _ending, 4))
            self.all.append(Family(heads, lambda n: Matcher(word=rf"(?i)({_options(n)})[\pL'’]{{2,}}"), _beginning, 1))


_lexicons: WeakKeyDictionary[Text, Lexicon] = WeakKeyDictionary()


def lexicon(text: Text) -> Lexicon:
    """The lexicon of a text, made once for as long as the text lives."""
    if text not in _lexicons:
        _lexicons[text] = Lexicon(text)
    return _lexicons[text]


# How a list is written


def listing(names: Sequence[str]) -> Matcher:
    """Matches these words, in capitals or not."""
    return matching(folding(names))


def folding(names: Sequence[str]) -> list[str]:
    """Words of a list, marked to match in capitals or not."""
    return [FOLD + name for name in names]


def unmarked(words: Sequence[str]) -> list[str]:
    """Words of a list without their marks."""
    return [word.removeprefix(FOLD) for word in words]


def fitting(words: Sequence[str]) -> list[str]:
    """The first words of a list, as many as fit into one pattern."""
    lengths = accumulate(len(_escape(word)) + 1 for word in unmarked(words))
    return [word for word, length in zip(words, lengths, strict=True) if length < MAX_PATTERN - LONGEST]


def matching(words: Sequence[str]) -> Matcher:
    """Matches these words, as many as fit: those marked FOLD in capitals or not, the others only as they are."""
    chosen = fitting(words)
    exact = _options([word for word in chosen if not word.startswith(FOLD)])
    folded = _options(unmarked([word for word in chosen if word.startswith(FOLD)]))
    return Matcher(word=f"{exact}|(?i:{folded})" if exact and folded else exact or FOLD + folded)


def merged(words: Sequence[int | str], more: Sequence[int | str]) -> list[int | str]:
    """Both lists as one, each word once; one marked FOLD takes the place of the same word without."""
    known = {*words, *more}
    folds = (word if isinstance(word, int) else FOLD + word.lower() for word in (*words, *more))
    both = zip((*words, *more), folds, strict=True)
    return list(dict.fromkeys(fold if fold in known else word for word, fold in both))


def _options(names: Sequence[str]) -> str:
    return "|".join(map(_escape, names))


def _escape(word: str) -> str:
    return word if word.isalnum() else str(re2.escape(word))


# Ways to group words


def _class(word: str) -> str | None:
    return next((name for name in WORD_CLASSES if re2.fullmatch(CLASSES[name], word)), None) if word else None


def _forms(folded: Sequence[str], plain: Sequence[str | None]) -> Family:
    """Words of one stem."""
    stem = PorterStemmer().stem
    stems = [stem(word) if word else None for word in plain]
    members: dict[str, dict[str, None]] = {}   # a dict keeps the order in which the text has them
    for word, root in zip(folded, stems, strict=True):
        if root:
            members.setdefault(root, {})[word] = None
    short = {root: min(words, key=len) for root, words in members.items()}

    def forms(roots: list[str]) -> list[str]:
        return folding([word for root in roots for word in list(members[root])[:8]])

    return Family(
        stems,
        lambda n: matching(forms(n)),
        lambda n: f"forms of {quoted([short[root] for root in n[:6]], 'and')}",
        8,
        words=forms,
    )


def _digits(word: str) -> str | None:
    """Numbers with something to them: 19th → \\d+th."""
    if word.isdigit() or not any(c.isdigit() for c in word):
        return None
    return "".join(r"\d+" if digit else _escape("".join(run)) for digit, run in groupby(word, str.isdigit))


def _digit_matcher(names: list[str]) -> Matcher:
    tails = _digit_tails(names)
    return Matcher(word=rf"\d+({'|'.join(tails)})" if tails and len(names) > 1 else "|".join(names))


def _digit_call(names: list[str]) -> str:
    tails = _digit_tails(names)
    return f"numbers ending in {quoted(tails, 'or')}" if tails else "numbers with marks or letters inside"


def _digit_tails(names: list[str]) -> list[str]:
    """What follows the digits, where that is letters alone in all of them."""
    tails = [name.removeprefix(r"\d+") for name in names]
    return tails if all(tail.isalpha() for tail in tails) else []


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
        return f"numbers of {joined(sorted(counts, key=int), 'or')} digit{'s' * (counts != ['1'])}"
    signs = ((r"\p{Lu}+", "AA"), (r"\p{Lu}", "A"), (r"\p{Ll}+", "aa"), (r"\d+", "99"), ("\\", ""))
    shown = []
    for name in names:
        for sign, plain in signs:
            name = name.replace(sign, plain)
        shown.append(name)
    return f"words written like {quoted(shown, 'or')}"


def _ending(names: list[str]) -> str:
    return f"words ending in {quoted(['-' + name for name in names], 'or')}"


def _beginning(names: list[str]) -> str:
    return f"words beginning with {quoted([name + '-' for name in names], 'or')}"


# How a list is called


def called(names: Sequence[str]) -> str:
    """The words themselves, quoted; of more than six, the first six."""
    if BLANK in names:
        others = [name for name in names if name != BLANK]
        return f"{called(others)} and {BLANK}" if others else BLANK
    if list(names) == ["\n"]:
        return "a line break"
    what = "word" if any(c.isalnum() for name in names for c in name) else "mark"
    if len(names) > 6:
        return f"{what}s such as {quoted(names[:6], 'and')}"
    return f"the {what}{'s' * (len(names) > 1)} {quoted(names, 'and')}"


def quoted(names: Sequence[str], last: str) -> str:
    """The names in quotes, but for a blank's, with `last` before the last one."""
    return joined([name if name == BLANK else f"“{name}”".replace("\n", "⏎") for name in names], last)


def joined(items: Sequence[str], last: str) -> str:
    """The items with commas, and with `last` before the last one."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def after(what: str, distance: int) -> str:
    """Says that something stands so many words before."""
    count = COUNTS[distance] if distance < len(COUNTS) else str(distance)
    return f"after {what}" if distance == 1 else f"with {what} {count} words before"


def within(what: str, distance: int) -> str:
    """Says that something stands at most so many words before."""
    return f"with {what} among the {distance} words before"


def spelled(piece: Callable[[int], str], ids: Sequence[int]) -> list[str]:
    """Tokens as people read them, each spelling once."""
    return list(dict.fromkeys(piece(i).strip(" ") or BLANK for i in ids))
