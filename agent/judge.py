"""The judge: a language model that reads an explanation's sentence and predicts (`tools/judged.py` says what and why).

Each question is one request of its own: the instructions, worked examples about other neurons (small models copy the
texts back without them), the sentence, and up to ten texts. Texts stand numbered in “…” on one line and can never end
their quotation. An answer that cannot be read is asked for again in halves, down to single texts. Equal questions make
equal requests, so that a replay costs nothing.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from .. import prompts
from ..tools.judged import EXPECTED, INTEGERS, Unanswered, Written
from ..tools.snippets import Marked
from .brief import plain
from .llm import UNUSABLE, Capabilities, Client, Later, LLMError, Message, OutOfBudget, Reply, Stamps, json_object

TEXTS = 10             # in one request
LIKELIEST = 20         # tokens whose log-probabilities are asked for in each place

_DIGIT = re.compile(r'"(\d+)"\s*:\s*(\d)')


class LLMJudge:
    """A `Judge` on one endpoint. Where the endpoint keeps to schemas, answers are held to one.

    `values` are expectations over digits where it gives log-probabilities, else plain integers. Raises Unanswered where
    the endpoint gives no reply, Later where it asks for a long wait, OutOfBudget where the run's limit is reached.
    """

    def __init__(self, client: Client, can: Capabilities, stamps: Stamps | None = None) -> None:
        self._client, self._can = client, can
        self._stamps: Stamps = {} if stamps is None else stamps

    @property
    def name(self) -> str:
        """Model, place, and the beginning of the digest of all that it is asked with."""
        return f"llm:{self._client.model}@{self._client.endpoint.label}:{prompts.judge_digest()[:12]}"

    @property
    def form(self) -> str:
        return EXPECTED if self._can.logprobs else INTEGERS

    def fires(self, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        return self._each("detect", explanation, [_quoted(text) for text in texts])

    def marks(self, explanation: str, texts: Sequence[Marked]) -> list[bool | None]:
        return self._each("fuzz", explanation, [shown(one) for one in texts])

    def values(self, explanation: str, texts: Sequence[Sequence[str]]) -> list[list[float] | None]:
        return [self._values(explanation, tokens) for tokens in texts]

    def writes(self, explanation: str, count: int) -> Written | None:
        """Fewer texts than asked for are taken as they are; an answer that cannot be read is not asked for again:
        a smaller number of texts would bear no score."""
        texts = {"type": "array", "items": {"type": "string"}, "minItems": count, "maxItems": count}
        said = prompts.render("judge_write", explanation=_sentence(explanation), count=str(count))
        reply = self._ask("generate", said, _object({"fires": texts, "silent": texts}), 100 + 100 * count)
        found = None if reply is None else _inner(reply.text)
        lists = [] if found is None else [found.get("fires"), found.get("silent")]
        if not all(isinstance(one, list) and all(isinstance(t, str) for t in one) for one in lists) or not lists:
            return None
        firing, silent = (tuple(text for text in one or [] if text.strip())[:count] for one in lists)
        return Written(firing, silent)

    # Asking

    def _each(self, name: str, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        """A yes or no to each text, ten at a time."""
        said: list[bool | None] = []
        for start in range(0, len(texts), TEXTS):
            said += self._halved(name, explanation, texts[start : start + TEXTS])
        return said

    def _halved(self, name: str, explanation: str, texts: Sequence[str]) -> list[bool | None]:
        schema = _object({str(n): {"type": "boolean"} for n in range(1, len(texts) + 1)})
        reply = self._ask(name, _asked(explanation, texts), schema, 30 + 12 * len(texts))
        said = None if reply is None else _numbered(reply.text, len(texts), lambda value: isinstance(value, bool))
        if said is not None:
            return list(said)
        if len(texts) == 1:
            return [None]
        middle = len(texts) // 2
        return [one for half in (texts[:middle], texts[middle:]) for one in self._halved(name, explanation, half)]

    def _values(self, explanation: str, tokens: Sequence[str]) -> list[float] | None:
        """A value for each token. A text is one question: a part of it would be read without what stands before."""
        schema = _object({str(n): {"type": "integer", "enum": list(range(10))} for n in range(1, len(tokens) + 1)})
        top = LIKELIEST if self._can.logprobs else None
        question = _asked(explanation, [_quoted(token) for token in tokens])
        reply = self._ask("simulate", question, schema, 30 + 12 * len(tokens), top)
        said = None if reply is None else _numbered(reply.text, len(tokens), _is_digit)
        if reply is None or said is None:
            return None
        return [float(value) for value in said] if top is None else expected(reply, len(tokens))

    def _ask(
        self, name: str, question: str, schema: dict[str, Any], max_tokens: int, top_logprobs: int | None = None
    ) -> Reply | None:
        """The reply to one question, None where the model's answer does not come to an end."""
        messages = [*_before(name), {"role": "user", "content": question}]
        try:
            return self._client.ask(
                "judge", messages, max_tokens=max_tokens, schema=schema if self._can.schema else None,
                top_logprobs=top_logprobs, **self._stamps,
            )  # fmt: skip
        except (Later, OutOfBudget):
            raise
        except LLMError as error:
            if error.kind in (*UNUSABLE, "empty"):
                return None
            raise Unanswered(str(error)) from error


