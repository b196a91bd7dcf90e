// Captions: of a microphone, a tab or a stream that others send by WHIP, or, as an overlay, of whatever is being captioned on this server.
//
// A turn of speech is a line. When it is over, the page asks for the reasoning about it (and no reply), and takes the turn out of the model's
// conversation: hours of captions need no more memory than a minute of them.

import { Conversation } from "./conversation.js";
import "./meter.js";
import { bestFormat, FORMATS, Microphone, microphones, tabSound } from "./microphone.js";
import { readiness, Realtime } from "./realtime.js";
import { download } from "./save.js";
import { serverSentEvents } from "./sse.js";
import { clock, connectionWords, errorWords, heardWords, microphoneHelp, STATES } from "./words.js";

const at = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const overlay = query.get("overlay") === "1";
const SIZES = { least: 1, most: 5 };
/** Lines that stay on the page; the server keeps all. */
const MOST_LINES = 200;
/** How often an overlay looks for news, milliseconds. */
const LOOK_MS = 400;
/** An overlay is empty again so long after the last word, seconds; `hold=0` in its address: never. */
const HOLD_S = 8;
/** How often a stream is looked for. */
const STREAM_MS = 1000;

const settings = { source: "microphone", device: "", size: overlay ? 2.5 : 1.75, colours: "page", notes: true, ...load("hearken.captions.settings") };
if (query.has("whip")) settings.source = "whip";
for (const key of ["size", "colours"]) if (query.has(key)) settings[key] = key === "size" ? Number(query.get(key)) || settings.size : query.get(key);

const conversation = new Conversation();
const wire = new Realtime(location.href, "captions");
const ears = new Microphone();
let format = "pcm";
let agreed = null;
let running = false;
/** Items that were spoken and about which nothing was asked yet. */
let toAsk = [];
/** The response under way, and the item it is about. */
const about = new Map();
let asked = null;
/** While a stream is followed, or waited for: what stops that; and whether it is there. */
let following = null;
let streaming = false;
/** The stream that is or was shown: its conversation, and the newest of its events that is. `on`: it is followed, also after a reload. */
const stream = { conversation: "", last: 0, on: false, ...load("hearken.captions.stream", sessionStorage) };

// ---- What this browser remembers ----

function load(key, store = localStorage) {
  try {
    return JSON.parse(store.getItem(key)) ?? {};
  } catch {
    return {}; // Storage is off, or holds something else.
  }
}

function keep(key, value, store = localStorage) {
  try {
    store.setItem(key, JSON.stringify(value));
  } catch {}
}

const remember = () => keep("hearken.captions.settings", settings);

function ask(path, options = {}) {
  const headers = wire.token ? { authorization: `Bearer ${wire.token}` } : {};
  return fetch(new URL(path, location.href), { cache: "no-store", headers, ...options });
}

// ---- The wire ----

wire.addEventListener("status", ({ detail }) => {
  agreed = null;
  if (detail.state === "open") {
    at("banner").hidden = true;
    if (!detail.again) {
      conversation.interrupted(performance.now());
      toAsk = [];
      about.clear();
    }
    if (!conversation.active) asked = null;
    configure();
    keep("hearken.captions.conversation", wire.resume?.conversation_id ?? "", sessionStorage);
    showAddresses();
  } else if (detail.state === "waiting") {
    at("banner-words").textContent = `${connectionWords(detail)} Trying again.`;
    at("banner").hidden = false;
    if (detail.code === 1006 || detail.code === 1008) void whyLost(detail);
  } else if (detail.state === "resting" && detail.code !== undefined && running && settings.source !== "whip") {
    stop();
    notice(detail.code === 1008 ? connectionWords(detail) : "These captions go on in another place, or nothing was heard for long. Press Start to go on here.");
  }
  showState();
});

/** A refused WebSocket says nothing about why; the server's plain pages do. */
async function whyLost(detail) {
  const ready = await readiness(ask);
  if (wire.state === "waiting") at("banner-words").textContent = `${connectionWords({ ...detail, ready })} Trying again.`;
  const answer = await ask(wire.resume ? `v1/conversations/${wire.resume.conversation_id}` : "v1/models").catch(() => null);
  if (answer?.status === 401) askForToken();
  if (answer?.status === 404 && wire.resume) wire.goTo();
}

