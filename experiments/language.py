"""The language of planted models: English of the committed corpus, a tokenizer trained on it, and sets of its words."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ..tools.corpus import COMMITTED
from ..tools.rules import Tokens

# Sets of words that a corpus shows in part: of each, SHOWN may stand in it, the rest only in `fresh`.
SHOWN = 20
_POOLS = {
    "capitals": (
        "Paris London Berlin Madrid Rome Vienna Prague Warsaw Budapest Athens Lisbon Dublin Brussels Copenhagen "
        "Stockholm Oslo Helsinki Moscow Kyiv Minsk Riga Vilnius Tallinn Sofia Bucharest Belgrade Zagreb Ljubljana "
        "Bratislava Bern Ankara Cairo Tunis Rabat Algiers Tripoli Nairobi Kampala Accra Abuja Dakar Pretoria Harare "
        "Lusaka Tokyo Beijing Seoul Hanoi Bangkok Manila Jakarta Kabul Tehran Baghdad Damascus Riyadh Ottawa Havana "
        "Lima Canberra"
    ),
    "animals": (
        "dog cat horse cow pig sheep goat donkey camel lion tiger leopard panther wolf fox giraffe deer moose zebra "
        "rabbit hare squirrel beaver otter badger hedgehog mouse monkey gorilla whale dolphin octopus walrus penguin "
        "ostrich eagle falcon hawk owl raven crow sparrow lobster pigeon parrot swan goose duck hamster turkey frog "
        "toad lizard snake turtle crocodile shark salmon herring spider"
    ),
}
POOLS = {name: words.split() for name, words in _POOLS.items()}

VOCABULARY = 4096
OFTEN = 60             # times each word of a pool is shown to the tokenizer, so that it becomes one token
FILLERS = 60           # most frequent words, which fill gaps and are in no rule
HELD_BACK = 7          # every seventh sentence is kept for `fresh`


@dataclass(frozen=True, eq=False)
class _Spelled:
    """The string of each token: what the rules need of a subject, before there is one."""

    spelled: tuple[str, ...]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.spelled[i] for i in ids]


@dataclass(frozen=True, eq=False)
class Language(_Spelled):
    """The tokenizer, and what rules and texts are made of. Ids are those of words with a space in front.

    A clean word is one token wherever it stands in the sentences, and its token is never part of another word: there
    a rule on token ids and one on words say the same. common: fillers; words, names: clean words in small letters and
    with a capital; pools: ids of POOLS; shown, kept: sentences for corpora and those for `fresh`, none with a word of
    a pool; often: how many times each token stands in them.
    """

    tokenizer: Any
    shown: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    common: tuple[int, ...]
    words: tuple[int, ...]
    names: tuple[int, ...]
    pools: dict[str, tuple[int, ...]]
    often: tuple[int, ...]

    @cached_property
    def flows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sentences for corpora, and those for `fresh`, each as one running text."""
        shown, kept = (tuple(itertools.chain(*sentences)) for sentences in (self.shown, self.kept))
        return shown, kept

    def begins(self, token: int) -> bool:
        """Whether a word begins at this token wherever it stands, so that others can be put before it."""
        return self.spelled[token].startswith(" ")


@cache
def language() -> Language:
    """The language of every key: English of the committed corpus, cut by a byte-level BPE trained on it."""
    rows = [json.loads(line) for line in COMMITTED.read_text("utf-8").splitlines() if line.strip()]
    texts = [row["text"] for row in rows]
    tokenizer = _tokenizer(texts)
    spelled = tuple(tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in range(VOCABULARY))
    known = {piece: i for i, piece in enumerate(spelled)}
    pools = {name: tuple(known[f" {word}"] for word in words) for name, words in POOLS.items()}
    pooled = {i for ids in pools.values() for i in ids}
    cut = tokenizer([f" {sentence}" for sentence in _sentences(texts)], add_special_tokens=False)["input_ids"]
    sentences = [tuple(ids) for ids in cut if not pooled.intersection(ids)]
    total = Counter(itertools.chain(*sentences))
    whole, clean = _clean(_Spelled(spelled), sentences, total)
    common = [i for i, _ in whole.most_common() if re.fullmatch(" [a-z]{2,}", spelled[i])][:FILLERS]
    usable = [i for i in sorted(clean) if 2 <= whole[i] <= 40 and i not in common]
    return Language(
        spelled, tokenizer, pools=pools, common=tuple(common), often=tuple(total[i] for i in range(VOCABULARY)),
        shown=tuple(ids for n, ids in enumerate(sentences) if n % HELD_BACK), kept=tuple(sentences[::HELD_BACK]),
        words=tuple(i for i in usable if re.fullmatch(" [a-z]{3,}", spelled[i])),
        names=tuple(i for i in usable if re.fullmatch(" [A-Z][a-z]{2,}", spelled[i])),
    )  # fmt: skip


def _tokenizer(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>"], initial_alphabet=letters, show_progress=False
    )
    pools = [" " + " ".join(words) for words in POOLS.values()]
    tokenizer.train_from_iterator([*texts, *pools * OFTEN], trainer)
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=tokenizer, bos_token="<s>")


def _sentences(texts: Sequence[str]) -> list[str]:
    """Sentences of 6 to 30 words, each once, but for those that name a member of a pool.

    Longer ones could make two documents that share one near copies of each other.
    """
    pooled = {word.lower() for words in POOLS.values() for word in words}
    parts = (part for text in texts for line in text.split("\n") for part in re.split(r"(?<=[.!?]) +", line))
    fits = (part for part in parts if 6 <= len(part.split()) <= 30)
    return [part for part in dict.fromkeys(fits) if not pooled.intersection(re.findall(r"[a-z]+", part.lower()))]


def _clean(
    speller: _Spelled, sentences: Sequence[tuple[int, ...]], total: Counter[int]
) -> tuple[Counter[int], set[int]]:
    """How often each token is a whole word with a space in front, and which tokens are clean words."""
    whole: Counter[int] = Counter()
    words: Counter[str] = Counter()
    for ids in sentences:
        window = Tokens.of(speller, [0, *ids])
        words.update(window.words)
        for i, piece, word in zip(window.ids, window.pieces, window.word, strict=True):
            whole[i] += piece == f" {window.words[word]}"
    return whole, {i for i, count in whole.items() if count == total[i] == words[speller.spelled[i][1:]]}


__all__ = ["POOLS", "SHOWN", "VOCABULARY", "Language", "language"]
