// Calls: the list of those that the server knows, one of them as it goes on or as it was, and a stereo file to be heard as one.

import "./call.js";
import { element } from "./log.js";
import { download } from "./save.js";
import { serverSentEvents } from "./sse.js";
import { seconds, when } from "./words.js";

/** How often the list is looked at, milliseconds. */
const LOOK_MS = 3000;
const AGAIN_MS = 1000;

const at = (id) => document.getElementById(id);
const call = at("call");
let token = "";
let calls = null; // null before the list has come
let settings = null;
let sending = "";
let lost = false;
/** What is shown: its newest state, and what stops its events. */
let shown = null;
/** When it was last heard of. */
let heardAt = 0;
let watching = null;
/** Object URLs of sound, by the call's id: it never leaves this tab. */
const sounds = new Map();
/** Those of them that the server has, too, in the order in which they were brought; so many are held. */
const brought = [];
const MOST_BROUGHT = 3;

try {
  token = sessionStorage.getItem("hearken.token") ?? "";
} catch {}

async function ask(path, options = {}) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(new URL(path, location.href), { cache: "no-store", headers, ...options });
  if (answer.status === 401) askForToken();
  return answer;
}

function askForToken() {
  at("token-form").hidden = false;
  at("token-wrong").textContent = token ? "That one was not right." : "";
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value.trim();
  try {
    sessionStorage.setItem("hearken.token", token);
  } catch {}
  at("token").value = "";
  at("token-form").hidden = true;
  void look().then(route);
});

// ---- The list ----

async function look() {
  let answer;
  try {
    answer = await ask("v1/calls");
    lost = false;
  } catch {
    lost = true;
  }
  if (answer?.ok) {
    const told = await answer.json().catch(() => null);
    if (!told?.data) {
      lost = true; // An answer, but not the server's: a proxy's page, or half of one.
      return showState();
    }
    calls = told.data;
    settings = told.settings;
    showList();
    showPromise();
  }
  showState();
}

function showList() {
  const wanted = location.hash.slice(1);
  const text = JSON.stringify([calls, wanted]);
  if (at("list").dataset.shown === text) return;
  at("list").dataset.shown = text;
  const focused = document.activeElement?.closest?.("#list a")?.hash;
  at("list").replaceChildren(
    ...calls.map((each) => {
      const link = element("a", "past", element("span", "", each.parties.map((party) => party.name).join(" and ") || "A call"));
      link.href = `#${each.id}`;
      if (each.id === wanted) link.setAttribute("aria-current", "true");
      const facts = [when(each.created * 1000), seconds(each.seconds * 1000), each.turns === 1 ? "1 turn" : `${each.turns} turns`];
      const line = element("small", "", facts.join(", "));
      if (each.state === "live") line.prepend(element("b", "live", each.source === "file" ? "being heard" : "live"), " ");
      if (each.recorded) line.append(" ", element("b", "recorded", "recorded"));
      if (each.alerts) line.append(" ", element("b", "warn", each.alerts === 1 ? "1 alert" : `${each.alerts} alerts`));
      link.append(line);
      return element("li", "", link);
    }),
  );
  if (focused) at("list").querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  at("none").hidden = calls.length > 0;
  at("count").textContent = calls.length ? String(calls.length) : "";
}

/** What becomes of what is heard: said on the page, not in a manual. */
function showPromise() {
  const { recording, hours, kept, redact, journal, words, notes, alerts, webhook } = settings;
  const days = hours >= 48 ? `${Math.round(hours / 24)} days` : `${hours} hours`;
  const facts = [
    ["Recording", recording ? "on: the sound of each call is kept as long as its words, and deleted with them" : "off: the sound is heard and not kept"],
    ["Words and figures", `${hours ? `kept for ${days}` : "kept until you delete them"}, ${kept} calls at most${journal ? "" : ", gone when the server ends"}`],
    ["Digits", redact ? "blotted out" : "kept as they were said"],
    ...(words ? [] : [["Words on disk", "none: times and counts alone"]]),
    ["Notes by the model", notes ? "on" : "off"],
    ["Alerts", alerts.length ? `${alerts.join(", ")}${webhook ? "; posted to a webhook" : ""}` : "no rules: [[calls.alerts]] in the configuration"],
  ];
  at("promise").replaceChildren(...facts.map(([name, value]) => element("div", "", element("dt", "", name), element("dd", "", value))));
}

