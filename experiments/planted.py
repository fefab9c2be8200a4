"""The answer key: small transformers whose neurons follow rules that are known, because the weights were set by hand.

A tool that explains neurons can be judged only where the truth is known. `make_key` draws rules of the grammar of
`tools/rules.py`, compiles them into the weights of a real GPT-2 or Llama (float32, three layers), and keeps each rule
beside its neuron: a unit fires where its rule matches and nowhere else, at every token of every window of 64.

How a rule becomes weights. Every dimension of the stream has one meaning, and the constant one is so large that the
norms divide by nearly the same number everywhere. Then:

    attention 0   looks back by distance: heads copy which sets the token k places before is in, k = 1 to 4
    MLP 0         "somewhere from i to j tokens before", and, where there are no position embeddings, positions
    attention 1   looks back by content: an earlier copy of this pair of tokens, a word anywhere in the window
    MLP 1         one neuron a clause: all that it needs, and nothing that it must not have, as a threshold
    MLP 2         the planted units, each an OR of its clauses, among neurons that follow no rule

`documents` writes a corpus in which each rule can be found: its pattern, and as often what is nearly its pattern.
`fresh` makes texts that break one condition at a time, from sentences that the corpus never shows; `recovered` says how
well a candidate rule does on them.
"""

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Refused
from ..tools.corpus import COMMITTED
from ..tools.measures import WINDOW
from ..tools.rules import Clause, Matcher, Near, Rule, Text, Tokens
from ..tools.subject import Subject
from ..tools.units import UnitId

SITE = "2-mlp"
MOST = 40              # units a model: what its dimensions hold
RECOVERED = 0.99       # balanced accuracy from which a candidate counts as the true rule
PLAIN = "plain text"   # the way of failing of a window in which nothing was put

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


@dataclass(frozen=True)
class PlantedUnit:
    """A unit and the truth about it. rule: None for a unit that fires at the sink alone.

    promotes: tokens whose logits rise where it fires; unseen: ids of its rule that no corpus of its key holds.
    """

    id: UnitId
    family: str
    rule: Rule | None
    promotes: tuple[int, ...] = ()
    unseen: frozenset[int] = frozenset()


# The language


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


# From rules to weights

DIMENSIONS = 512
HEAD = 128             # size of a head
WIDTH = 128            # neurons of a layer
CONTEXT = 128          # tokens that a model sees at most
CONSTANT = 128.0       # what the constant dimension holds
CODE = 48              # dimensions of a token's code; two tokens differ in at least APART of them
APART = 10
BITS = 12              # 2 ** BITS codes
REACH = 4              # the farthest exact distance
OUT = 32               # dimensions that only the output embeddings read
ENERGY = 64.0          # of a token's embedding beside the constant; a filler dimension makes it the same for all
STEEP = 64.0           # how far a step rises from 0 to 1 in a neuron's pre-activation
LEVEL = 16.0           # a clause's pre-activation where it holds; where it does not, at most −LEVEL
LOOK = 160.0           # score of the token at the right distance in a head of attention 0
MATCH = 70.0           # score of one of two tokens that match in the induction head
FOUND = 40.0           # score of a word looked for anywhere; the sink's is half of it
NUDGE = 2.5            # what a firing unit adds to the logits of the tokens it promotes
TINY = 1e-5            # of the norms

Form = dict[int, float]     # a linear reading of the stream: coefficients by dimension
Name = tuple[Any, ...]


@dataclass(frozen=True)
class _Neuron:
    """act(reads · x), times lifts · x where the MLP is gated; its activation a adds a × writes to the stream."""

    reads: Form
    writes: Form
    lifts: Form


@dataclass(frozen=True)
class _Group:
    """Query heads that share keys and values. key, value and each query [d, HEAD], each output [HEAD, d]."""

    key: Tensor
    value: Tensor
    heads: list[tuple[Tensor, Tensor]]


@dataclass
class _Plan:
    """A model before it has a shape: its dimensions by name, its embeddings, heads and neurons by layer."""

    names: dict[Name, int] = field(default_factory=dict)
    embed: Tensor = field(default_factory=lambda: torch.zeros(VOCABULARY, DIMENSIONS, dtype=torch.float64))
    places: Tensor = field(default_factory=lambda: torch.zeros(CONTEXT, DIMENSIONS, dtype=torch.float64))
    groups: list[list[_Group]] = field(default_factory=lambda: [[], [], []])
    neurons: list[dict[int, _Neuron]] = field(default_factory=lambda: [{}, {}, {}])

    def dim(self, *name: Any) -> int:
        """The dimension of this name, made when first asked for."""
        if name not in self.names and len(self.names) == DIMENSIONS:
            raise Refused(f"the rules need more than {DIMENSIONS} dimensions; plant fewer units in one model.")
        return self.names.setdefault(name, len(self.names))

    def block(self, name: str, size: int) -> list[int]:
        return [self.dim(name, n) for n in range(size)]

    def constant(self, value: float) -> Form:
        return {self.dim("constant"): value / CONSTANT}

    def add(self, layer: int, reads: Form, writes: Form, lifts: Form | None = None, index: int | None = None) -> None:
        """One neuron; `lifts` is 1 unless it is given."""
        place = len(self.neurons[layer]) if index is None else index
        if place >= WIDTH:
            raise Refused(f"the rules need more than {WIDTH} neurons in layer {layer}; plant fewer units in one model.")
        self.neurons[layer][place] = _Neuron(reads, writes, self.constant(1) if lifts is None else lifts)

    def step(self, reads: Form, into: int, height: float = 1.0) -> None:
        """Adds `height` to a dimension where the reading is 1 or more, nothing where it is 0 or less: two neurons."""
        for threshold, sign in ((0.25, 1), (0.75, -1)):
            self.add(0, _less(self, reads, threshold, STEEP), {into: sign * height / (STEEP / 2)})


def _less(plan: _Plan, form: Form, threshold: float, gain: float) -> Form:
    """gain × (form − threshold)."""
    return {dim: gain * each for dim, each in _sum((1, form), (-threshold, plan.constant(1))).items()}


