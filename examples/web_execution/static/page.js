"use strict";

// Whatever is shown is set as text, never as HTML.

const element = (id) => document.getElementById(id);
const enable = (id, possible) => { // not `disabled`: the focus would be lost
  element(id).setAttribute("aria-disabled", String(!possible));
};
const isEnabled = (button) => button.getAttribute("aria-disabled") !== "true";
const show = (id, value) => { element(id).textContent = value ?? "–"; };

// --- what the web process tells ---

let picture = null;

function showPicture(now) {
  const frame = element("picture");
  if (picture === null || picture.id !== now.id) {
    frame.replaceChildren(...Array.from({ length: now.total }, () => document.createElement("span")));
  }
  picture = now;
  for (const number of now.tiles) {
    const place = frame.children[number];
    if (place.tagName !== "IMG") {
      const image = document.createElement("img");
      image.alt = "";
      image.src = `/pictures/${encodeURIComponent(now.id)}/${number}.png`;
      place.replaceWith(image);
    }
  }
  const count = `${now.tiles.length} of ${now.total}`;
  frame.setAttribute("aria-label", `${now.title}, ${count} tiles`);
  element("progress").max = now.total;
  element("progress").value = now.tiles.length;
  show("progress-text", now.asked_again ? `${count}, ${now.asked_again} asked for again` : count);
  enable("render", now.tiles.length === now.total);
}

function showProcess(now) {
  show("pid", now.pid === null ? "not running" : now.pid);
  enable("kill", now.pid !== null);
  enable("start", now.pid === null);
}

function showLink(now) {
  const state = element("state");
  const text = now.connected ? "connected" : now.attempts > 1 ? `connecting, attempt ${now.attempts}` : "not connected";
  if (state.textContent !== text) state.textContent = text; // a screen reader says each change
  state.classList.toggle("good", now.connected);
  show("peer", now.peer);
  show("key-id", now.key_id);
  show("waiting", now.waiting);
  const lost = Object.entries(now.ended).map(([category, count]) => `${count} × ${category}`);
  show("lost", lost.join(", ") || "never");
  const execution = now.execution ?? {};
  show("accepted", execution.accepted);
  show("rendered", execution.rendered);
  show("in-flight", execution.in_flight);
  showRoundTrips(now.round_trips);
  showRefusals(Object.entries(execution.refusals ?? {}));
}

function showRoundTrips(milliseconds) {
  if (milliseconds.length === 0) return;
  const latest = milliseconds[milliseconds.length - 1];
  const most = Math.max(...milliseconds);
  show("round-trip", `${latest} ms`);
  const step = 300 / Math.max(milliseconds.length - 1, 1);
  const points = milliseconds.map((value, at) => `${(at * step).toFixed(1)},${(46 - 44 * value / most).toFixed(1)}`);
  const line = element("sparkline");
  line.querySelector("polyline").setAttribute("points", points.join(" "));
  line.setAttribute("aria-label", `Round trip of the last ${milliseconds.length} pings: now ${latest} ms, at most ${most} ms`);
}

function showRefusals(refusals) {
  const rows = refusals.map(([where, count]) => {
    const row = document.createElement("tr");
    for (const text of [...where.split(": "), count]) row.insertCell().textContent = text;
    return row;
  });
  if (rows.length === 0) {
    const row = document.createElement("tr");
    const cell = row.insertCell();
    cell.colSpan = 3;
    cell.textContent = "nothing";
    rows.push(row);
  }
  element("refusals").replaceChildren(...rows);
}

let lastLine = 0;

function addLine(now) {
  if (now.line <= lastLine) return; // told again after a reconnect
  lastLine = now.line;
  const item = document.createElement("li");
  item.textContent = now.text;
  if (now.tone !== "plain") item.classList.add(now.tone);
  const log = element("log");
  log.prepend(item);
  while (log.children.length > 60) log.lastElementChild.remove();
}

let events = null;

function listen() {
  events = new EventSource("/events"); // connects again by itself
  for (const [name, shows] of Object.entries({ picture: showPicture, process: showProcess, link: showLink, log: addLine })) {
    events.addEventListener(name, (event) => shows(JSON.parse(event.data)));
  }
  events.addEventListener("open", () => { element("offline").hidden = true; });
  events.addEventListener("error", () => { element("offline").hidden = false; });
}

// A browser keeps pages that were left, with their streams, and opens at most six connections to one server.
window.addEventListener("pagehide", () => events.close());
window.addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
listen();

// --- what it is asked for ---

async function post(path, body, errors) {
  show(errors, "");
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    if (!response.ok) {
      const said = await response.json().catch(() => ({}));
      show(errors, typeof said.detail === "string" ? said.detail : `The web process answered ${response.status}.`);
    }
  } catch {
    show(errors, "The web process does not answer.");
  }
}

element("order").addEventListener("submit", (event) => {
  event.preventDefault();
  if (isEnabled(element("render"))) post("/pictures", { scene: element("scene").value }, "order-error");
});

for (const button of document.querySelectorAll("button[data-post]")) {
  button.addEventListener("click", async () => {
    if (!isEnabled(button) || button.classList.contains("busy")) return;
    button.classList.add("busy");
    await post(button.dataset.post, {}, "trouble-error");
    button.classList.remove("busy");
  });
}