// ---- One call ----

/** The address says which. */
async function route() {
  const id = location.hash.slice(1);
  document.body.toggleAttribute("data-open", Boolean(id));
  if (calls) showList();
  if (shown?.id === id) return;
  if (id) clearNotice();
  watching?.abort();
  shown = null;
  call.hidden = true;
  at("welcome").hidden = false;
  if (id) await watch(id);
}

async function watch(id) {
  const mine = (watching = new AbortController());
  const again = () => new Promise((go) => setTimeout(go, AGAIN_MS));
  let first = true;
  while (!mine.signal.aborted) {
    try {
      const answer = await ask(`v1/calls/${encodeURIComponent(id)}/events`, { signal: mine.signal });
      if (answer.status === 404) return gone(id);
      if (answer.status === 401) return;
      if (!answer.ok) throw new Error(String(answer.status));
      lost = false;
      for await (const { data } of serverSentEvents(answer)) {
        if (mine.signal.aborted) return;
        take(JSON.parse(data));
        if (first) reveal();
        first = false;
      }
      if (shown?.state === "ended") return;
    } catch {
      if (mine.signal.aborted) return;
      lost = true;
      showState();
    }
    await again();
  }
}

function gone(id) {
  if (location.hash.slice(1) !== id) return;
  notice("There is no such call any more.");
  location.hash = "";
}

function reveal() {
  at("welcome").hidden = true;
  call.hidden = false;
  call.focus();
}

/** Where the sound of the call that is shown is: in this tab if it came from here, else at the server once the call is over. */
let sounding = null;
async function sound() {
  const { id } = shown;
  const known = sounds.get(id);
  const wanted = known ?? (shown.recorded && shown.state === "ended" ? `v1/calls/${encodeURIComponent(id)}/sound` : null);
  if (sounding?.id === id && sounding.wanted === wanted) return;
  sounding = { id, wanted };
  call.sound = null;
  // A player sends no token: then all of it is brought first.
  const url = !known && wanted && token ? await whole(id, wanted) : wanted;
  if (shown?.id !== id || sounding?.wanted !== wanted) return;
  call.sound = url;
  if (wanted && !url) {
    call.nosound = "The sound could not be brought. Choose the call again to try once more.";
    sounding = null;
  }
}

function letGo(id) {
  if (sounds.has(id)) URL.revokeObjectURL(sounds.get(id));
  sounds.delete(id);
}

async function whole(id, path) {
  const answer = await ask(path).catch(() => null);
  if (!answer?.ok) return null;
  const url = URL.createObjectURL(await answer.blob());
  sounds.set(id, url);
  // What the server has can be brought again; a tab does not hold them all.
  brought.push(id);
  if (brought.length > MOST_BROUGHT) letGo(brought.shift());
  return url;
}

function take(event) {
  if (event.type === "call.snapshot") shown = event.call;
  else if (event.type === "call.ended") shown = event.call;
  else if (!shown) return;
  else if (event.type === "call.speaking") Object.assign(shown, { speaking: event.speaking, seconds: Math.max(event.at, shown.seconds) });
  else if (event.type === "call.mark") shown.marks = [...shown.marks.filter(({ at, name }) => at !== event.mark.at || name !== event.mark.name), event.mark];
  else if (event.type === "call.alert") {
    const { at: time, name } = event.alert;
    // The first snapshot may have had it already.
    if (shown.alerts.some((alert) => alert.at === time && alert.name === name)) return;
    shown.alerts = [...shown.alerts, event.alert];
    announce(`Alert: ${name}`);
  } else if (event.type === "call.words") {
    shown.saying = [...shown.saying.filter(({ party }) => party !== event.saying.party), event.saying];
  } else if (event.type === "call.turn") {
    const { turn, seconds, parties, silence } = event;
    const turns = shown.turns.filter((other) => other.id !== turn.id);
    shown.turns = [...turns, turn].sort((a, b) => a.start - b.start);
    if (turn.words !== undefined) shown.saying = shown.saying.filter((saying) => saying.turn !== turn.id);
    Object.assign(shown, { seconds, parties, silence });
  }
  heardAt = performance.now();
  draw();
  void sound();
}

