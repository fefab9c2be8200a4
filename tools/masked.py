"""A masked language model, which proposes words in the place of one."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..store.records import Refused
from . import models
from .forms import like
from .spelled import Span, Spelled
from .subject import Subject

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
            if other and same_kind(other, word) and other.casefold() not in own:
                found[like(other, word)] = None
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


def same_kind(other: str, word: str) -> bool:
    """Whether one could stand for the other: words for words, words or numbers for numbers, marks for marks."""
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
