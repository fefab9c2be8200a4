"""Reviewing in real browsers, by keyboard: how long until the next card, who is given what, and what a kill loses."""

import importlib.util
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..agent.config import Home
from ..store.findings import drain
from ..store.records import Review
from .report import Claim, Part, Progress
from .store_made import at_work, made_home
from .store_search import UNITS
from .store_served import READY, Served, served
from .store_times import Times
from .store_writer import RATE, writing

CARDS, SHARED = 80, 30        # that one person reviews alone, and each of two beside the other
BAR = 200.0
PEOPLE = ("ann", "bob")
PATIENCE = 120_000            # milliseconds until a card is there; the first may take READY
_WATCH = """() => {
  const item = () => document.querySelector('#card [name=item]')?.value ?? '';
  let pressed = 0, before = item();
  window.turned = [];
  document.addEventListener('keydown', () => { pressed = performance.now(); before = item(); }, true);
  new MutationObserver(() => {
    if (!pressed || item() === before) return;
    const from = pressed;
    pressed = 0;
    requestAnimationFrame(() => setTimeout(() => window.turned.push(performance.now() - from)));
  }).observe(document.body, { childList: true, subtree: true });
}"""


@dataclass
class Seat:
    """A person in a browser of their own. said: the verdict on each card, in order; problems: of the console."""

    name: str
    page: Any
    said: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def item(self) -> str:
        """The explanation on the card in hand, or nothing."""
        card = self.page.locator("#card [name=item]")
        return str(card.first.input_value()) if card.count() else ""

    def watch(self) -> None:
        """Has the page time what follows on a key."""
        self.page.evaluate(_WATCH)

    def judge(self, key: str, verdict: str) -> float:
        """Presses a key and waits for the next card to be painted; seconds."""
        item, many = self.item, self.page.evaluate("window.turned.length")
        self.page.keyboard.press(key)
        self.page.wait_for_function("many => window.turned.length > many", arg=many, timeout=PATIENCE)
        self.said.append((item, verdict))
        return float(self.page.evaluate("window.turned.at(-1)")) / 1000