def _sum(*parts: tuple[float, Form]) -> Form:
    total: Form = {}
    for weight, form in parts:
        for dim, each in form.items():
            total[dim] = total.get(dim, 0.0) + weight * each
    return total


def _matrix(rows: int, columns: int, *entries: tuple[int, int, float]) -> Tensor:
    made = torch.zeros(rows, columns, dtype=torch.float64)
    for row, column, value in entries:
        made[row, column] += value
    return made


class _Gpt2:
    """LayerNorm, learned positions, GELU.

    A position is 32 pairs of a cosine and a sine, whose kernel Σ cos(ω_f Δ) / 32 is 1 at Δ = 0, −1 at Δ = ±64, and 0 at
    every other whole Δ of a text.
    """

    heads, groups = 4, 4
    content = tuple(reversed(range(HEAD)))       # of a head, those for matching by content
    look, sink = LOOK, LOOK / 2
    energy = CONSTANT**2 + ENERGY + HEAD / 4

    def __init__(self, plan: _Plan) -> None:
        pairs = HEAD // 4
        self.plan = plan
        self.turns = math.pi * (torch.arange(pairs, dtype=torch.float64) + 0.5) / pairs
        angles = torch.arange(CONTEXT, dtype=torch.float64)[:, None] * self.turns
        self.cosines, self.sines = plan.block("cosine", pairs), plan.block("sine", pairs)
        plan.places[:, self.cosines], plan.places[:, self.sines] = angles.cos(), angles.sin()

    def pair(self, distance: int) -> tuple[Tensor, Tensor]:
        """Query and key that score `look` at this distance, and far less at any other."""
        query, key = _matrix(DIMENSIONS, HEAD), _matrix(DIMENSIONS, HEAD)
        for f, (turn, c, s) in enumerate(zip(self.turns.tolist(), self.cosines, self.sines, strict=True)):
            sin, cos, size = math.sin(turn * distance), math.cos(turn * distance), self.look / len(self.turns)
            key[c, 2 * f] = key[s, 2 * f + 1] = 1
            query[c, 2 * f], query[s, 2 * f] = size * cos, size * sin
            query[s, 2 * f + 1], query[c, 2 * f + 1] = size * cos, -size * sin
        return query, key

    def position(self, low: int, high: int) -> Form:
        """1 at window positions from low to high, 0 elsewhere."""
        band = torch.arange(low, high + 1, dtype=torch.float64)[:, None] * self.turns
        values = torch.cat([band.cos().sum(0), band.sin().sum(0)]) / len(self.turns)
        return dict(zip([*self.cosines, *self.sines], values.tolist(), strict=True))

    def model(self) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=DIMENSIONS, n_layer=3, n_head=self.heads, n_inner=WIDTH,
            bos_token_id=0, eos_token_id=0, layer_norm_epsilon=TINY, tie_word_embeddings=False,
        )  # fmt: skip
        model = GPT2LMHeadModel(config).requires_grad_(False)
        weights = _blank(model)
        weights["transformer.wte.weight"].copy_(self.plan.embed)
        weights["transformer.wpe.weight"].copy_(self.plan.places)
        for layer in range(3):
            at = f"transformer.h.{layer}"
            queries, keys, values, outputs = _heads(self.plan, layer, self)
            weights[f"{at}.attn.c_attn.weight"].copy_(torch.cat([queries, keys, values], dim=1))
            weights[f"{at}.attn.c_proj.weight"].copy_(outputs)
            reads, _, writes = _mlp(self.plan, layer, self)
            weights[f"{at}.mlp.c_fc.weight"].copy_(reads)
            weights[f"{at}.mlp.c_proj.weight"].copy_(writes)
        return model


