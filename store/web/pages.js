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

  const keys = {
    j: () => go("next"),
    k: () => go("prev"),
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
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const act = keys[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  const button_copy = find("#copy");
  if (button_copy) { button_copy.hidden = false; button_copy.addEventListener("click", copy); }
})();
