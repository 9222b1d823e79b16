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
      time.textContent = format.format(new Date(time.dateTime));
      time.title = `${time.dateTime} (shown in ${zone})`;
    }
    // The server's text is in UTC, and starts with the time.
    for (const title of part.querySelectorAll("title[data-from]")) {
      title.textContent = title.textContent.replace(/^.{19}( UTC)?/, format.format(new Date(title.dataset.from)));
    }
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
  function swap(place, part) {
    if (shown.get(place.id) === part.innerHTML) return;
    shown.set(place.id, part.innerHTML);
    const open = new Set([...place.querySelectorAll("details[open][id]")].map((each) => each.id));
    const focused = place.contains(document.activeElement) ? document.activeElement : null;
    const scrolled = [...place.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    place.replaceChildren(...document.importNode(part, true).childNodes);
    for (const each of place.querySelectorAll("details[id]")) if (open.has(each.id)) each.open = true;
    place.querySelectorAll(".scroll").forEach((each, number) => { each.scrollLeft = scrolled[number] ?? 0; });
    showTimes(place);
    if (focused) again(place, focused)?.focus({ preventScroll: true });
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
      response = await fetch(url, { credentials: "same-origin", headers: { Accept: "text/html" }, ...options });
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
    return page;
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
    const page = places.length ? await fetched(window.location.href) : null;
    if (page) for (const place of places) {
      const part = page.getElementById(place.id);
      // What the user requested by a button stays.
      if (part) swap(place, part);
    }
  }
  async function load(place) {
    const page = await fetched(place.dataset.src);
    const part = page?.querySelector("[data-part]");
    if (part) {
      const holder = document.createElement("div");
      holder.append(part);
      swap(place, holder);
    }
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
  });
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
    for (const place of document.querySelectorAll("[data-src]")) {
      load(place);
      every(Number(place.dataset.every), () => load(place));
    }
    every(5, refresh);
    // A user who returns to the page sees current data at once.
    document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  });
})();