# What is said


def shown(text: Marked) -> str:
    """A text on one line in quotation marks, the marked tokens between « and »."""
    marks = set(text.marks)
    tokens = (f"«{plain(one)}»" if i in marks else plain(one) for i, one in enumerate(text.snippet.tokens))
    return f"“{''.join(tokens)}”"


def _quoted(text: str) -> str:
    return f"“{plain(text)}”"


def _sentence(explanation: str) -> str:
    return " ".join(plain(explanation).split())


def _asked(explanation: str, texts: Sequence[str]) -> str:
    numbered = "\n".join(f"{number}: {text}" for number, text in enumerate(texts, 1))
    return prompts.render("judge_text", explanation=_sentence(explanation), texts=numbered)


def _before(name: str) -> list[Message]:
    """The instructions and the worked examples."""
    messages: list[Message] = [{"role": "system", "content": prompts.render(name)}]
    for shot in prompts.judge_shots(name):
        answers = shot["answers"]
        if name == "generate":
            count = str(len(answers["fires"]))
            question = prompts.render("judge_write", explanation=shot["explanation"], count=count)
        else:
            question = _asked(shot["explanation"], [f"“{text}”" for text in shot["texts"]])
            answers = {str(number): answer for number, answer in enumerate(answers, 1)}
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": json.dumps(answers, ensure_ascii=False)})
    return messages


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# What is heard


def _inner(text: str) -> dict[str, Any] | None:
    """The JSON object in a reply, which may have words around it; None where it is not one."""
    first, last = text.find("{"), text.rfind("}")
    return json_object(text[first : last + 1]) if first >= 0 else None


def _numbered(text: str, count: int, fits: Callable[[Any], bool]) -> list[Any] | None:
    """The answers 1 to `count`, None unless just these are there and each of them fits."""
    found = _inner(text)
    keys = [str(number) for number in range(1, count + 1)]
    if found is None or found.keys() != set(keys) or not all(fits(value) for value in found.values()):
        return None
    return [found[key] for key in keys]


def _is_digit(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9


def expected(reply: Reply, count: int) -> list[float] | None:
    """Σ d p(d) / Σ p(d) over the digits d that could have stood at each of the values 1 to `count` of a reply.

    Probabilities are those of the likeliest tokens in the digit's place that differ from the one that was said in the
    digit alone. None where the reply's tokens do not add up to its text, or no digit's probability is known.
    """
    joined = "".join(one.token for one in reply.weighed)
    begin, ends = joined.find(reply.text), list(accumulate(len(one.token) for one in reply.weighed))
    values: dict[int, float] = {}
    for match in _DIGIT.finditer(reply.text) if begin >= 0 and reply.text else ():
        place = begin + match.start(2)
        number = next(i for i, end in enumerate(ends) if end > place)
        mean = _mean_digit(reply, number, place - (ends[number] - len(reply.weighed[number].token)))
        if mean is not None:
            values[int(match[1])] = mean
    return [values[n] for n in range(1, count + 1)] if set(values) == set(range(1, count + 1)) else None


def _mean_digit(reply: Reply, number: int, at: int) -> float | None:
    """The expectation of the digit that is character `at` of a reply's token."""
    token = reply.weighed[number].token
    weights: dict[int, float] = {}
    for other, logprob in reply.weighed[number].likeliest:
        alike = len(other) == len(token) and (other[:at], other[at + 1 :]) == (token[:at], token[at + 1 :])
        if alike and other[at] in "0123456789":
            weights[int(other[at])] = math.exp(logprob)
    total = sum(weights.values())
    return sum(digit * weight for digit, weight in weights.items()) / total if total > 0 else None


__all__ = ["LLMJudge", "expected", "shown"]
