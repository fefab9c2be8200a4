"""An answer key that was trained, not set: a two-layer Llama that learned induction, and a neuron that shows it.

The hand-set models of `plant.py` find a repeated pair in a way that we chose. Here gradient descent chooses. A window
holds tokens of a small set, so that each comes several times with other neighbours, and some stretches twice, at random
offsets and lengths: with one offset a rotary model would learn where to copy from instead of what. (On how induction
heads form: Olsson et al., 2022, "In-context Learning and Induction Heads".) Learned at once:

    copying     the token behind a repeated pair, by cross-entropy: only the pair tells it
    the unit    neuron 0 of MLP 1, gated: 1 at the second token of a pair that stood in the window before, else 0
    looking     linear readings, dropped afterwards, of the two tokens before from the stream after block 0

Embeddings are random signs and are not trained, so what is learned holds for every token of the vocabulary.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..store.records import Refused
from ..tools.measures import WINDOW
from ..tools.rules import Clause, Matcher, Rule
from ..tools.subject import Subject
from ..tools.units import UnitId
from .language import VOCABULARY, language
from .plant import PlantedUnit
from .planted import RECOVERED, AnswerKey

SITE = "1-mlp"
RULE = Rule((Clause(Matcher(cls="any"), "any", repeat=True),))
STEPS, ROWS, RATE = 800, 32, 4e-3
DIMENSIONS, CODE, HEADS, HEAD, WIDTH = 160, 48, 4, 96, 16
KINDS = 32             # different tokens of a window
STRETCHES = 2          # that come twice, of 3 to 11 tokens
COPYING, UNIT = 0.3, 3.0   # weights of the losses beside that of looking


@dataclass(frozen=True)
class Batch:
    """ids [B, T], the sink first; repeats [B, T]: whether the pair that ends there stood in the window before."""

    ids: Tensor
    repeats: Tensor


def trained_key(seed: int, steps: int = STEPS, tell: Callable[[int, int], None] = lambda done, all: None) -> AnswerKey:
    """Trains one model with one unit. Raises Refused if its unit does not follow the rule as a hand-set one would."""
    key = train(seed, steps, tell)
    obeyed = key.obeyed(key.units[0])
    if obeyed < RECOVERED:
        raise Refused(f"{key.units[0].id} follows its rule at {obeyed:.3f} only; train it with more steps.")
    return key


def train(seed: int, steps: int = STEPS, tell: Callable[[int, int], None] = lambda done, all: None) -> AnswerKey:
    """The same, however well the unit has learned its rule."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _untrained()
        looking = nn.Linear(DIMENSIONS, 2 * CODE, bias=False)
    _learn(model, looking, random.Random(f"{seed} trained"), steps, tell)
    name = f"trained-llama-{seed}"
    unit = PlantedUnit(UnitId(name, SITE, 0), "repeat, trained", RULE)
    subject = Subject.wrap(model.requires_grad_(False).eval(), language().tokenizer, name)
    return AnswerKey(seed, "trained", (unit,), subject)


def _untrained() -> Any:
    """Random weights; the embedding holds a code of signs, a flag of the sink and a constant, and is not trained."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=DIMENSIONS, intermediate_size=WIDTH, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=HEAD, max_position_embeddings=2 * WINDOW,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=None,
        initializer_range=DIMENSIONS**-0.5,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        embed = model.model.embed_tokens.weight.requires_grad_(False).zero_()
        embed[1:, :CODE] = torch.randn(VOCABULARY - 1, CODE).sign()
        embed[0, CODE] = 5.0
        embed[:, CODE + 1] = 2.0
        model.model.norm.weight.fill_(0.2)       # logits of a code against itself begin at about 10
    return model


def _learn(model: Any, looking: nn.Linear, rng: random.Random, steps: int, tell: Callable[[int, int], None]) -> None:
    seen: dict[str, Tensor] = {}
    first, last = model.model.layers[0], model.model.layers[1].mlp.down_proj
    hooks = [
        first.register_forward_hook(lambda _, __, out: seen.update(stream=out if torch.is_tensor(out) else out[0])),
        last.register_forward_pre_hook(lambda _, given: seen.update(neurons=given[0])),
    ]
    learned = [*(p for p in model.parameters() if p.requires_grad), *looking.parameters()]
    optimiser = torch.optim.AdamW(learned, weight_decay=0.0, betas=(0.9, 0.98))
    for step in range(steps):
        tell(step, steps)
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
        made = batch(rng)
        out = model.model(made.ids).last_hidden_state
        loss = _loss(model.model.embed_tokens.weight, made, out, looking(seen["stream"]), seen["neurons"][..., 0])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
    for hook in hooks:
        hook.remove()


def _loss(embed: Tensor, made: Batch, out: Tensor, looked: Tensor, unit: Tensor) -> Tensor:
    goes_on = made.repeats[:, 1:] & made.repeats[:, :-1]
    copying = nn.functional.cross_entropy(out[:, :-1][goes_on] @ embed.T, made.ids[:, 1:][goes_on])
    silent = ~made.repeats
    silent[:, 0] = False
    wrong = (unit - made.repeats.float()).square()
    shown = wrong[made.repeats].mean() + wrong[silent].mean() + 0.2 * unit[:, 0].square().mean()
    codes = embed[:, :CODE]
    looks = sum(
        (looked[:, k:, (k - 1) * CODE : k * CODE] - codes[made.ids[:, :-k]]).square().mean() for k in (1, 2)
    )  # fmt: skip
    loss: Tensor = COPYING * copying + UNIT / 2 * shown + looks
    return loss


def batch(rng: random.Random, rows: int = ROWS) -> Batch:
    """Windows in which stretches come twice, and of any pair its tokens elsewhere."""
    made = []
    for _ in range(rows):
        kinds = rng.choices(range(1, VOCABULARY), k=KINDS)
        ids = [0, *rng.choices(kinds, k=WINDOW - 1)]
        for _ in range(STRETCHES):
            size = rng.randint(3, 11)
            start = rng.randrange(1, WINDOW - 2 * size)
            again = rng.randrange(start + size, WINDOW - size + 1)
            ids[again : again + size] = ids[start : start + size]
        made.append(ids)
    ids_ = torch.tensor(made)
    pairs = ids_[:, 1:-1] * VOCABULARY + ids_[:, 2:]     # those that begin behind the sink
    before = torch.ones(pairs.shape[1], pairs.shape[1], dtype=torch.bool).tril(-1)
    repeats = torch.zeros_like(ids_, dtype=torch.bool)
    repeats[:, 2:] = ((pairs[:, :, None] == pairs[:, None, :]) & before).any(-1)
    return Batch(ids_, repeats)


__all__ = ["RULE", "SITE", "Batch", "batch", "train", "trained_key"]