function askForToken() {
  at("token-form").hidden = false;
  at("token-wrong").textContent = wire.token ? "That one was not right." : "";
  wire.rest();
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  wire.token = at("token").value.trim();
  try {
    sessionStorage.setItem("hearken.token", wire.token);
  } catch {}
  at("token-form").hidden = true;
  void begin();
});

function configure() {
  wire.send({
    type: "session.update",
    session: {
      type: "realtime",
      output_modalities: ["text"],
      audio: { input: { format: FORMATS[format].wire, transcription: {}, turn_detection: { type: "server_vad", create_response: false, interrupt_response: true } } },
      include: ["reasoning.text", "hearken.captions.tentative"],
      reasoning: { effort: "low" },
    },
  });
}

wire.addEventListener("message", ({ detail: event }) => {
  take(event);
  if (event.type === "session.updated") agreed = format;
  else if (event.type === "error") {
    if (asked && event.error?.event_id === asked) asked = null;
    const words = errorWords(event.error);
    if (words) notice(words);
  } else if (event.type === "input_audio_buffer.committed") {
    toAsk.push(event.item_id);
    askNext();
  } else if (event.type === "response.done") {
    const item_id = about.get(event.response.id);
    asked = null;
    if (item_id) wire.send({ type: "conversation.item.delete", item_id });
    askNext();
  }
  showState();
});

/** An event, from this page's own session or from the one that an overlay follows. */
function take(event) {
  if (event.type === "response.created") {
    const item_id = event.response.metadata?.about;
    if (item_id) about.set(event.response.id, item_id);
  }
  // Its line stays when the model has done with it.
  if (event.type !== "conversation.item.deleted") conversation.apply(event, performance.now());
}

/** How the newest turn sounded. Of older ones that were never asked about, because somebody spoke on, only the words are kept. */
function askNext() {
  if (asked || !toAsk.length || conversation.hearing) return;
  const newest = toAsk.pop();
  for (const item_id of toAsk) wire.send({ type: "conversation.item.delete", item_id });
  toAsk = [];
  if (!settings.notes) return void wire.send({ type: "conversation.item.delete", item_id: newest });
  asked = wire.send({
    type: "response.create",
    response: { conversation: "none", input: [{ type: "item_reference", id: newest }], metadata: { about: newest }, max_output_tokens: 1 },
  });
}

// ---- The sound ----

ears.onframe = (bytes) => {
  if (agreed === ears.format) wire.sendSound(bytes);
};
ears.onlevel = (db) => (at("meter").level = db);
ears.onended = () => {
  stop();
  notice(settings.source === "tab" ? "The tab is not shared any more." : "The microphone was unplugged.");
  void listDevices();
};
ears.onencoderfailed = () => {
  format = "pcm";
  configure();
  if (running) void start();
};

async function start() {
  at("help").hidden = true;
  at("notice").hidden = true;
  if (settings.source === "whip") return startStream();
  running = true;
  if (wire.state === "resting") wire.connect();
  if (!running) return;
  showState();
  try {
    const open = settings.source === "tab" ? { open: tabSound } : {};
    await ears.start({ deviceId: settings.device, cleanup: false, format, ...open });
    if (!running) return ears.stop();
    ears.setOpen(true);
    at("meter").analyser = ears.analyser;
    void stayAwake();
    void listDevices();
  } catch (error) {
    stop();
    showHelp(error.kind);
  }
  showState();
}

function stop() {
  running = false;
  following?.abort();
  streaming = false;
  if (settings.source === "whip") rememberStream({ on: false });
  at("notice").hidden = true;
  void ears.finish(1200);
  at("meter").analyser = null;
  void wakeLock?.release();
  showState();
}

// ---- A stream that somebody else sends ----

function startStream() {
  running = true;
  if (!overlay) rememberStream({ on: true });
  following?.abort();
  following = new AbortController();
  void followStream(following.signal);
  showState();
}

/** Waits for a stream (the one that the address names, or the newest), reads what is heard in it, and waits for the next. */
async function followStream(signal) {
  const wanted = query.get("whip");
  const isWanted = (call) => call.location.startsWith("/v1/whip/") && (!wanted || wanted === "1" || call.id === wanted);
  while (!signal.aborted) {
    try {
      const { data = [] } = await (await ask("v1/realtime/calls")).json();
      const found = data.find(isWanted);
      if (signal.aborted) return;
      if (found) {
        at("notice").hidden = true;
        streaming = true;
        await showStream(found.conversation_id ?? "");
        for await (const { data } of serverSentEvents(await ask(found.events, { signal }))) takeOfStream(JSON.parse(data));
        conversation.interrupted(performance.now());
      } else if (!overlay) notice(`Waiting for a stream. Let OBS or another WHIP sender stream to ${streamAddress()}`);
    } catch {
      // The server is away, or nothing is followed any more.
    }
    if (signal.aborted) return;
    streaming = false;
    showState();
    await new Promise((again) => setTimeout(again, STREAM_MS));
  }
}

