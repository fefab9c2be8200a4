"""The cheapest subject there is: each neuron fires on one made-up word, so that a night of thousands is soon over.

Its one layer reads the token alone: attention writes nothing, and a neuron's reader is the embedding of its word. A
scripted model plans: what it answers depends on the request alone, so that a request made again is answered alike.
"""

import json
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..testing import CallTool, Step

WORDS, DOCUMENTS, LENGTH = 300, 200, 20     # words of a document: LENGTH ± 5
WIDTH = 64                                  # of the stream: words are far apart in it
LOUD, QUIET = 1.4, 0.01                     # a neuron's reader, and what it writes
SITE = "0-mlp"


@dataclass(frozen=True)
class Made:
    """A saved model and its corpus, as `lamplighter run` takes them, and the units to ask for."""

    model: str
    corpus: str
    units: list[str]

    @property
    def arguments(self) -> list[str]:
        """The options of a run over all of it."""
        return ["--model", self.model, "--corpus", self.corpus, "--units", ",".join(self.units)]


def make_subject(folder: Path, units: int, seed: int) -> Made:
    """Writes model and corpus; neuron k fires on word k mod WORDS, so that units at work together differ."""
    draw = random.Random(seed)
    letters = "bdfgklmnprstvz"
    words = draw.sample(["".join(one) for one in product(letters, "aeiou", letters)], WORDS)
    tokenizer = _tokenizer(words)
    ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0] for word in words]
    model, corpus = folder / "model", folder / "corpus"
    _model(len(tokenizer), [ids[k % WORDS] for k in range(units)], seed).save_pretrained(model)
    tokenizer.save_pretrained(model)
    corpus.mkdir()
    texts = [" ".join(draw.choices(words, k=LENGTH + draw.randint(-5, 5))) for _ in range(DOCUMENTS)]
    rows = [json.dumps({"text": text, "name": f"made/{n}"}) for n, text in enumerate(texts)]
    (corpus / "made.jsonl").write_text("\n".join(rows), "utf-8")
    return Made(str(model), str(corpus), [f"{SITE}/{k}" for k in range(units)])


def _tokenizer(words: list[str]) -> Any:
    """Byte-level, in which each word with a blank before it is one token."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=8 * len(words), special_tokens=["<s>"], initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator([" " + " ".join(words)] * 2, trainer)
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=tokenizer, bos_token="<s>")


def _model(vocabulary: int, reads: list[int], seed: int) -> Any:
    """A llama of one layer whose neuron k reads the token reads[k] and whispers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=len(reads), max_position_embeddings=128, initializer_range=0.3, bos_token_id=0,
        eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    made: Any = AutoModelForCausalLM
    model = made.from_config(config, dtype=torch.float32).requires_grad_(False)
    table, block = model.model.embed_tokens.weight, model.model.layers[0]
    table.normal_()
    block.self_attn.o_proj.weight.zero_()
    readers = LOUD * torch.nn.functional.normalize(table[reads], dim=1)
    block.mlp.gate_proj.weight.copy_(readers)
    block.mlp.up_proj.weight.copy_(readers)
    block.mlp.down_proj.weight.mul_(QUIET)
    return model


def answer(body: dict[str, Any]) -> Step:
    """What the scripted model says to a request: first a text is read, then the first candidate is handed in."""
    messages = body["messages"]
    opening = max(n for n, message in enumerate(messages) if message["role"] == "user")
    if opening == len(messages) - 1:
        return CallTool("activate", {"why": "what it does on a plain text", "text": "the end of the year"})
    candidate = "A" if "\nA: " in messages[opening]["content"] else "none"
    return CallTool("submit", {"why": "", "candidate": candidate, "sentence": "fires on what A says"})


__all__ = ["Made", "answer", "make_subject"]