// A phone call goes on while nothing is told of it.
setInterval(() => {
  if (shown?.state !== "live" || shown.source === "file") return;
  const now = performance.now();
  shown.seconds += (now - heardAt) / 1000;
  heardAt = now;
  draw();
}, 1000);

/** A file is heard much faster than it can be watched: once a frame is enough. */
let drawing = 0;
function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    if (shown) call.call = shown;
    showState();
  });
}

const PATHS = { json: "", csv: "?format=csv", ogg: "/sound" };
call.addEventListener("save", async ({ detail: form }) => {
  const path = `v1/calls/${shown.id}${PATHS[form]}`;
  if (!(await download(ask, path, `hearken-${shown.id}.${form}`).catch(() => false))) notice("The call cannot be had now.");
});
call.addEventListener("forget", async () => {
  const { id } = shown;
  if (!confirm("Delete this call for good?")) return;
  const answer = await ask(`v1/calls/${id}`, { method: "DELETE" }).catch(() => null);
  if (!answer?.ok && answer?.status !== 404) return notice("It could not be deleted.");
  letGo(id);
  location.hash = "";
  await look();
  announce("Deleted.");
  at("choose").focus();
});
call.addEventListener("sound", ({ detail: file }) => {
  sounds.set(shown.id, URL.createObjectURL(file));
  void sound();
});

// ---- A file ----

async function send(file) {
  clearNotice();
  sending = file.name;
  showState();
  const form = new FormData();
  for (const side of ["left", "right"]) if (at(side).value.trim()) form.append(side, at(side).value.trim());
  form.append("file", file);
  try {
    const answer = await ask("v1/calls", { method: "POST", body: form });
    const told = await answer.json().catch(() => ({}));
    if (answer.status === 413) notice(`${file.name} is larger than this server takes (http.max_body_bytes).`);
    else if (!answer.ok) notice(`${file.name} was not heard: ${told.error?.message ?? `the server answered ${answer.status}`}`);
    else {
      sounds.set(told.id, URL.createObjectURL(file));
      location.hash = told.id;
      void look();
    }
  } catch {
    notice("The server cannot be reached. The file was not sent.");
  }
  sending = "";
  showState();
}

at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  if (at("file").files.length) void send(at("file").files[0]);
  at("file").value = "";
});
for (const type of ["dragenter", "dragover"]) {
  addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    at("drop").hidden = false;
  });
}
addEventListener("dragleave", (event) => (at("drop").hidden = event.relatedTarget === null ? true : at("drop").hidden));
addEventListener("drop", (event) => {
  at("drop").hidden = true;
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  void send(event.dataTransfer.files[0]);
});

// ---- Showing ----

function showState() {
  const live = (calls ?? []).filter((each) => each.state === "live").length;
  const [state, words] = lost
    ? ["lost", "No connection"]
    : sending
      ? ["starting", "Sending the file"]
      : calls === null
        ? ["connecting", "Connecting"]
        : live
          ? ["listening", live === 1 ? "1 call is heard" : `${live} calls are heard`]
          : ["idle", "No call now"];
  at("state").dataset.state = state;
  const node = at("state").querySelector(".state-words");
  if (node.textContent !== words) node.textContent = words;
  at("choose").disabled = Boolean(sending);
}

function notice(words) {
  at("notice").textContent = words;
  at("notice").hidden = false;
}
function clearNotice() {
  at("notice").hidden = true;
}

function announce(words) {
  at("announce").replaceChildren(element("p", "", words));
}

// ---- Begin ----

addEventListener("hashchange", () => void route());
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && void look());
await look();
void route();
for (;;) {
  await new Promise((go) => setTimeout(go, LOOK_MS));
  if (document.visibilityState === "visible" && at("token-form").hidden) await look();
}