/** What the server has kept of a conversation, if there is one: how it answered, and the story. */
async function told(id) {
  const answer = typeof id === "string" && id ? await ask(`v1/conversations/${id}`).catch(() => null) : null;
  return { status: answer?.status, story: answer?.ok ? await answer.json().catch(() => null) : null };
}

/** All that the server has kept of a stream; none where it keeps nothing. */
async function showStream(id) {
  const { story } = await told(id);
  clear(story);
  if (overlay) greet();
  rememberStream({ conversation: id, last: story?.last_event ?? 0 });
  showAddresses();
}

function takeOfStream(event) {
  // The call keeps its last events for whoever comes late: some of them are here already.
  const number = Number(event.event_id?.split("_").at(-1));
  if (number <= stream.last) return;
  stream.last = number || stream.last;
  if (event.type === "session.created" && !stream.conversation) {
    // A conversation and its session have one name.
    rememberStream({ conversation: event.session.id.replace(/^sess_/, "conv_") });
    showAddresses();
  }
  take(event);
  showState();
}

function rememberStream(news) {
  Object.assign(stream, news);
  if (!overlay) keep("hearken.captions.stream", { conversation: stream.conversation, on: stream.on }, sessionStorage);
}

const streamAddress = () => new URL(`v1/whip?kind=captions${settings.notes ? "" : "&notes=0"}`, location.href).href;
const conversationId = () => (settings.source === "whip" ? stream.conversation : wire.resume?.conversation_id);

let wakeLock = null;
async function stayAwake() {
  try {
    wakeLock ??= await navigator.wakeLock?.request("screen");
    wakeLock?.addEventListener("release", () => (wakeLock = null), { once: true });
  } catch {
    wakeLock = null; // Refused on low battery: the person's choice.
  }
}
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible" || !running) return;
  void stayAwake();
  void ears.resume();
});

async function listDevices() {
  const devices = (await microphones().catch(() => [])).filter((device) => device.deviceId !== "default");
  const options = devices.map((device, i) => new Option(device.label || `Microphone ${i + 1}`, device.deviceId));
  at("device").replaceChildren(new Option("Default microphone", ""), ...options);
  at("device").value = devices.some((device) => device.deviceId === settings.device) ? settings.device : "";
}
navigator.mediaDevices?.addEventListener?.("devicechange", () => void listDevices());

// ---- Lines and notes ----

const rows = new Map();
let origin = null; // When the first line began, by the server's clock of the stream.

function span(className, text) {
  const node = document.createElement("span");
  node.className = className;
  node.textContent = text;
  return node;
}

function stamp(ms) {
  const node = document.createElement("time");
  origin ??= ms;
  node.textContent = clock(ms - origin);
  return node;
}

conversation.addEventListener("added", ({ detail: turn }) => show(turn));
conversation.addEventListener("changed", ({ detail: turn }) => show(turn));
conversation.addEventListener("removed", ({ detail: turn }) => {
  rows.get(turn.id)?.remove();
  rows.delete(turn.id);
});

function show(turn) {
  if (turn.role === "agent") return note(turn);
  at("welcome").hidden = true;
  if (turn.state !== "final") {
    // One line at a time is being spoken; a turn whose last words are still to come goes before it.
    const [said, tentative] = [turn.words.trim(), turn.tentative.trim()];
    at("now").replaceChildren(span("said", said), span("tentative", tentative && said ? ` ${tentative}` : tentative));
  } else {
    const words = turn.words.trim();
    if (at("now").dataset.id === turn.id || !conversation.hearing) at("now").replaceChildren();
    if (words && !rows.has(turn.id)) {
      const row = document.createElement("p");
      row.className = "line";
      row.append(stamp(turn.startMs ?? 0), span("said", words));
      rows.set(turn.id, row);
      at("lines").append(row);
      trim(at("lines"), "firstElementChild");
    } else if (words) {
      rows.get(turn.id).lastElementChild.textContent = words;
    }
  }
  at("now").dataset.id = turn.id;
  hold();
  if (atEnd) at("text").scrollTop = at("text").scrollHeight;
}