class _Llama:
    """RMSNorm, rotary positions, grouped queries, SwiGLU.

    The 8 fastest pairs of a head turn by 1 to .08 a token and serve to find a distance; the slowest turn so little in a
    window that they serve to match by content. Where a token stands is known from the share of a head's attention that
    the sink gets: 30 / (30 + position).
    """

    heads, groups = 8, 2
    theta = 1e10
    fast, slow = 8, 14     # pairs below `fast`, and from `slow` on
    content = tuple(n for f in reversed(range(slow, HEAD // 2)) for n in (f, f + HEAD // 2))
    look, sink = LOOK, 0.11 * LOOK    # the next best distance scores .77 × LOOK
    energy = CONSTANT**2 + ENERGY
    half_way = 30

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan

    def pair(self, distance: int) -> tuple[Tensor, Tensor]:
        """Query and key that score `look` at this distance, and at most .77 of it at any other."""
        query, key = _matrix(DIMENSIONS, HEAD), _matrix(DIMENSIONS, HEAD)
        turns = [self.theta ** (-2 * f / HEAD) for f in range(self.fast)]
        constant = self.plan.dim("constant")
        for f, turn in enumerate(turns):
            size = self.look * turn / sum(turns) / CONSTANT
            key[constant, f] = 1 / CONSTANT
            query[constant, f] = size * math.cos(turn * distance)
            query[constant, f + HEAD // 2] = -size * math.sin(turn * distance)
        return query, key

    def position(self, low: int, high: int) -> Form:
        """1 at window positions from low to high, 0 elsewhere: one step up at low, one down behind high."""
        if ("position", low, high) not in self.plan.names:
            band = self.plan.dim("position", low, high)
            for edge, height in ((low, 1.0), (high + 1, -1.0)):
                before, here = (self.half_way / (self.half_way + i) for i in (edge - 1, edge))
                rise = {self.plan.dim("share"): -1 / (before - here)}
                self.plan.step(_sum((1, rise), (before / (before - here), self.plan.constant(1))), band, height)
        return {self.plan.dim("position", low, high): 1.0}

    def model(self) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, hidden_size=DIMENSIONS, num_hidden_layers=3,
            num_attention_heads=self.heads, num_key_value_heads=self.groups, head_dim=HEAD, intermediate_size=WIDTH,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta}, rms_norm_eps=TINY,
            bos_token_id=0, eos_token_id=0, pad_token_id=None, tie_word_embeddings=False,
        )  # fmt: skip
        model = LlamaForCausalLM(config).requires_grad_(False)
        weights = _blank(model)
        weights["model.embed_tokens.weight"].copy_(self.plan.embed)
        for layer in range(3):
            at = f"model.layers.{layer}"
            queries, keys, values, outputs = _heads(self.plan, layer, self)
            gates, lifts, writes = _mlp(self.plan, layer, self)
            maps = {"q": queries, "k": keys, "v": values, "o": outputs}
            for name, weight in maps.items():
                weights[f"{at}.self_attn.{name}_proj.weight"].copy_(weight.T)
            for name, weight in {"gate": gates, "up": lifts, "down": writes}.items():
                weights[f"{at}.mlp.{name}_proj.weight"].copy_(weight.T)
        return model


_Shape = _Gpt2 | _Llama
_SHAPES: dict[str, type[_Shape]] = {"gpt2": _Gpt2, "llama": _Llama}


def _blank(model: Any) -> dict[str, Tensor]:
    """The model's parameters by name, all 0 but the norms' gains, which are 1."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    for name, weight in weights.items():
        weight.fill_(float(name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))))
    return weights


def _scale(shape: _Shape, layer: int, attention: bool = False) -> float:
    """What the norm divides by, give or take a percent: attention 0 adds two codes to the stream."""
    return math.sqrt((shape.energy + (0 if attention and layer == 0 else 2 * CODE)) / DIMENSIONS)


def _read(plan: _Plan, weights: Tensor, scale: float) -> Tensor:
    """Weights [d, n] that read x where x comes divided by `scale` and, from LayerNorm, less its mean.

    Nobody writes to the dimension "zero", which thus comes as minus the mean: it takes the mean out of every reading.
    """
    weights = weights * scale
    weights[plan.dim("zero")] -= weights.sum(0)
    return weights


def _heads(plan: _Plan, layer: int, shape: _Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [d, heads × HEAD] of queries, keys and values, of which keys and values count groups, and of outputs."""
    each = shape.heads // shape.groups
    idle = _Group(_matrix(DIMENSIONS, HEAD), _matrix(DIMENSIONS, HEAD), [])
    nothing = (_matrix(DIMENSIONS, HEAD), _matrix(HEAD, DIMENSIONS))
    groups = [
        _Group(group.key, group.value, group.heads[n : n + each])
        for group in plan.groups[layer] for n in range(0, len(group.heads), each)
    ]  # fmt: skip
    if len(groups) > shape.groups:
        raise Refused(f"the rules need too many heads in layer {layer}; plant fewer units in one model.")
    groups += [idle] * (shape.groups - len(groups))
    heads = [head for group in groups for head in [*group.heads, *[nothing] * (each - len(group.heads))]]
    scale = _scale(shape, layer, attention=True)
    queries = _read(plan, torch.cat([query for query, _ in heads], dim=1), scale * math.sqrt(HEAD))
    keys = _read(plan, torch.cat([group.key for group in groups], dim=1), scale)
    values = _read(plan, torch.cat([group.value for group in groups], dim=1), scale)
    return queries, keys, values, torch.cat([output for _, output in heads])


def _mlp(plan: _Plan, layer: int, shape: _Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [d, WIDTH] of what neurons read and of their lifts, and [WIDTH, d] of what they write."""
    reads, lifts, writes = (_matrix(DIMENSIONS, WIDTH) for _ in range(3))
    for index, neuron in plan.neurons[layer].items():
        for weights, form in ((reads, neuron.reads), (lifts, neuron.lifts), (writes, neuron.writes)):
            for dim, value in form.items():
                weights[dim, index] = value
    scale = _scale(shape, layer)
    return _read(plan, reads, scale), _read(plan, lifts, scale), writes.T


@cache
def _codes() -> Tensor:
    """A code of ±1 for each token [V, CODE]: the words of a random linear code, of which any two are far apart."""
    bits = (np.arange(2**BITS)[:, None] >> np.arange(BITS)) & 1
    for seed in itertools.count():
        codes = bits @ np.random.default_rng(seed).integers(0, 2, (BITS, CODE)) % 2
        if codes[1:].sum(1).min() >= APART:     # the sum of two words is a word
            break
    return torch.tensor(1 - 2 * codes[:VOCABULARY], dtype=torch.float64)


def plant(shape: str, units: Sequence[PlantedUnit], seed: int = 0) -> Any:
    """A model of this shape in which each unit of SITE fires by its rule. The seed draws the neurons without a rule.

    Can be planted: matchers of ids, and class "any" for the token itself; contexts counted in tokens at one distance
    or in a range up to REACH, or anywhere before; positions; repeats. The clauses of a rule must be about different
    tokens, since two that matched at once would make the unit fire twice as strongly. Raises Refused for the rest.
    """
    plan = _Plan()
    for name in ("zero", "constant", "sink", "fill"):
        plan.dim(name)
    built = _SHAPES[shape](plan)
    neurons: dict[int, list[tuple[PlantedUnit, list[Form]]]] = {}
    for unit in units:
        if unit.id.sign < 0 and shape == "gpt2":
            raise Refused(f"{unit.id} cannot be planted: a GELU neuron has no negative side; plant it in a llama.")
        neurons.setdefault(unit.id.index, []).append((unit, _clauses(plan, built, unit)))
    _near_words(plan)
    _embeddings(plan)
    _look_back(plan, built)
    _look_anywhere(plan, built)
    rng = random.Random(f"{seed} {shape} weights")
    for index in range(WIDTH):
        _unit(plan, shape, index, neurons.get(index, []), rng)
    return _finish(built.model(), plan, built, units)


def _clauses(plan: _Plan, shape: _Shape, unit: PlantedUnit) -> list[Form]:
    """The dimensions that say that a clause of this unit holds, each set by a neuron of MLP 1."""
    if unit.rule is None:
        return [{plan.dim("sink"): 1.0}]
    seen: set[int] = set()
    forms = []
    for number, clause in enumerate(unit.rule.clauses):
        if seen.intersection(clause.at.ids) or (not clause.at.ids and len(unit.rule.clauses) > 1):
            raise Refused(f"{unit.id} cannot be planted: two of its clauses can match the same token.")
        seen.update(clause.at.ids)
        needed, form = _conditions(plan, shape, clause)
        into = plan.dim("clause", unit.id, number)
        plan.add(1, _less(plan, form, needed - 0.5, 2 * LEVEL), {into: 1 / LEVEL})
        forms.append({into: 1.0})
    return forms


def _conditions(plan: _Plan, shape: _Shape, clause: Clause) -> tuple[int, Form]:
    """How many conditions a clause has, and a reading: as much where it holds, less by one or more elsewhere.

    Each condition reads 1 or 0; what must not be there counts −1.
    """
    if clause.piece != "any" or clause.at.word is not None or clause.at.cls not in (None, "any"):
        raise Refused(f"the clause {clause.text()!r} cannot be planted: its token must be among ids, or any.")
    if any(near.high > REACH and not _apart(clause.at, near.match) for near in (*clause.need, *clause.avoid)):
        raise Refused(f"the clause {clause.text()!r} cannot be planted: a word far before must be another word.")
    at = {plan.dim("is", clause.at.ids): 1.0} if clause.at.ids else {**plan.constant(1), plan.dim("sink"): -1.0}
    parts = [at, *(_near(plan, near) for near in clause.need)]
    if clause.position is not None:
        parts.append(shape.position(*clause.position))
    if clause.repeat:
        parts.append({plan.dim("repeat"): 1.0})
    return len(parts), _sum(*((1, part) for part in parts), *((-1, _near(plan, near)) for near in clause.avoid))


def _apart(one: Matcher, other: Matcher) -> bool:
    return bool(one.ids) and not set(one.ids).intersection(other.ids)


def _near(plan: _Plan, near: Near) -> Form:
    """A reading that is 1 where the context stands before, else 0."""
    ids = near.match.ids
    if not ids or near.unit != "tokens" or (near.high > REACH and (near.low, near.high) != (1, WINDOW - 1)):
        raise Refused(f"{near.text()!r} cannot be planted: give ids within {REACH} tokens, or from 1 to {WINDOW - 1}.")
    plan.dim("is", ids)
    if near.high > REACH:
        return {plan.dim("earlier", ids): 1.0}
    for distance in range(near.low, near.high + 1):
        plan.dim("back", ids, distance)
    if near.low == near.high:
        return {plan.dim("back", ids, near.low): 1.0}
    return {plan.dim("near", ids, near.low, near.high): 1.0}


def _near_words(plan: _Plan) -> None:
    """MLP 0: a word at any of several distances, however many there are, reads 1."""
    for kind, *rest in list(plan.names):
        if kind == "near":
            ids, low, high = rest
            found = {plan.dim("back", ids, distance): 1.0 for distance in range(low, high + 1)}
            plan.step(found, plan.dim("near", ids, low, high))


def _embeddings(plan: _Plan) -> None:
    """Each token: the constant, its code, the sets it is in, and filler up to the same energy. The sink: its flag."""
    embed = plan.embed
    embed[:, plan.block("code", CODE)] = _codes()
    embed[0] = 0
    embed[0, plan.dim("sink")] = 1
    for name, dim in plan.names.items():
        if name[0] == "is":
            embed[list(name[1]), dim] = 1
    embed[:, plan.dim("fill")] = (ENERGY - embed.square().sum(1)).sqrt()
    embed[:, plan.dim("constant")] = CONSTANT


def _look_back(plan: _Plan, shape: _Shape) -> None:
    """Attention 0: a head a distance, which copies the sets of the token there, and the code of the nearest two.

    Where the window is too short, the sink is what scores highest, and it is in no set.
    """
    backs = [(name[1], name[2], dim) for name, dim in plan.names.items() if name[0] == "back"]
    sets = {ids: CODE + n for n, ids in enumerate(dict.fromkeys(ids for ids, _, _ in backs))}
    if CODE + len(sets) >= HEAD:
        raise Refused(f"the rules look back for {len(sets)} sets of words; plant fewer units in one model.")
    code, last = plan.block("code", CODE), HEAD - 1
    value = _matrix(DIMENSIONS, HEAD, *((dim, n, 1) for n, dim in enumerate(code)), (plan.dim("sink"), last, 1))
    for ids, n in sets.items():
        value[plan.dim("is", ids), n] = 1
    heads = []
    for distance in range(1, REACH + 1):
        query, key = shape.pair(distance)
        query[plan.dim("constant"), shape.content[0]] = shape.sink / CONSTANT
        output = _matrix(HEAD, DIMENSIONS, *((sets[ids], dim, 1) for ids, k, dim in backs if k == distance))
        if distance <= 2:
            output[range(CODE), plan.block(f"code {distance} before", CODE)] = 1
        heads.append((query, output))
    key[plan.dim("sink"), shape.content[0]] = 1
    plan.groups[0].append(_Group(key, value, heads))
    if isinstance(shape, _Llama):
        even = _matrix(DIMENSIONS, HEAD, (plan.dim("constant"), shape.content[0], math.log(shape.half_way) / CONSTANT))
        plan.groups[0].append(_Group(key, value, [(even, _matrix(HEAD, DIMENSIONS, (last, plan.dim("share"), 1)))]))


def _look_anywhere(plan: _Plan, shape: _Shape) -> None:
    """Attention 1: whether this pair of tokens stood in the window before, and whether words did.

    The induction head looks for a token behind an earlier copy of the pair: there the two before are this token and
    the one before it. Looking for the copy itself, it would find the pair that it looks for.
    """
    constant, sink, free = plan.dim("constant"), plan.dim("sink"), shape.content
    half_way = (2 - APART / CODE) * MATCH      # from the pair itself, 2 MATCH, to the next best one
    query = _matrix(DIMENSIONS, HEAD, (constant, free[0], half_way / CONSTANT))
    key = _matrix(DIMENSIONS, HEAD, (sink, free[0], 1))
    this, one, two = (plan.block(name, CODE) for name in ("code", "code 1 before", "code 2 before"))
    for looks, finds, dims in ((this, one, free[1 : CODE + 1]), (one, two, free[CODE + 1 : 2 * CODE + 1])):
        query[looks, dims] = MATCH / CODE
        key[finds, dims] = 1
    value = _matrix(DIMENSIONS, HEAD, (constant, 0, 1 / CONSTANT), (sink, 0, -1))
    plan.groups[1].append(_Group(key, value, [(query, _matrix(HEAD, DIMENSIONS, (0, plan.dim("repeat"), 1)))]))
    sets = {name[1]: dim for name, dim in plan.names.items() if name[0] == "earlier"}
    member = _matrix(DIMENSIONS, HEAD, *((plan.dim("is", ids), free[n], 1) for n, ids in enumerate(sets, 1)))
    key = member.clone()
    key[sink, free[0]] = 1
    heads = [
        (
            _matrix(DIMENSIONS, HEAD, (constant, free[n], FOUND / CONSTANT), (constant, free[0], FOUND / 2 / CONSTANT)),
            _matrix(HEAD, DIMENSIONS, (free[n], dim, 1)),
        )
        for n, dim in enumerate(sets.values(), 1)
    ]  # fmt: skip
    plan.groups[1].append(_Group(key, member, heads))


def _unit(
    plan: _Plan, shape: str, index: int, sides: list[tuple[PlantedUnit, list[Form]]], rng: random.Random
) -> None:
    """One neuron of MLP 2: an OR of clauses, or, planted with no unit, one that reads codes at random.

    A GELU neuron's height is its pre-activation. A gated one multiplies by clauses once more, negative for those of
    its negative side.
    """
    direction = [rng.gauss(0, 1) / math.sqrt(OUT) for _ in range(OUT)]
    out = plan.block("out", OUT)
    if not sides:
        read = [*plan.block("code", CODE), *plan.block("code 1 before", CODE)]
        reads, lifts = ({dim: rng.gauss(0, 2) / math.sqrt(len(read)) for dim in read} for _ in range(2))
        plan.add(2, reads, {dim: 0.2 * each for dim, each in zip(out, direction, strict=True)}, lifts, index)
        return
    height = rng.uniform(0.5, 1.0)
    peak = height * LEVEL
    clauses = [(unit.id.sign * height, form) for unit, forms in sides for form in forms]
    fires = _sum(*((1, form) for _, form in clauses))
    reads = _less(plan, fires, 0.5, 2 * (peak if shape == "gpt2" else LEVEL))
    plan.add(2, reads, {dim: 2 / peak * each for dim, each in zip(out, direction, strict=True)}, _sum(*clauses), index)


def _finish(model: Any, plan: _Plan, shape: _Shape, units: Sequence[PlantedUnit]) -> Any:
    """Sets the output embeddings: how often a token is in English, and the units that promote it."""
    head = torch.zeros(DIMENSIONS, VOCABULARY, dtype=torch.float64)
    often = torch.tensor(language().often, dtype=torch.float64) + 0.5     # no token is impossible
    head[plan.dim("constant")] = (often / often.sum()).log() / CONSTANT
    for unit in units:
        writes = plan.neurons[2][unit.id.index].writes
        size = math.hypot(*writes.values())
        for token in unit.promotes:
            for dim, each in writes.items():
                head[dim, token] += unit.id.sign * NUDGE / 2 * each / size
    model.get_output_embeddings().weight.copy_(_read(plan, head, _scale(shape, 2)).T)
    return model.eval()


# The rules


class _Draw:
    """Draws rules: every word is in one rule of a model at most, so that no unit's pattern hides another's."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.left = list(language().words)
        rng.shuffle(self.left)
        pools = rng.sample(sorted(POOLS), len(POOLS))
        self.pools, self.reversed = itertools.cycle(pools), itertools.cycle(reversed(pools))
        self.passes = itertools.cycle(rng.sample((True, False), 2))

    def words(self, low: int, high: int) -> Matcher:
        count = self.rng.randint(low, high)
        return Matcher(ids=tuple(self.left.pop() for _ in range(count)))

    def at(self, low: int = 1, high: int = 2, **more: Any) -> Clause:
        return Clause(self.words(low, high), **more)

    def near(self, low: int, high: int, most: int = 2) -> Near:
        return Near(self.words(1, most), low, high)

    def behind(self, low: int = 2, high: int = 4) -> Near:
        """At one distance, drawn from low to high."""
        distance = self.rng.randint(low, high)
        return self.near(distance, distance)

    def within(self) -> Near:
        return self.near(1, self.rng.randint(2, 4))

    def forbidden(self) -> Near:
        return self.near(1, self.rng.randint(1, 4))

    def band(self, least: int, most: int) -> tuple[int, int]:
        width = self.rng.randint(least, most)
        low = self.rng.randint(2, WINDOW - 2 - width)
        return low, low + width - 1

    def pool(self, name: str, **more: Any) -> Rule:
        """All of a pool. A matcher holds 32 ids, so it takes two clauses."""
        ids = language().pools[name]
        return Rule(tuple(Clause(Matcher(ids=half), **more) for half in (ids[:30], ids[30:])))

    def repeat(self) -> Clause:
        """Induction: any pair of tokens that stood in the window before; every other unit passes over common words."""
        common = Near(Matcher(ids=language().common[: self.rng.randint(6, 12)]))
        return Clause(Matcher(cls="any"), "any", avoid=(common,) * next(self.passes), repeat=True)


def _any_at(band: tuple[int, int]) -> Clause:
    return Clause(Matcher(cls="any"), "any", position=band)


# What each family's rule is. "sink" fires at position 0 alone, where no rule matches: there is nothing to explain.
_ONE: dict[str, Callable[[_Draw], Clause | Rule | None]] = {
    "token": lambda d: d.at(1, 1),
    "set": lambda d: d.at(3, 8),
    "pair": lambda d: d.at(need=(d.near(1, 1),)),
    "gap": lambda d: d.at(need=(d.behind(),)),
    "within": lambda d: d.at(need=(d.within(),)),
    "not after": lambda d: d.at(avoid=(d.forbidden(),)),
    "both": lambda d: d.at(need=(d.near(1, 1), d.near(2, 4))),
    "either": lambda d: Rule((d.at(1, 1), d.at(1, 1, need=(d.near(1, 1),)))),
    "earlier": lambda d: d.at(need=(d.near(1, WINDOW - 1),)),
    "repeat": lambda d: d.repeat(),
    "position": lambda d: _any_at(d.band(1, 2)),
    "sink": lambda d: None,
    "hidden": lambda d: d.pool(next(d.pools)),
    "chain": lambda d: d.at(2, 4, need=(d.near(2, 2, 3),), avoid=(d.near(1, 1),)),
    "after but not": lambda d: d.at(need=(d.within(),), avoid=(d.within(),)),
    "pairs": lambda d: Rule((d.at(1, 1, need=(d.behind(1, 3),)), d.at(1, 1, need=(d.behind(1, 3),)))),
    "repeat of": lambda d: d.at(2, 4, repeat=True),
    "placed": lambda d: d.at(1, 2, position=d.band(18, 28)),
    "hidden after": lambda d: d.pool(next(d.reversed), need=(d.near(1, 1),)),
}
SIDES = "sides"        # one neuron, another rule on each side: two units
_SIDE = ("token", "pair", "gap", "either", "not after")


def families(shape: str) -> tuple[str, ...]:
    """The families that a model of this shape can hold. A GELU neuron has no negative side."""
    return (*_ONE, SIDES) if shape == "llama" else tuple(_ONE)


def _draw_units(seed: int, shape: str, number: int, model: str) -> list[PlantedUnit]:
    """The units: families in turn, neurons of the layer at random, signs at random where there are two."""
    rng = random.Random(f"{seed} {shape} rules")
    draw = _Draw(rng)
    hidden = [frozenset(rng.sample(ids, len(ids) - SHOWN)) for ids in language().pools.values()]
    indices = rng.sample(range(WIDTH), number)
    promoted = rng.sample(language().words, 3 * number)
    turns = itertools.cycle(families(shape))
    units: list[PlantedUnit] = []
    while len(units) < number:
        family = next(turns)
        sides = {rng.choice((1, 1, -1)) if shape == "llama" else 1: family}
        if family == SIDES:
            sides = dict(zip((1, -1), rng.sample(_SIDE, 2), strict=True))
        if len(units) + len(sides) > number:
            continue
        index = indices.pop()
        for sign, kind in sides.items():
            made = _ONE[kind](draw)
            rule = Rule((made,)) if isinstance(made, Clause) else made
            members = {i for c in rule.clauses for i in c.at.ids} if rule else set()
            unseen = frozenset(i for ids in hidden for i in ids & members)
            words = tuple(promoted.pop() for _ in range(3))
            units.append(PlantedUnit(UnitId(model, SITE, index, sign), family, rule, words, unseen))
    return units


# Texts

Way = tuple[int, str, int]      # a clause, what is done to it, and to which of its contexts


class _Patterns:
    """Makes the pattern of one unit, or what is nearly its pattern, out of words.

    flow: running text to fill long gaps with; hidden: members of sets that are not used.
    """

    def __init__(self, rng: random.Random, rule: Rule, flow: Sequence[int], hidden: frozenset[int] = frozenset()):
        self.rng, self.rule, self.flow, self.hidden = rng, rule, flow, hidden
        known = language()
        matchers = [m for c in rule.clauses for m in (c.at, *(near.match for near in (*c.need, *c.avoid)))]
        mentioned = {i for matcher in matchers for i in matcher.ids}
        self.names, self.words = ([i for i in ids if i not in mentioned] for ids in (known.names, known.words))

    def holds(self) -> list[Way]:
        """Ways to fire: each clause as it is, and with a forbidden word just too far away to count."""
        ways: list[Way] = []
        for number, clause in enumerate(self.rule.clauses):
            ways.append((number, "fires", 0))
            beyond = [n for n, near in enumerate(clause.avoid) if near.high <= REACH and not clause.repeat]
            ways += [(number, "forbidden too far", n) for n in beyond]
        return ways

    def fails(self) -> list[Way]:
        """Each condition of each clause, broken alone; and the token of one clause in the context of another."""
        ways: list[Way] = []
        for number, clause in enumerate(self.rule.clauses):
            ways += [(number, *way) for way in _breaks(clause)]
            for other, second in enumerate(self.rule.clauses):
                ways += [(number, "crossed", other)] * bool(clause.need and second.need and clause.need != second.need)
        return ways

    def pattern(self, way: Way) -> tuple[list[int], int]:
        """Ids, and which of them is the token in question."""
        number, what, which = way
        clause = self.rule.clauses[number]
        at = self.pick(clause.at) if clause.at.ids and what != "other word" else self.other(clause.at)
        spans = []
        for n, near in enumerate(self.rule.clauses[which].need if what == "crossed" else clause.need):
            if what != "lacks" or which != n:
                spans.append((near.match, *_moved(near, what if which == n else "")))
        if what.startswith("forbidden"):
            near = clause.avoid[which]
            free = (near.high + 1, near.high + 2)      # two, since a context may have to stand at one of them
            spans.append((near.match, *(free if what == "forbidden too far" else _moved(near, ""))))
        slots = self.placed(spans)
        if clause.repeat:
            return self.repeated(slots.get(1, self.other(clause.at)), at, what)
        ids = [*self.run(slots, max(slots, default=0), 1), at]
        return [*ids, *self.run(slots, -1, min(slots, default=0))], len(ids) - 1

    def placed(self, spans: Sequence[tuple[Matcher, int, int]]) -> dict[int, int]:
        """A word of each matcher by its distance, no two the same."""
        for _ in range(1000):
            slots = {self.rng.randint(low, high): self.pick(match) for match, low, high in spans}
            if len(slots) == len(spans):
                return slots
        raise AssertionError(f"the contexts of {self.rule} get in each other's way")

    def run(self, slots: dict[int, int], far: int, near: int) -> list[int]:
        """The tokens at distances from far down to near: the words placed there, and between them gaps."""
        ids: list[int] = []
        empty = 0
        for distance in range(far, near - 1, -1):
            empty += 1
            if distance in slots:
                ids += [*self.gap(empty - 1), slots[distance]]
                empty = 0
        return ids + self.gap(empty)

    def gap(self, size: int) -> list[int]:
        """Words of one token, so that distances in tokens and in words are the same; a long gap is running text."""
        return self.stretch(size) if size > REACH else self.rng.sample(language().common, size)

    def stretch(self, size: int) -> list[int]:
        """So many tokens of running text, from the beginning of a word to the end of one."""
        begins, flow = language().begins, self.flow
        while size:
            start = self.rng.randrange(len(flow) - size)
            if begins(flow[start]) and begins(flow[start + size]):
                return list(flow[start : start + size])
        return []

    def repeated(self, first: int, second: int, what: str) -> tuple[list[int], int]:
        """A pair, and before it the same pair, or one that shares a single token with it, or none."""
        earlier = {"new pair": [], "other first": [self.other(), second], "other second": [first, self.other()]}
        ids = [*earlier.get(what, [first, second]), *self.stretch(self.rng.randint(1, FAR)), first, second]
        return ids, len(ids) - 1

    def pick(self, match: Matcher) -> int:
        return int(self.rng.choice([i for i in match.ids if i not in self.hidden]))

    def other(self, match: Matcher | None = None) -> int:
        """A word that the rule does not mention, capitalised if those of the matcher are."""
        capital = match is not None and match.ids and language().spelled[match.ids[0]][1].isupper()
        return self.rng.choice(self.names if capital else self.words)


FAR = 40               # the longest gap in a pattern


def _moved(near: Near, change: str) -> tuple[int, int]:
    """The distances at which a context is put: its own, or others, off by one, where it must not count."""
    others = {"too far": (near.high + 1,) * 2, "too near": (near.low - 1,) * 2, "order": (-3, -1)}
    return others.get(change, (near.low, min(near.high, FAR)))


def _breaks(clause: Clause) -> Iterator[tuple[str, int]]:
    """What can be done to a clause so that one condition fails."""
    if clause.at.ids:
        yield "other word", 0
    for n, near in enumerate(clause.need):
        yield from (("lacks", n), ("order", n))
        if near.high <= REACH:
            yield "too far", n
        # Where another context must stand just there, nearer cannot be tried.
        if near.low > 1 and all(other.high > 1 for other in clause.need):
            yield "too near", n
    yield from (("forbidden", n) for n in range(len(clause.avoid)))
    if clause.position is not None:
        yield from [("too early", 0)] * (clause.position[0] > 1) + [("too late", 0)] * (clause.position[1] < WINDOW - 1)
    if clause.repeat:
        yield from ((what, 0) for what in ("new pair", "other first", "other second"))


PATTERNS = 1.1         # firing patterns of a unit in a thousand tokens of a corpus
NEARLY = 1.3           # what is nearly its pattern, over all ways of failing
NEVER = 0.5            # its pattern with a forbidden word, which nothing else can show; the most of any way of failing
CUT = 1.6              # times as many of long patterns, which the edges of windows cut more often
DOCUMENT = 250         # tokens


@dataclass(frozen=True)
class Case:
    """A window (the sink first), a position in it, and whether the unit fires there.

    way: what was done. Cases of one way of failing differ from firing ones in one condition of the rule.
    """

    way: str
    ids: tuple[int, ...]
    position: int
    fires: bool


@dataclass(frozen=True, eq=False)
class AnswerKey:
    """A model, and for each planted unit the truth about it, which holds in windows of WINDOW tokens."""

    seed: int
    shape: str
    units: tuple[PlantedUnit, ...]
    subject: Subject

    def save(self, folder: Path) -> Path:
        """Writes model and tokenizer as a folder that `Subject.load` takes."""
        self.subject.model.save_pretrained(folder)
        self.subject.tokenizer.save_pretrained(folder)
        return folder

    # The corpus

    def documents(self, seed: int = 0, tokens: int = 150_000) -> list[str]:
        """About so many tokens of English sentences in a new order, with each rule's pattern put in between words.

        Of a unit, PATTERNS firing patterns a thousand tokens and NEARLY that fail, in as many documents as there are.
        A window can cut a pattern in two, which then is another way to fail. Rules about any token, of position or
        repeated pairs, match often in plain text and get no patterns. Of hidden sets, only what may be seen is used.
        """
        rng = random.Random(f"{self.seed} {self.shape} corpus {seed} {tokens}")
        inserts: list[list[list[int]]] = [[] for _ in range(max(1, tokens // DOCUMENT))]
        for unit in self.units:
            homes = itertools.cycle(rng.sample(inserts, len(inserts)))
            for made in self._patterns(unit, rng, tokens):
                next(homes).append(made)
        deck: list[tuple[int, ...]] = []
        return [self._document(rng, mine, deck) for mine in inserts]

    def _patterns(self, unit: PlantedUnit, rng: random.Random, tokens: int) -> Iterator[list[int]]:
        """Every pattern that a corpus of this size holds for a unit."""
        if unit.rule is None or not all(clause.at.ids for clause in unit.rule.clauses):
            return
        makes = _Patterns(rng, unit.rule, language().flows[0], unit.unseen)
        more = max(map(_lost, unit.rule.clauses)) * tokens / 1000
        holds, fails = makes.holds(), makes.fails()
        rates = {way: PATTERNS / len(holds) for way in holds}
        rates |= {way: NEVER if way[1] == "forbidden" else min(NEVER, NEARLY / len(fails)) for way in fails}
        for way, rate in rates.items():
            yield from (makes.pattern(way)[0] for _ in range(round(rate * more)))

    def _document(self, rng: random.Random, inserts: list[list[int]], deck: list[tuple[int, ...]]) -> str:
        """Sentences off the deck until the document is full, with the patterns put in before words."""
        known = language()
        ids: list[int] = []
        starts: list[int] = []
        room = DOCUMENT - sum(map(len, inserts))
        while len(ids) < room or len(starts) < 2 * len(inserts):
            if not deck:
                deck += rng.sample(known.shown, len(known.shown))
            ids += deck.pop()
            starts = [i for i, token in enumerate(ids) if known.begins(token)]
        for place, made in sorted(zip(rng.sample(starts, len(inserts)), inserts, strict=True), reverse=True):
            ids[place:place] = made
        return str(known.tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()

    def write(self, folder: Path, seed: int = 0, tokens: int = 150_000) -> Path:
        """The documents as a file that `load_corpus` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "planted.jsonl"
        rows = [{"text": text, "name": f"planted/{n}"} for n, text in enumerate(self.documents(seed, tokens))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    # The truth test

    def fresh(self, unit: PlantedUnit, seed: int = 0, n: int = 20) -> list[Case]:
        """n windows of each way to fire, n of each way of failing, and n of plain text where the unit is silent.

        Sentences, and of hidden sets most members, are such as no corpus of this key shows. Each label is what the
        window was built for, and what the true rule says of it.
        """
        rng = random.Random(f"{unit.id} fresh {seed}")
        plain = [self._plain(rng, unit.rule) for _ in range(n)]
        if unit.rule is None:
            return plain
        makes = _Patterns(rng, unit.rule, language().flows[1])
        wanted = [(way, True) for way in makes.holds()] + [(way, False) for way in makes.fails()]
        return [self._case(makes, way, fires) for way, fires in wanted for _ in range(n)] + plain

    def _case(self, makes: _Patterns, way: Way, fires: bool) -> Case:
        for _ in range(200):
            ids, at = makes.pattern(way)
            position = _stand(makes, way, at, len(ids))
            before = makes.stretch(position - at - 1)
            after = makes.stretch(makes.rng.randint(0, WINDOW - 1 - len(before) - len(ids)))
            window = (self.subject.sink, *before, *ids, *after)
            # The text around a pattern can by chance hold a part of it.
            if bool(makes.rule.predict(Tokens.of(language(), window))[position]) == fires:
                return Case(f"{way[1]} {way[2]}, clause {way[0]}", window, position, fires)
        raise AssertionError(f"no window was found in which {way} of the rule {makes.rule} makes it {fires}")

    def _plain(self, rng: random.Random, rule: Rule | None) -> Case:
        flow = language().flows[1]
        while True:
            start, position = rng.randrange(len(flow) - WINDOW), rng.randrange(1, WINDOW)
            window = (self.subject.sink, *flow[start : start + WINDOW - 1])
            if rule is None or not rule.predict(Tokens.of(language(), window))[position]:
                return Case(PLAIN, window, position, False)

    def recovered(self, rule: Rule | None, unit: PlantedUnit, seed: int = 0, n: int = 20) -> float:
        """Balanced accuracy of a candidate rule on the fresh windows of a unit: it says "fires" where ŷ > 0.

        The mean of two shares: of firing windows that it calls firing, each way to fire counting the same, and of
        silent ones that it calls silent, each way of failing counting the same. No rule is worth .5, as is one that
        says the same everywhere. A unit that fires at the sink alone has no firing window: there the share of silent
        ones decides, so that no rule is the right one and worth 1.
        """
        cases = self.fresh(unit, seed, n)
        said = np.zeros(len(cases), dtype=np.bool_)
        if rule is not None:
            text = Text.of(self.subject, [case.ids for case in cases])
            said = rule.predict_flat(text)[text.starts[:-1] + [case.position for case in cases]] > 0
        right: dict[tuple[bool, str], list[bool]] = {}
        for case, fires in zip(cases, said.tolist(), strict=True):
            right.setdefault((case.fires, case.way), []).append(fires == case.fires)
        sides = [[np.mean(hits) for (fires, _), hits in right.items() if fires == side] for side in (True, False)]
        return float(np.mean([np.mean(shares) for shares in sides if shares]))


def _lost(clause: Clause) -> float:
    """How many patterns of a clause it takes for one that lies in one window, and where it must."""
    if clause.position is not None:
        return WINDOW / (clause.position[1] - clause.position[0])
    return CUT if clause.repeat or any(near.high > REACH for near in clause.need) else 1.0


def _stand(makes: _Patterns, way: Way, at: int, size: int) -> int:
    """A position for the token in question, at which the whole pattern is in the window and its own condition holds."""
    low, high = makes.rule.clauses[way[0]].position or (1, WINDOW - 1)
    low, high = {"too early": (1, low - 1), "too late": (high + 1, WINDOW - 1)}.get(way[1], (low, high))
    return makes.rng.randint(max(low, at + 1), min(high, WINDOW - size + at))


def make_key(seed: int, shape: str, count: int) -> AnswerKey:
    """A model of a shape, "gpt2" or "llama", with `count` units whose rules are drawn from the seed.

    Raises Refused for another shape, or for more units than a model holds.
    """
    if shape not in _SHAPES:
        raise Refused(f"{shape!r} is no shape that can be planted; choose one of {', '.join(_SHAPES)}.")
    if not 1 <= count <= MOST:
        raise Refused(f"{count} units do not fit in one model; ask for 1 to {MOST}.")
    name = f"planted-{shape}-{seed}"
    units = _draw_units(seed, shape, count, name)
    subject = Subject.wrap(plant(shape, units, seed), language().tokenizer, name)
    return AnswerKey(seed, shape, tuple(units), subject)


__all__ = ["AnswerKey", "Case", "PlantedUnit", "families", "language", "make_key", "plant"]