def lacking() -> str | None:
    """Why there is no browser to review in, if so."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None if chromium() else "there is no Chromium"


def chromium() -> str | None:
    """The browser that is there: LAMPLIGHTER_CHROMIUM, else Debian's."""
    return os.environ.get("LAMPLIGHTER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def review(folder: Path, seed: int, size: float, tell: Progress) -> Part:
    """One person, then two at once with a server that is killed on the way, while results are written."""
    if why := lacking():
        nothing = [{"what": "review in a browser", "is": f"not measured: {why}"}]
        return {"review": nothing}, [Claim("review card to next card: p95 ms", None, 0, f"at most {BAR:g}", None)]
    units = max(1_000, round(UNITS * size))
    home = at_work(made_home(folder, units, seed, tell), folder)
    try:
        with writing(home, units, seed) as written:
            alone = max(5, round(CARDS * min(1.0, 10 * size)))
            tables, claims = reviewed(home, seed, alone, max(4, round(SHARED * min(1.0, 10 * size))), tell)
        tables["around review"] += [
            {"what": "explained units", "is": units},
            {"what": "results written a second", "is": written["results a second"]},
        ]
        steady = written["results a second"]
        claims.append(Claim("results written a second meanwhile (review)", steady, written["moved"], f"about {RATE}",
                            steady >= 0.8 * RATE))  # fmt: skip
        return tables, claims
    finally:
        home.work.close()
        shutil.rmtree(home.path, ignore_errors=True)


def reviewed(home: Home, seed: int, alone: int, shared: int, tell: Progress) -> Part:
    """One person reviews `alone` cards; then two review `shared` each, and the server is killed after half of them."""
    from playwright.sync_api import sync_playwright

    first, one, both = Times("first card"), Times("review card to next card"), Times("… of two at once")
    asked = [part for name in PEOPLE for part in ("--reviewer", name)] + ["--overlap", "1"]
    with ExitStack() as stack:
        server = stack.enter_context(served(home.path, *asked))
        playwright = stack.enter_context(sync_playwright())
        seats = [stack.enter_context(_seated(playwright, server, name)) for name in PEOPLE]
        ann = seats[0]
        first.of(lambda: _open(ann, server, 1000 * READY))
        for number in range(alone):
            one.seconds.append(ann.judge("a" if number % 2 else "r", "accept" if number % 2 else "reject"))
            tell("cards", number + 1, alone + 2 * shared)
        _open(seats[1], server, PATIENCE)
        together = _together(seats, shared // 2, both, tell)
        held = [seat.item for seat in seats]
        problems = [problem for seat in seats for problem in seat.problems]
        ann.page.keyboard.press("s")       # said, and nobody knows whether it was heard
        server.kill()
        again = stack.enter_context(served(home.path, *asked, port=server.port))
        for seat in seats:
            _open(seat, again, 1000 * READY)
            seat.problems.clear()          # that the server did not answer is said on the console
        kept = [seat.item for seat in seats]
        together += _together(seats, shared - shared // 2, both, tell)
    drain(home.work, home.findings)
    recorded = Counter((row.reviewer, row.hypothesis, row.verdict) for row in home.findings.read(Review))
    said = Counter((seat.name, *one) for seat in seats for one in seat.said)
    unknown = (ann.name, held[0], "skip")
    heard = recorded.pop(unknown, 0)
    lost, twice = sum((said - recorded).values()), sum((recorded - said).values())
    given = Counter(item for seat in seats for item, _ in seat.said)
    problems += [problem for seat in seats for problem in seat.problems]
    claims = [
        one.claim(seed, BAR),
        Claim("cards given to two at once", float(together), 2 * shared, "0", together == 0),
        Claim("cards reviewed twice", float(sum(n > 1 for n in given.values())), len(given), "0",
              max(given.values()) == 1),
        Claim("reviews lost or twice over a kill -9", float(lost + twice), sum(said.values()), "0", lost + twice == 0),
        Claim("cards out of hand after a kill -9", float((kept[1] != held[1]) + ((kept[0] == held[0]) == bool(heard))),
              2, "0", kept[1] == held[1] and (kept[0] == held[0]) != bool(heard)),
        Claim("console errors", float(len(problems)), sum(said.values()), "0", not problems),
    ]  # fmt: skip
    first.worked.clear()
    rows = [one.row(seed, BAR), both.row(seed), first.row(seed)]
    around = [{"what": "said at the moment of the kill", "is": "recorded" if heard else "not recorded, still in hand"},
              {"what": "console", "is": problems[0] if problems else "silent"}]  # fmt: skip
    return {"review": rows, "around review": around}, claims


def _together(seats: Sequence[Seat], many: int, times: Times, tell: Progress) -> int:
    """Two people in turn; how often both had the same card in hand."""
    same = 0
    for number in range(many):
        same += len({seat.item for seat in seats}) < len(seats)
        for seat in seats:
            times.seconds.append(seat.judge("a", "accept"))
        tell("cards of two", number + 1, many)
    return same


def _open(seat: Seat, server: Served, patience: float) -> None:
    """The card in hand, else the next, in the person's browser."""
    seat.page.goto(f"http://127.0.0.1:{server.port}/review", timeout=patience)
    seat.page.wait_for_selector("#card [name=item]", state="attached", timeout=patience)
    seat.watch()


@contextmanager
def _seated(playwright: Any, server: Served, name: str) -> Iterator[Seat]:
    """A browser that was let in by the address of its own."""
    browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
    try:
        page = browser.new_context().new_page()
        seat = Seat(name, page)
        page.on("console", lambda said: seat.problems.extend([said.text] if said.type == "error" else []))
        page.on("pageerror", lambda error: seat.problems.append(str(error)))
        page.goto(server.addresses[name], timeout=1000 * READY)
        page.wait_for_url(f"http://127.0.0.1:{server.port}/", timeout=1000 * READY)
        yield seat
    finally:
        browser.close()


__all__ = ["chromium", "lacking", "review", "reviewed"]