/** What was said a while ago is not left standing over a picture; nor is what was said before the overlay came. */
const holdSeconds = query.has("hold") ? Number(query.get("hold")) || 0 : HOLD_S;
let holding = 0;
function hold() {
  if (!overlay || holdSeconds <= 0) return;
  clearTimeout(holding);
  at("text").classList.remove("over");
  holding = setTimeout(() => at("text").classList.add("over"), holdSeconds * 1000);
}

/** Whoever has just added an overlay sees that it is there, and nothing of what was said before. */
function greet() {
  if (holdSeconds > 0) for (const row of at("lines").children) row.classList.add("before");
  at("now").replaceChildren(span("greeting", "Captions appear here."));
  hold();
}

/** A page may be open for a day. */
function trim(list, end) {
  while (list.childElementCount > MOST_LINES) {
    const gone = list[end];
    gone.remove();
    for (const [id, row] of rows) if (row === gone) rows.delete(id);
  }
}

let lastNote = null;
function note(turn) {
  const words = heardWords(turn.reasoning);
  const over = !["thinking", "replying"].includes(turn.state);
  if (overlay || !words || (!over && words.split(" ").length < 3)) return;
  let row = rows.get(turn.id);
  if (!row) {
    if (over && lastNote?.dataset.words === words) return; // As before.
    const spoken = conversation.turns.find((other) => other.id === about.get(turn.id));
    row = document.createElement("li");
    row.append(stamp(spoken?.startMs ?? turn.startMs ?? 0), span("", ""));
    rows.set(turn.id, row);
    at("notes").prepend(row);
    trim(at("notes"), "lastElementChild");
  }
  row.lastElementChild.textContent = words;
  row.dataset.words = words;
  if (!over) return;
  if (lastNote && lastNote !== row && lastNote.dataset.words === words) row.remove();
  else lastNote = row;
}

let atEnd = true;
at("text").addEventListener("scroll", () => {
  atEnd = at("text").scrollTop + at("text").clientHeight > at("text").scrollHeight - 48;
}, { passive: true });

// ---- Showing ----

function showState() {
  const state =
    wire.state === "waiting" ? "lost" : wire.state === "connecting" ? "connecting" : conversation.hearing ? "hearing" : running ? "listening" : "idle";
  at("state").dataset.state = state;
  const listening = settings.source !== "whip" ? STATES.listening : streaming ? "On the stream" : "Waiting for a stream";
  at("state").querySelector(".state-words").textContent = { hearing: "Hearing speech", listening }[state] ?? STATES[state];
  at("start").textContent = running ? "Stop" : "Start";
  at("start").toggleAttribute("data-on", running);
  at("source").disabled = running;
}

function showAddresses() {
  const address = new URL("captions?overlay=1", location.href);
  if (settings.source === "whip") address.searchParams.set("whip", "1");
  // A browser source has nobody who could type it in.
  if (wire.token) address.searchParams.set("token", wire.token);
  at("overlay-warning").hidden = at("bearer-hint").hidden = !wire.token;
  const nothing = settings.source !== "whip" && wire.state === "open" && !wire.resume;
  at("overlay-address").textContent = nothing ? "this server keeps no captions, so there is nothing to follow" : address.href;
  at("whip-address").textContent = streamAddress();
  const id = conversationId();
  const kept = nothing ? "this server keeps no captions" : "once something is said";
  at("vtt-address").textContent = id ? new URL(`v1/captions/${id}.vtt`, location.href).href : kept;
}

function showLooks() {
  settings.size = Math.max(SIZES.least, Math.min(SIZES.most, settings.size));
  document.body.style.setProperty("--size", `${settings.size}rem`);
  const lines = Number(query.get("lines"));
  if (lines >= 1 && lines <= 12) document.body.style.setProperty("--lines", String(Math.round(lines)));
  at("text").dataset.colours = ["white", "yellow", "black"].includes(settings.colours) ? settings.colours : "page";
  at("colours").value = at("text").dataset.colours;
  at("source").value = settings.source;
  at("device-field").hidden = settings.source !== "microphone";
  at("notes-on").checked = settings.notes;
}

function notice(words) {
  at("notice").textContent = words;
  at("notice").hidden = false;
}

