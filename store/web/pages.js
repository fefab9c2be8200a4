// Keys, and the button that copies a unit as JSON. Every page is whole without this file.
"use strict";
(() => {
  const stored = () => { try { return localStorage.getItem("keys") !== "off"; } catch { return true; } };
  let on = stored();
  const find = (selector) => document.querySelector(selector);
  const go = (rel) => { const link = find(`main a[rel="${rel}"]`); if (link) location.href = link.href; };

  async function copy() {
    const told = find("#copied");
    try {
      const reply = await fetch(find("#json").href);
      if (!reply.ok) throw new Error(String(reply.status));
      await navigator.clipboard.writeText(JSON.stringify(await reply.json(), null, 2));
      told.textContent = "copied";
    } catch {
      told.textContent = "could not be copied; open the JSON instead";
    }
  }

  // The next or the previous text of a card; where there are none, the next unit.
  function move(step) {
    const texts = [...document.querySelectorAll(".one-text")];
    if (!texts.length) return go(step > 0 ? "next" : "prev");
    const at = texts.indexOf(document.activeElement);
    texts[Math.min(texts.length - 1, Math.max(0, at < 0 ? 0 : at + step))].focus();
  }

  const keys = {
    j: () => move(1),
    k: () => move(-1),
    c: () => { if (find("#copy")) copy(); },
    "/": () => find("#jump").focus(),
  };

  const button = find("#keys");
  const say = () => {
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "Keys are on" : "Keys are off";
    find(".key-list").hidden = !on;
  };
  find(".keys").hidden = false;
  say();
  button.addEventListener("click", () => {
    on = !on;
    try { localStorage.setItem("keys", on ? "on" : "off"); } catch { /* then it holds for this page */ }
    say();
  });
  document.addEventListener("keydown", (event) => {
    if (!on || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.repeat || event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]")) return;
    const act = keys[event.key];
    const pressed = find(`[data-key="${CSS.escape(event.key)}"]`);
    if (act) { event.preventDefault(); act(); } else if (pressed) { event.preventDefault(); pressed.click(); }
  });

  // Reviewing: whoever opens the edit types; a new card has the focus; a card in sight stays in hand.
  document.addEventListener("toggle", (event) => {
    if (event.target.matches(".edit[open]")) event.target.querySelector("textarea").focus();
  }, true);
  const desk = find("#desk");
  if (desk) {
    let item = find("#card [name=item]")?.value;
    new MutationObserver(() => {
      const now = find("#card [name=item]")?.value;
      if (now !== item) { item = now; find("#card-name")?.focus(); }
    }).observe(desk, { childList: true });
    const beat = async () => {
      const card = find("#card");
      if (!card || document.visibilityState !== "visible") return;
      const lost = find("#beat-lost");
      try {
        const told = await fetch("/review/beat", { method: "POST", body: new URLSearchParams({ item: card.item.value }),
          headers: { "hx-request": "true" } });
        lost.hidden = told.ok;
        if (!told.ok) lost.textContent = "This card is not in your hands any more; reload the page for another.";
      } catch {
        lost.hidden = false;
        lost.textContent = "The server does not answer; what was said before is kept.";
      }
    };
    setInterval(beat, 1000 * Number(find("#card")?.dataset.beat || 60));
    document.addEventListener("visibilitychange", beat);
  }

  const button_copy = find("#copy");
  if (button_copy) { button_copy.hidden = false; button_copy.addEventListener("click", copy); }
})();
