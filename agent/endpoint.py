"""Where the language model is: an OpenAI-compatible server, which one of its models, its key, and what it costs."""

import ipaddress
import math
import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..store.records import Refused

NO_KEY = "none"
EMBEDDED = "embedded"     # what ledger and errors call the embedded server

ROLES = ("llm", "judge")     # who is asked: the planner's model, and the judge's where it has one of its own
_SETTINGS = {"url": str, "model": str, "key": str, "usd_per_million_in": float, "usd_per_million_out": float}


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and the model on it that is asked.

    `url` ends where the client adds `/chat/completions`; one without a path gets `/v1`. `model` None is the only one
    that the server lists. `price` is in dollars per million tokens, in and out. `label` is what ledger and errors call
    it, by default the URL. `connect` gives URL and key anew before each request, for a server that starts when it is
    first needed. `patience`: how many times as long as from others a reply is waited for. Raises Refused for what is no
    such URL or key, and for a URL that could hold a secret.
    """

    url: str
    model: str | None = None
    key: str = field(default=NO_KEY, repr=False)
    price: tuple[float, float] | None = None
    label: str = ""
    connect: Callable[[], tuple[str, str]] | None = field(default=None, repr=False, compare=False)
    patience: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base(self.url))
        object.__setattr__(self, "label", self.label or self.url)
        if not re.fullmatch(r"[!-~]+", self.key):   # else a library would quote it in an error about headers
            raise Refused("the endpoint's key holds a blank or another character that no key has; correct it.")

    @classmethod
    def configured(cls, option: str | None, home: Path, role: str = "llm") -> "Endpoint | None":
        """The endpoint that somebody chose: `--endpoint`, else LAMPLIGHTER_LLM_URL, else [llm] in config.toml; or None.

        For the role `judge`: `--judge`, LAMPLIGHTER_JUDGE_URL, [judge]. LAMPLIGHTER_LLM_KEY and LAMPLIGHTER_LLM_MODEL
        go before those of the file, whose values belong to its own URL: a key is never sent to another server. OPENAI_*
        variables configure nothing, so that no money is spent by surprise. Raises Refused for a file that cannot be
        read as it stands.
        """
        prefix = f"LAMPLIGHTER_{role.upper()}"
        given = {name: os.environ.get(f"{prefix}_{name.upper()}") or None for name in ("url", "key", "model")}
        table = _settings(home / "config.toml", role)
        url = option or given["url"] or table.get("url")
        if url is None:
            return None
        own = table if table and _base(table["url"]) == _base(url) else {}
        price = (own["usd_per_million_in"], own["usd_per_million_out"]) if "usd_per_million_in" in own else None
        return cls(url, given["model"] or own.get("model"), given["key"] or own.get("key", NO_KEY), price)

    @classmethod
    def embedded(cls, model: str, connect: Callable[[], tuple[str, str]]) -> "Endpoint":
        """The embedded server, on whatever port it is: free, and slow where other work shares the processors."""
        return cls("http://127.0.0.1", model, price=(0.0, 0.0), label=EMBEDDED, connect=connect, patience=5.0)

    def address(self) -> tuple[str, str]:
        """(URL, key) to ask now."""
        if self.connect is None:
            return self.url, self.key
        url, key = self.connect()
        return _base(url), key

    def usd(self, model: str, tokens_in: int, cached: int, tokens_out: int) -> float | None:
        """What a call costs: by `price`, else by the public price of a model of this name, else 0 on this machine.

        None if none of these knows. The public prices come with a package, and nothing is fetched. An explicit price
        makes no difference for cached tokens.
        """
        from genai_prices import Usage, calc_price

        if self.price is not None:
            return (tokens_in * self.price[0] + tokens_out * self.price[1]) / 1e6
        try:
            usage = Usage(input_tokens=tokens_in, cache_read_tokens=cached, output_tokens=tokens_out)
            return float(calc_price(usage, model).total_price)
        except LookupError:
            return 0.0 if is_loopback(self.url) else None


def _base(url: str) -> str:
    """`scheme://host:port/path`. Raises Refused; a URL that may hold a secret is not quoted."""
    if re.search(r"[@?#]", url):
        raise Refused(
            "the endpoint's URL holds a user name, a query or a fragment; give scheme, host, port and path alone, "
            "and the key in LAMPLIGHTER_LLM_KEY."
        )
    try:
        parts = urlsplit(url.strip())
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise Refused(f"the endpoint {url!r} is no address; give one such as http://127.0.0.1:8080/v1.")
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/') or '/v1'}"


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _settings(path: Path, role: str) -> dict[str, Any]:
    """The table [llm] or [judge] of a config file, empty where there is none. Raises Refused; no value is quoted."""
    try:
        whole = tomllib.loads(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read ({error}); mend it or delete it.") from error
    table = whole.get(role, {})
    if not isinstance(table, dict):
        raise Refused(f"{role} in {path} is no table; write [{role}] and one setting a line below it.")
    unknown = [*(whole.keys() - set(ROLES)), *(f"{role}.{name}" for name in table.keys() - _SETTINGS.keys())]
    if unknown:
        raise Refused(f"{path} sets {min(unknown)}, which is no setting; [{role}] knows {', '.join(_SETTINGS)}.")
    for name, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        if not (number if _SETTINGS[name] is float else isinstance(value, str) and value):
            wanted = "a number, 0 or more" if _SETTINGS[name] is float else "a text"
            raise Refused(f"{name} under [{role}] in {path} must be {wanted}; correct it.")
    if table and "url" not in table:
        raise Refused(f"[{role}] in {path} names no url; add one such as url = \"http://127.0.0.1:8080/v1\".")
    if ("usd_per_million_in" in table) != ("usd_per_million_out" in table):
        raise Refused(f"[{role}] in {path} gives one price of two; set usd_per_million_in and usd_per_million_out.")
    return table