function showHelp(kind = "failed") {
  const { title, steps } = microphoneHelp(kind, location);
  const heading = document.createElement("h2");
  heading.textContent = title;
  const list = document.createElement("ol");
  for (const step of steps) list.append(Object.assign(document.createElement("li"), { textContent: step }));
  const again = Object.assign(document.createElement("button"), { type: "button", className: "small", textContent: "Try again" });
  again.addEventListener("click", () => void start());
  at("help").replaceChildren(heading, list, ...(["denied", "busy", "failed"].includes(kind) ? [again] : []));
  at("help").hidden = false;
  at("help").scrollIntoView({ block: "nearest" });
}

// ---- Hands ----

at("bar").addEventListener("submit", (event) => {
  event.preventDefault();
  running ? stop() : void start();
});
at("source").addEventListener("change", () => {
  settings.source = at("source").value;
  remember();
  showLooks();
  showAddresses();
});
at("device").addEventListener("change", () => {
  settings.device = at("device").value;
  remember();
  if (running) void start();
});
at("notes-on").addEventListener("change", () => {
  settings.notes = at("notes-on").checked;
  remember();
  showAddresses();
});
for (const [id, step] of [["smaller", -0.25], ["larger", 0.25]]) {
  at(id).addEventListener("click", () => {
    settings.size += step;
    remember();
    showLooks();
  });
}
at("colours").addEventListener("change", () => {
  settings.colours = at("colours").value;
  remember();
  showLooks();
});
at("copy-overlay").addEventListener("click", async () => {
  const copied = await navigator.clipboard?.writeText(at("overlay-address").textContent).then(() => true, () => false);
  at("copy-overlay").textContent = copied ? "Copied" : "Select it and copy";
  setTimeout(() => (at("copy-overlay").textContent = "Copy"), 2000);
});
for (const button of document.querySelectorAll("[data-form]")) {
  button.addEventListener("click", async () => {
    // Of what was said; the notes about it are no captions.
    const [id, form] = [conversationId(), button.dataset.form];
    const path = `v1/${["vtt", "srt"].includes(form) ? "captions" : "conversations"}/${id}.${form}`;
    if (!id || !(await download(ask, path, `hearken-${id}.${form}`))) notice("There is nothing to save yet.");
  });
}
at("anew").addEventListener("click", () => {
  clear();
  wire.goTo();
  if (!streaming) rememberStream({ conversation: "", last: 0 });
  showAddresses();
});

function clear(story = null) {
  [toAsk, asked, origin, lastNote] = [[], null, null, null];
  about.clear();
  at("now").replaceChildren();
  conversation.load(story, performance.now());
  at("welcome").hidden = conversation.turns.length > 0;
}

// ---- Begin ----

/** Goes on where this tab was before it was reloaded. */
async function begin() {
  if (settings.source === "whip") {
    wire.connect();
    await showStream(stream.conversation);
    if (query.has("whip") || stream.on) startStream();
    return;
  }
  const { status, story } = await told(load("hearken.captions.conversation", sessionStorage));
  if (status === 401) return askForToken();
  if (!story) return wire.connect();
  clear(story);
  wire.goTo(story.resume ?? null, story.last_event);
}

/** As an overlay: shows what is captioned on this server, or the conversation that is named, without a session of its own. */
async function follow() {
  let [id, last] = ["", 0];
  for (;;) {
    try {
      const wanted = query.get("follow") ?? (await (await ask("v1/conversations?kind=captions&limit=1")).json()).data?.[0]?.id;
      if (wanted && wanted !== id) {
        const answer = await ask(`v1/conversations/${wanted}`);
        if (answer.ok) {
          const story = await answer.json();
          const isFirst = id === "";
          [id, last] = [wanted, story.last_event];
          clear(story);
          if (isFirst) greet();
        }
      } else if (id) {
        const { data } = await (await ask(`v1/conversations/${id}/events?after=${last}`)).json();
        for (const event of data) take(event);
        last = Number(data.at(-1)?.event_id.split("_").at(-1) ?? last);
      }
    } catch {
      // The server is away; it is asked again.
    }
    await new Promise((again) => setTimeout(again, LOOK_MS));
  }
}

showLooks();
try {
  wire.token = sessionStorage.getItem("hearken.token") ?? "";
} catch {}
if (overlay) {
  document.documentElement.classList.add("overlay");
  greet();
  if (query.has("token")) wire.token = query.get("token");
  if (query.has("whip")) startStream();
  else await follow();
} else {
  showAddresses();
  showState();
  void listDevices();
  format = await bestFormat();
  await begin();
}
