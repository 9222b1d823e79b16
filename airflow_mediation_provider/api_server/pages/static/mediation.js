// The pages' script: applies the colours of the Airflow around them, shows times in its zone, refreshes parts, and opens
// links outside of the frame. Without this script they are plain pages with plain forms.
(() => {
  "use strict";
  const root = document.documentElement;
  const around = (() => {
    try {
      return window.parent !== window && window.parent.document ? window.parent : null;
    } catch {
      return null; // the frame of another site
    }
  })();
  if (around) root.dataset.framed = "";

  // ---- Airflow's own colours, light or dark
  const COLORS = {
    bg: "bg", panel: "bg-muted", fg: "fg", muted: "fg-muted", line: "border", link: "fg-info",
    "success-bg": "green-subtle", "success-fg": "green-fg", "success-bar": "green-solid",
    "failed-bg": "red-subtle", "failed-fg": "red-fg", "failed-bar": "red-solid",
    "running-bg": "cyan-subtle", "running-fg": "cyan-fg", "running-bar": "cyan-solid",
    "queued-bg": "stone-subtle", "queued-fg": "stone-fg", "queued-bar": "stone-solid",
    "paused-bg": "purple-subtle", "paused-fg": "purple-fg", "paused-bar": "purple-solid",
    "pushing-bg": "blue-subtle", "pushing-fg": "blue-fg", "pushing-bar": "blue-solid",
    "canceled-bg": "amber-subtle", "canceled-fg": "amber-fg", "canceled-bar": "amber-solid",
    "none-bg": "gray-subtle", "none-fg": "gray-fg", "none-bar": "gray-solid",
  };
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  function dress() {
    const stored = read("theme");
    const dark = around
      ? around.document.documentElement.classList.contains("dark")
      : stored === "dark" || (stored !== "light" && prefersDark.matches);
    root.dataset.theme = dark ? "dark" : "light";
    if (!around) return;
    const theirs = around.getComputedStyle(around.document.documentElement);
    for (const [ours, name] of Object.entries(COLORS)) {
      const value = theirs.getPropertyValue(`--chakra-colors-${name}`).trim();
      if (value) root.style.setProperty(`--${ours}`, value);
      else root.style.removeProperty(`--${ours}`);
    }
    root.style.setProperty("--font", around.getComputedStyle(around.document.body).fontFamily);
  }
  function read(key) {
    try {
      return window.localStorage.getItem(key);
    } catch {
      return null;
    }
  }
  dress();
  if (around) new around.MutationObserver(dress).observe(around.document.documentElement, { attributes: true, attributeFilter: ["class"] });
  prefersDark.addEventListener("change", dress);

  // ---- times, in the zone that the user chose in Airflow
  let format = null;
  let zone = "UTC";
  function takeZone() {
    try {
      zone = JSON.parse(read("timezone") ?? "null") || Intl.DateTimeFormat().resolvedOptions().timeZone;
      format = formatter(zone);
    } catch {
      zone = "UTC";
      format = formatter(zone);
    }
  }
  function formatter(timeZone) {
    const two = "2-digit";
    return new Intl.DateTimeFormat("sv-SE", {
      timeZone, year: "numeric", month: two, day: two, hour: two, minute: two, second: two, hourCycle: "h23",
    });
  }
  function showTimes(part) {
    for (const time of part.querySelectorAll("time[datetime]")) {
      const parts = format.format(new Date(time.dateTime)).split(" ").map((text) => {
        const part = document.createElement("span");
        part.textContent = text;
        return part;
      });
      time.replaceChildren(parts[0], " ", parts[1]);
      time.title = `${time.dateTime} (shown in ${zone})`;
    }
    // The server's text is in UTC, and starts with the time.
    for (const title of part.querySelectorAll("title[data-from]")) {
      title.textContent = title.textContent.replace(/^.{19}( UTC)?/, format.format(new Date(title.dataset.from)));
    }
  }
  // ---- durations that go on: the server sends the instant, so that its answer stays the same while nothing changes
  // All units of a duration, or its two largest ones.
  function lasted(milliseconds, exact) {
    const seconds = Math.max(0, Math.floor(milliseconds / 1000));
    const units = [[Math.floor(seconds / 86400), "d"], [Math.floor(seconds / 3600) % 24, "h"], [Math.floor(seconds / 60) % 60, "m"], [seconds % 60, "s"]];
    const first = Math.max(units.findIndex(([number]) => number), 0);
    const shown = units.slice(first, exact ? undefined : first + 2).filter(([number]) => number);
    return shown.map(([number, name]) => `${number}${name}`).join(" ") || "0s";
  }
  function count(part) {
    const now = Date.now();
    for (const each of part.querySelectorAll("[data-since], [data-until]")) {
      const lasts = each.dataset.since ? now - Date.parse(each.dataset.since) : Date.parse(each.dataset.until) - now;
      const text = `${each.dataset.before ?? ""}${lasted(lasts, "exact" in each.dataset)}${each.dataset.after ?? ""}`;
      if (each.textContent !== text) each.textContent = text;
    }
    for (const bar of part.querySelectorAll("svg[data-open]")) stretch(bar, now);
  }
  // The last phase of the bar goes on: the others become narrower.
  function stretch(bar, now) {
    const [width, least] = [1000, 6]; // as in rendering.py
    const phases = [...bar.querySelectorAll("rect")];
    const begin = Date.parse(phases[0].dataset.from);
    const whole = Math.max(now - begin, 1000);
    phases.forEach((phase, number) => {
      const from = Date.parse(phase.dataset.from);
      const to = number + 1 < phases.length ? Date.parse(phases[number + 1].dataset.from) : now;
      phase.setAttribute("x", Math.min(width * (from - begin) / whole, width - least).toFixed(1));
      phase.setAttribute("width", Math.max(width * (to - from) / whole, least).toFixed(1));
    });
    const last = phases.at(-1);
    const text = `${lasted(now - Date.parse(last.dataset.from), true)} so far`;
    last.querySelector("title").textContent = `${last.dataset.status}: ${text}`;
    bar.setAttribute("aria-label", `${bar.dataset.open}${last.dataset.status} ${text}`);
  }

  // An address may have times in another user's zone; the form shows them in this user's zone.
  function showForm() {
    for (const each of document.querySelectorAll("[data-instant]")) {
      each.value = format.format(new Date(each.dataset.instant)).replace(" ", "T");
      if (each.matches("option")) each.textContent = `from ${each.value}`;
    }
    for (const field of document.querySelectorAll("[data-zone]")) field.value = zone;
  }

  // ---- parts that are fetched: repeatedly, or on request
  const shown = new Map();
  const known = new Map(); // address -> the tag of what is shown of it
  // A user reads or copies what is there: it is not replaced under the hand.
  function isHeld(place) {
    const selection = document.getSelection();
    return (!selection.isCollapsed && selection.containsNode(place, true)) || place.querySelector("[title]:hover, [title]:focus-visible, rect:hover") !== null;
  }
  function swap(place, part, announced) {
    const same = shown.get(place.id) === part.innerHTML;
    const held = Boolean(announced) && !same && isHeld(place);
    place.classList.toggle("is-held", held);
    if (same || held) return same;
    if (announced) announce(place, part);
    shown.set(place.id, part.innerHTML);
    const open = new Set([...place.querySelectorAll("details[open][id]")].map((each) => each.id));
    const focused = place.contains(document.activeElement) ? document.activeElement : null;
    const scrolled = [...place.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    place.replaceChildren(...document.importNode(part, true).childNodes);
    for (const each of place.querySelectorAll("details[id]")) if (open.has(each.id)) each.open = true;
    place.querySelectorAll(".scroll").forEach((each, number) => { each.scrollLeft = scrolled[number] ?? 0; });
    showTimes(place);
    count(place);
    if (focused) again(place, focused)?.focus({ preventScroll: true });
    return true;
  }
  // A short sentence about changed rows, for screen readers.
  function announce(place, part) {
    const rows = (of) => new Map([...of.querySelectorAll("tr[data-row]")].map((row) => [row.dataset.row, row.dataset.state]));
    const before = rows(place);
    const changed = [...rows(part)].filter(([row, state]) => before.get(row) !== state).length;
    if (changed) document.getElementById("changes").textContent = `${changed} ${changed === 1 ? "session" : "sessions"} changed`;
  }
  function again(place, element) {
    if (element.id) return document.getElementById(element.id);
    const href = element.getAttribute("href");
    if (href) return place.querySelector(`[href="${CSS.escape(href)}"]`);
    return element.tabIndex === 0 && element.matches(".scroll") ? place.querySelector(".scroll") : null;
  }
  async function fetched(url, options) {
    let response;
    let text;
    try {
      const headers = { Accept: "text/html" };
      if (!options && known.has(url)) headers["If-None-Match"] = known.get(url);
      response = await fetch(url, { credentials: "same-origin", headers, ...options });
      if (response.status === 304) {
        trouble("");
        return null;
      }
      text = await response.text(); // which may break off
    } catch {
      return trouble(`Airflow does not answer. Last updated ${format.format(new Date())}.`);
    }
    const page = new DOMParser().parseFromString(text, "text/html");
    if (response.status === 401) return trouble("Your login has expired: nothing is refreshed.", true);
    if (!response.ok) {
      const detail = page.querySelector("[data-error] p")?.textContent ?? `Airflow answered ${response.status}.`;
      return trouble(detail);
    }
    trouble("");
    page.tag = response.headers.get("ETag");
    return page;
  }
  // With the tag of an answer that is shown in full, the server answers the next request in short while nothing changes.
  function keep(url, page, isShown) {
    if (isShown && page.tag) known.set(url, page.tag);
    else known.delete(url);
  }
  function trouble(text, login) {
    const line = document.getElementById("trouble");
    if (line.dataset.text === text) return null;
    line.dataset.text = text;
    line.replaceChildren();
    if (text) {
      line.append(text);
      if (login) {
        const link = document.createElement("a");
        link.href = `${document.body.dataset.airflow}/api/v2/auth/login`;
        link.dataset.top = "";
        link.dataset.login = "";
        link.textContent = "Log in";
        line.append(" ", link);
      }
    }
    return null;
  }
  async function refresh() {
    const places = [...document.querySelectorAll("[data-live]")];
    const url = window.location.href;
    const page = places.length ? await fetched(url) : null;
    if (!page || url !== window.location.href) return;
    let all = true;
    for (const place of places) {
      const part = page.getElementById(place.id);
      // What the user requested by a button stays.
      if (part) all = swap(place, part, true) && all;
    }
    keep(url, page, all);
  }
  async function load(place) {
    const url = place.dataset.src;
    const page = await fetched(url);
    const part = page?.querySelector("[data-part]");
    if (!part || url !== place.dataset.src) return;
    const holder = document.createElement("div");
    holder.append(part);
    keep(url, page, swap(place, holder, true));
  }

  // ---- filters apply as they change, and are in the address
  let pending = null;
  async function apply(form) {
    clearTimeout(pending);
    const given = [...new FormData(form)].filter(([, value]) => value !== "");
    const query = new URLSearchParams(given).toString();
    const url = `${form.action}${query ? `?${query}` : ""}`;
    if (url === window.location.href) return;
    window.history.pushState(null, "", url);
    keepFilters();
    showAddress();
    const page = await fetched(url, {});
    if (!page || url !== window.location.href) return;
    for (const place of document.querySelectorAll("[data-live]")) swap(place, page.getElementById(place.id));
    for (const each of form.querySelectorAll("[data-shows]")) each.replaceWith(page.getElementById(each.id));
    for (const place of document.querySelectorAll("[data-src]")) {
      const { src } = page.getElementById(place.id).dataset;
      if (src !== place.dataset.src) {
        place.dataset.src = src;
        load(place);
      }
    }
  }
  // Airflow writes the frame's address into its own when a frame has been loaded, not when a script changes it.
  function showAddress() {
    const [, base] = around?.location.pathname.match(/^(.*\/plugin\/mediation-sessions)\//) ?? [];
    if (base) around.history.replaceState(around.history.state, "", base + window.location.pathname + window.location.search);
  }
  function applyOn(event) {
    const form = event.target.form;
    if (!form?.matches("[data-applies]") || !event.target.name) return;
    clearTimeout(pending);
    pending = setTimeout(() => apply(form), event.target.matches("[type=checkbox], select") ? 0 : 400);
  }
  // The list as it was filtered last, for the links that lead back to it.
  const LIST = "mediation-list";
  function keepFilters() {
    try {
      if (document.querySelector("form[data-applies]")) window.sessionStorage.setItem(LIST, window.location.search);
    } catch { /* a browser without storage */ }
  }
  function linkBack() {
    try {
      const search = window.sessionStorage.getItem(LIST);
      for (const link of search ? document.querySelectorAll("[data-list], .crumbs a:first-child") : []) {
        if (link.pathname.endsWith("/mediation/sessions") && !link.search) link.search = search;
      }
    } catch { /* a browser without storage */ }
  }
  function every(seconds, work) {
    const turn = async () => {
      try {
        if (!document.hidden) await work();
      } finally {
        setTimeout(turn, seconds * 1000);
      }
    };
    setTimeout(turn, seconds * 1000);
  }
  async function submit(event) {
    const form = event.target;
    if (form.matches("[data-applies]")) {
      event.preventDefault();
      apply(form);
    }
    if (!form.dataset.swap) return;
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    const page = await fetched(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    for (const id of ["notice", form.dataset.swap]) {
      const part = page?.getElementById(id);
      if (part) swap(document.getElementById(id), part);
    }
    button.disabled = false;
  }

  // ---- out of the frame: its sandbox blocks such links, so the page around opens them
  function leave(event) {
    const link = event.target.closest?.("a[data-top]");
    if (!link) return;
    if ("login" in link.dataset) {
      const back = (around ?? window).location;
      link.search = new URLSearchParams({ next: back.href }).toString();
    }
    const fresh = link.dataset.top === "new" || event.ctrlKey || event.metaKey || event.shiftKey || event.button === 1;
    if (!around) {
      if (link.dataset.top === "new") link.target = "_blank";
      return;
    }
    event.preventDefault();
    const theirs = around.document.createElement("a");
    theirs.href = link.href;
    theirs.rel = "noopener noreferrer";
    if (fresh) theirs.target = "_blank";
    around.document.body.append(theirs);
    theirs.click();
    theirs.remove();
  }

  // ---- the title of the browser's tab, where the page is not a tab within one of Airflow's own pages
  function retitle() {
    const own = document.querySelector("meta[name=title]")?.content;
    if (!around || !own || !around.location.pathname.includes("/plugin/mediation-sessions")) return;
    const instance = around.document.title.split(" - ").pop();
    around.document.title = `${own} - ${instance}`;
    window.addEventListener("pagehide", () => { around.document.title = instance; });
  }

  // ---- ids that a button copies
  async function copy(event) {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch { // not over HTTPS, or not allowed in a frame
      const field = document.createElement("textarea");
      field.value = button.dataset.copy;
      field.className = "hidden";
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      button.focus();
      if (!done) return;
    }
    const name = button.getAttribute("aria-label");
    button.classList.add("is-copied");
    button.setAttribute("aria-label", "Copied");
    setTimeout(() => {
      button.classList.remove("is-copied");
      button.setAttribute("aria-label", name);
    }, 2000);
  }

  root.dataset.script = "";
  document.addEventListener("click", copy);
  document.addEventListener("click", leave);
  document.addEventListener("auxclick", (event) => { if (event.button === 1) leave(event); });
  document.addEventListener("submit", submit);
  document.addEventListener("change", (event) => {
    // The field of an exact time replaces the choice of a span.
    const into = event.target.dataset.into;
    if (!into) return;
    const field = event.target.form.elements[into];
    field.append(new Option(`from ${event.target.value}`, event.target.value, true, true));
    field.dispatchEvent(new Event("input", { bubbles: true }));
  });
  document.addEventListener("input", applyOn);
  function closeChoices(except) {
    for (const each of document.querySelectorAll(".choice[open]")) if (!each.contains(except)) each.open = false;
  }
  document.addEventListener("click", (event) => closeChoices(event.target));
  document.addEventListener("keydown", (event) => {
    const choice = event.key === "Escape" && document.activeElement.closest(".choice[open]");
    closeChoices(event.key === "Escape" ? null : document.activeElement);
    if (choice) choice.querySelector("summary").focus();
  });
  // The address of another search, or a page that the browser kept: what it shows is read again.
  window.addEventListener("popstate", () => window.location.reload());
  window.addEventListener("storage", (event) => {
    if (event.key === "theme") dress();
    if (event.key === "timezone") {
      takeZone();
      showTimes(document);
      showForm();
    }
  });
  document.addEventListener("DOMContentLoaded", () => {
    takeZone();
    for (const place of document.querySelectorAll("[data-live]")) shown.set(place.id, place.innerHTML);
    showTimes(document);
    showForm();
    retitle();
    keepFilters();
    linkBack();
    count(document);
    setInterval(() => { if (!document.hidden) count(document); }, 1000);
    for (const place of document.querySelectorAll("[data-src]")) {
      load(place);
      every(Number(place.dataset.every), () => load(place));
    }
    every(5, refresh);
    // A user who returns to the page sees current data at once.
    document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  });
})();
