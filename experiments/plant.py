"""From rules to weights: a real GPT-2 or Llama whose neurons fire by rules of the grammar of `tools/rules.py`.

How a rule becomes weights. Every dimension of the stream has one meaning, and the constant one is so large that the
norms divide by nearly the same number everywhere. Then:

    attention 0   looks back by distance: heads copy which sets the token k places before is in, k = 1 to 4
    MLP 0         "somewhere from i to j tokens before", and, where there are no position embeddings, positions
    attention 1   looks back by content: an earlier copy of this pair of tokens, a word anywhere in the window
    MLP 1         one neuron a clause: all that it needs, and nothing that it must not have, as a threshold
    MLP 2         the planted units, each an OR of its clauses, among neurons that follow no rule
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..store.records import Refused
from ..tools.measures import WINDOW
from ..tools.rules import Clause, Matcher, Near, Rule
from ..tools.units import UnitId
from .language import VOCABULARY, language

SITE = "2-mlp"
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
SHAPES: dict[str, type[_Shape]] = {"gpt2": _Gpt2, "llama": _Llama}


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
    built = SHAPES[shape](plan)
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


__all__ = ["REACH", "SHAPES", "SITE", "WIDTH", "PlantedUnit", "plant"]
