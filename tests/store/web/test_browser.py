"""The pages in a real browser: no error on the console, nothing that axe-core finds, all of it by keyboard."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = os.environ.get("LAMPLIGHTER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("LAMPLIGHTER_AXE")      # axe.min.js of axe-core, which is too large to keep here
PAGES = ["/", "/units", "/units/org/tiny/1-mlp/7", "/units/org/tiny/2-resid:sae/9", "/search?like=org/tiny/1-mlp/7",
         "/search?q=left", "/sql?q=select+unit+from+units", "/api/v1", "/review", "/agreement"]  # fmt: skip

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, running: tuple[str, int]) -> Iterator[Any]:
    """A page that was let in. `problems` has what its console said; its clipboard may be read."""
    with browser.new_context(viewport={"width": 360, "height": 800}, color_scheme="dark") as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        made = context.new_page()
        made.set_default_timeout(15_000)
        made.problems = []
        made.on("console", lambda said: said.type in ("error", "warning") and made.problems.append(said.text))
        made.on("pageerror", lambda error: made.problems.append(str(error)))
        made.goto(running[0])
        made.wait_for_url(f"http://127.0.0.1:{running[1]}/")
        yield made


def at(page: Any, path: str) -> Any:
    page.goto("/".join(page.url.split("/")[:3]) + path)
    return page


@pytest.mark.parametrize("path", PAGES)
def test_a_page_fits_and_says_nothing_on_the_console(page, path) -> None:
    at(page, path)
    wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wider) == 0, "nothing is wider than a phone"
    assert page.problems == []
    assert page.evaluate("typeof htmx") == "object"


def test_a_hostile_text_does_nothing(page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    at(page, "/units/org/tiny/2-resid:sae/9")
    page.wait_for_timeout(200)
    assert page.locator("main script, main img[src='x']").count() == 0
    assert page.problems == []


def test_the_policy_stops_a_script_that_got_in(page) -> None:
    at(page, "/")
    ran = page.evaluate(
        """() => { const made = document.createElement('script'); made.textContent = 'window.ran = true';
                   document.body.append(made); return Boolean(window.ran); }"""
    )
    assert ran is False
    assert "Content Security Policy" in page.problems[0]


def test_the_cookie_is_not_for_scripts(page) -> None:
    at(page, "/")
    assert page.evaluate("document.cookie") == ""


def test_units_by_keyboard(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.keyboard.press("j")
    page.wait_for_url("**/1-mlp/8-")
    page.keyboard.press("k")
    page.wait_for_url("**/1-mlp/7")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "jump"
    page.keyboard.type("org/tiny/1-mlp/8-j")
    assert page.input_value("#jump").endswith("8-j"), "no key acts while one types"
    page.fill("#jump", "org/tiny/1-mlp/8-")
    page.keyboard.press("Enter")
    page.wait_for_url("**/1-mlp/8-")


def test_keys_can_be_turned_off(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.click("#keys")
    page.keyboard.press("j")
    page.wait_for_timeout(200)
    assert page.url.endswith("1-mlp/7")
    page.reload()
    assert page.get_attribute("#keys", "aria-pressed") == "false"


def test_a_unit_is_copied_as_json(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.keyboard.press("c")
    page.wait_for_selector("#copied:text-is('copied')")
    assert '"fires on the word “left”"' in page.evaluate("navigator.clipboard.readText()")


def test_a_text_is_tried_in_place(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.fill("#text", "one two <b>three</b>")
    page.click("#try button")
    page.wait_for_selector("#tried .tok")
    assert page.locator("#tried .tok").count() == 3
    assert page.url.endswith("1-mlp/7")
    assert page.problems == []


def test_a_text_of_a_band_is_read_token_by_token_in_place(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.locator("#fires button").nth(1).click()
    page.wait_for_selector("#read-2-1 .tok")
    assert "".join(page.locator("#read-2-1 .tok").all_inner_texts()).startswith(" they turned")
    assert page.locator("#read-2-1 .tok sub").all_inner_texts() == ["25", "50"], "strength is told by number"
    assert page.url.endswith("1-mlp/7")
    assert page.problems == []


def test_neighbours_come_when_they_are_scrolled_to(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.locator("#neighbours").scroll_into_view_if_needed()
    page.wait_for_selector("#near .card")
    assert page.problems == []


def test_units_that_write_alike_come_when_they_are_asked_for(page) -> None:
    at(page, "/units/org/tiny/1-mlp/7")
    page.click("text=that write nearly the same")
    page.wait_for_selector("#written .card:has-text('1-mlp/8-')")
    assert page.url.endswith("1-mlp/7")
    assert page.problems == []
    at(page, "/units/org/tiny/2-resid:sae/9")
    page.click("text=that write nearly the same")
    page.wait_for_selector("#written .problem:has-text('has no write direction')")


def test_a_search_with_filters_by_keyboard(page) -> None:
    at(page, "/search")
    page.focus("[name=q]")
    page.keyboard.type("left numbers")
    page.click("summary")
    page.select_option("[name=sign]", "-1")
    page.focus("[name=q]")
    page.keyboard.press("Enter")
    page.wait_for_selector("main .card")
    assert page.locator("main .card h2").all_inner_texts() == ["org/tiny/1-mlp/8- unclear"]
    assert page.locator("main details").get_attribute("open") is not None
    assert page.problems == []


def test_all_of_it_without_scripts(browser, running) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(running[0])
        page.wait_for_url(f"http://127.0.0.1:{running[1]}/")
        page.click("text=1-mlp")
        page.click("text=1-mlp/7 >> visible=true")
        page.fill("#text", "one two")
        page.click("#try button")
        assert page.locator(".tok").count() == 2


def test_a_cookie_comes_along_a_link_from_elsewhere(browser, running, tmp_path: Path) -> None:
    """The address may be opened from another page, as a mail in a browser is."""
    (tmp_path / "mail.html").write_text(f'<a href="{running[0]}">pages</a>')
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"file://{tmp_path}/mail.html")
        page.click("a")
        page.wait_for_url(f"http://127.0.0.1:{running[1]}/")
        assert page.locator("h1").inner_text() == "What is known"


def entered(browser: Any, address: str, port: int) -> Any:
    page = browser.new_context().new_page()
    page.set_default_timeout(15_000)
    page.problems = []
    page.on("console", lambda said: said.type in ("error", "warning") and page.problems.append(said.text))
    page.goto(address)
    page.wait_for_url(f"http://127.0.0.1:{port}/")
    return page


def test_a_card_is_judged_by_keyboard(browser, serve, own) -> None:
    with serve(home=own) as (doors, port):
        page = at(entered(browser, doors.address("me"), port), "/review")
        first = page.inner_text("#card-name")
        assert page.locator("text=F1").count() == 0, "blind"
        page.keyboard.press("2")
        assert page.is_checked("[data-key='2']")
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.className") == "one-text"
        page.keyboard.press("r")
        page.wait_for_selector(f".last:has-text('{first}')")
        page.wait_for_selector("#card-name:focus")
        page.keyboard.press("u")
        page.wait_for_selector(f"#card-name:text-is('{first}')")
        page.keyboard.press("a")
        page.wait_for_selector(f".last:has-text('{first} accept')")
        page.keyboard.press("v")
        page.wait_for_selector("#behind .card")
        assert "0.80 [0.70, 0.90]" in page.inner_text("#behind")
        assert page.problems == []


def test_an_explanation_is_edited_by_keyboard(browser, serve, own) -> None:
    with serve(home=own) as (doors, port):
        page = at(entered(browser, doors.address("me"), port), "/review")
        page.keyboard.press("e")
        page.wait_for_selector("#sentence:focus")
        page.fill("#sentence", "fires on my words")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".last:has-text('edit')")
        assert page.problems == []


def test_two_people_get_no_card_twice_and_a_restart_loses_nothing(browser, serve, own) -> None:
    with serve(home=own, reviewers=["ann", "bob"], overlap=1) as (doors, port):
        pages = [at(entered(browser, doors.address(name), port), "/review") for name in ("ann", "bob")]
        cards = [page.inner_text("#card-name") for page in pages]
        assert len(set(cards)) == 2
    with serve(port=port, home=own, reviewers=["ann", "bob"], overlap=1):
        for page, card in zip(pages, cards, strict=True):
            page.reload()
            assert page.inner_text("#card-name") == card, "the same card, by the same cookie"
        pages[0].keyboard.press("a")
        pages[0].wait_for_selector(f".last:has-text('{cards[0]}')")
        assert pages[0].locator("#card-name").count() == 0 or pages[0].inner_text("#card-name") not in cards


@pytest.mark.skipif(AXE is None, reason="LAMPLIGHTER_AXE names no axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser, running, scheme) -> None:
    found = {}
    with browser.new_context(color_scheme=scheme, bypass_csp=True) as context:
        page = context.new_page()
        page.goto(running[0])
        page.wait_for_url(f"http://127.0.0.1:{running[1]}/")
        for path in PAGES:
            at(page, path).evaluate(Path(AXE).read_text("utf-8"))
            broken = page.evaluate("axe.run()")["violations"]
            found[path] = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in broken]
    assert found == {path: [] for path in PAGES}
