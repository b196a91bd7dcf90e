// The page: joins the microphone, the wire and the conversation, and says in words what is going on.

import { Conversation } from "./conversation.js";
import "./history.js";
import "./log.js";
import "./meter.js";
import { bestFormat, FORMATS, Microphone, microphones } from "./microphone.js";
import { readiness, Realtime } from "./realtime.js";
import { MOST_SECONDS, readSound } from "./soundfile.js";
import { Speech } from "./speech.js";
import { connectionWords, errorWords, fileWords, microphoneHelp, seconds, STATES, thinkingWords } from "./words.js";

/** After a lost connection the new session is given this many of the latest turns. */
const MOST_TOLD_AGAIN = 60;

const at = (id) => document.getElementById(id);
const page = {
  state: at("state"), stateWords: at("state").querySelector(".state-words"),
  banner: at("banner"), bannerWords: at("banner-words"), notice: at("notice"), help: at("mic-help"),
  log: at("log"), scroll: at("scroll"), latest: at("latest"), welcome: at("welcome"), announce: at("announce"),
  mic: at("mic"), mute: at("mute"), meter: at("meter"), compose: at("compose"), message: at("message"),
  send: at("send"), stop: at("stop"), panel: at("panel"), panelToggle: at("panel-toggle"),
  device: at("device"), cleanup: at("cleanup"), aloud: at("aloud"),
  wire: at("wire"), history: at("history"), historyToggle: at("history-toggle"), file: at("file"), drop: at("drop"),
};

const settings = loadSettings();
const conversation = new Conversation();
const wire = new Realtime(location.href, "chat", { peers: true });
const microphone = new Microphone();
const speech = new Speech();

let micState = "off"; // off | starting | on | paused
let muted = false;
let mutedByHold = false; // muted only because space was let go
let held = false; // space, or the microphone button in hold mode, is down
/** Of sound that goes in frames; a wire that takes tracks needs none. */
let format = "pcm";
let agreed = null; // The format the server has agreed to; no sound is sent before.
let formatAsked = null; // id of the session.update that asked for it
let silenceMs = 500; // how much silence ends a turn, as the server last said
let replyWanted = false; // something was said that could not be answered at once
let greetedBefore = false;
let lostDetail = null;
let tokenWanted = false;
let soundMs = 0;

// ---- Settings -------------------------------------------------------------------------------------------------------

function loadSettings() {
  const defaults = { device: "", mode: "open", cleanup: true, effort: "", aloud: false }; // effort "": as the server has it
  try {
    return { ...defaults, ...JSON.parse(localStorage.getItem("hearken.settings")) };
  } catch {
    return defaults; // Storage is off, or holds something else.
  }
}

/** What this tab remembers across a reload. */
function remembered(key) {
  try {
    return sessionStorage.getItem(key) ?? "";
  } catch {
    return "";
  }
}

/** Storage may be off or full; then what is set holds for this visit. */
function store(storage, key, value) {
  try {
    storage.setItem(key, value);
  } catch {}
}

function saveSettings() {
  store(localStorage, "hearken.settings", JSON.stringify(settings));
}

function showSettings() {
  for (const name of ["mode", "effort"]) {
    for (const radio of document.getElementsByName(name)) radio.checked = radio.value === settings[name];
  }
  page.cleanup.checked = settings.cleanup;
  page.aloud.checked = speech.on = settings.aloud && speech.available;
  page.aloud.disabled = !speech.available;
  if (!speech.available) at("aloud-hint").textContent = "This browser has no voices.";
}

// ---- The wire -------------------------------------------------------------------------------------------------------

function askForSession() {
  agreed = null;
  const sound = wire.takesTracks ? {} : { format: FORMATS[format].wire };
  formatAsked = wire.send({
    type: "session.update",
    session: {
      type: "realtime",
      output_modalities: ["text"],
      audio: {
        input: {
          ...sound,
          turn_detection: { type: "server_vad", create_response: true, interrupt_response: true },
        },
      },
      include: ["reasoning.text", "hearken.timings", "hearken.captions.tentative"],
      ...(settings.effort && { reasoning: { effort: settings.effort } }),
    },
  });
}

wire.addEventListener("status", ({ detail }) => {
  agreed = null;
  if (detail.state === "open") {
    lostDetail = null;
    tokenWanted = false;
    clearNotice();
    if (!detail.again) conversation.interrupted(performance.now());
    askForSession();
    joinSound();
    detail.again ? tellRest() : tellAgain();
    greetedBefore = true;
    const id = wire.resume?.conversation_id ?? null;
    store(sessionStorage, "hearken.conversation", id ?? "");
    page.history.current = id;
  } else if (detail.state !== "connecting") {
    speech.stop();
    // Nothing more is heard of a turn that was being spoken until the server says how it ended.
    if (!wire.resume) giveUp();
    if (detail.code !== undefined && detail.code !== 1000) {
      lostDetail = { ...detail };
      void whyLost(lostDetail);
    } else if (detail.state === "resting" && detail.code === 1000 && micState !== "off" && gateOpen()) {
      stopMicrophone();
      notice("This conversation goes on in another place, or nothing was heard for long. Press the microphone to go on here.");
    }
  }
  showBanner();
  showState();
});

/** The microphone's sound goes as this wire takes it. */
function joinSound() {
  if (micState === "off" || micState === "starting") return;
  if ((microphone.format === "track") !== wire.takesTracks) void startMicrophone();
  else wire.setTrack(microphone.track);
}

/** The conversation will not go on by itself. What was said and has no reply yet is answered in the next session. */
function giveUp() {
  const last = conversation.turns.at(-1);
  if (conversation.awaitingSince !== null && last?.role === "user" && last.words) replyWanted = true;
  conversation.interrupted(performance.now());
}

/** The same conversation: the server is told what it does not have yet, and whatever has no reply is answered. */
function tellRest() {
  const unsent = conversation.turns.filter((turn) => turn.role === "user" && !turn.kept && turn.words);
  for (const turn of unsent) wire.send(typedItem(turn.id, turn.words));
  const last = conversation.turns.at(-1);
  const cutOff = last?.code === "server_restarted" && !last.askedAgain;
  if (cutOff) last.askedAgain = true;
  if ((replyWanted || unsent.length || cutOff) && !conversation.active) {
    replyWanted = false;
    wire.send({ type: "response.create" });
  }
}

function typedItem(id, text) {
  return { type: "conversation.item.create", item: { id, type: "message", role: "user", content: [{ type: "input_text", text }] } };
}

/** A new session remembers nothing: it is given the words so far, and whatever was typed meanwhile is answered. */
function tellAgain() {
  const told = conversation.turns.filter((turn) => (turn.words ?? turn.text).trim()).slice(-MOST_TOLD_AGAIN);
  for (const turn of told) {
    const user = turn.role === "user";
    const content = [user ? { type: "input_text", text: turn.words } : { type: "output_text", text: turn.text }];
    const item = { id: user ? turn.id : undefined, type: "message", role: user ? "user" : "assistant", content };
    wire.send({ type: "conversation.item.create", item });
  }
  if (greetedBefore && told.length) {
    page.log.divide("Connected again, as a new session. It was given the words above, not how they sounded.");
  }
  if (replyWanted) {
    replyWanted = false;
    wire.send({ type: "response.create" });
  }
}

/** Asks the server by plain HTTP. */
function ask(path, options = {}) {
  const headers = wire.token ? { authorization: `Bearer ${wire.token}` } : {};
  return fetch(new URL(path, location.href), { cache: "no-store", headers, ...options });
}

/** Shows a conversation that the server has kept, and goes on with it. Whether there is one. */
async function openConversation(id) {
  const answer = await ask(`v1/conversations/${id}`).catch(() => null);
  if (answer?.status === 401) askForToken();
  const story = answer?.ok ? await answer.json().catch(() => null) : null;
  if (!story) return false;
  leaveConversation(story);
  wire.goTo(story.resume ?? null, story.last_event);
  return true;
}

/** Clears the page for another conversation, or for a new one. */
function leaveConversation(story = null) {
  speech.stop();
  page.log.clear();
  greetedBefore = replyWanted = false;
  conversation.load(story, performance.now());
  page.welcome.hidden = conversation.turns.length > 0;
  clearNotice();
  following = true;
  keepAtEnd();
}

/** A refused WebSocket says nothing about why; the server's plain pages do. */
async function whyLost(detail) {
  try {
    detail.ready = await readiness(ask);
    // 1006: it never opened, or broke without a word.
    if (["full", "ready"].includes(detail.ready) && (detail.code === 1006 || detail.code === 1008)) {
      const known = await ask(wire.resume ? `v1/conversations/${wire.resume.conversation_id}` : "v1/models");
      if (known.status === 401) askForToken();
      else if (known.status === 404 && wire.resume && detail === lostDetail) {
        // Deleted since, or the server has lost it: what is on the page is told to a new one.
        giveUp();
        wire.goTo();
      }
    }
  } catch {
    detail.ready = "unreachable";
  }
  if (detail === lostDetail) showBanner();
}

function askForToken() {
  tokenWanted = true;
  at("token-wrong").textContent = wire.token ? "That one was not right." : "";
  wire.rest();
  showBanner();
  showState();
  at("token").focus();
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  wire.token = at("token").value.trim();
  at("token").value = "";
  store(sessionStorage, "hearken.token", wire.token);
  tokenWanted = false;
  void begin();
});

wire.addEventListener("message", ({ detail: event }) => {
  switch (event.type) {
    case "session.created":
    case "session.updated":
      learnSession(event);
      break;
    case "error":
      serverError(event.error ?? {});
      break;
    default:
      conversation.apply(event, performance.now());
  }
  if (event.type === "response.done" && replyWanted) {
    replyWanted = false;
    wire.send({ type: "response.create" });
  }
  showState();
});

function learnSession({ type, session = {} }) {
  const input = session.audio?.input;
  if (Number.isFinite(input?.turn_detection?.silence_duration_ms)) silenceMs = input.turn_detection.silence_duration_ms;
  if (session.model) at("fact-model").textContent = session.model;
  if (!settings.effort) showEffort(session.reasoning?.effort);
  if (type !== "session.updated" || wire.takesTracks) return;
  const answered = input?.format?.type ?? FORMATS[format].wire.type;
  if (answered === FORMATS[format].wire.type) agreed = format;
  else if (format === "opus") fallBackToPcm();
}

/** What nobody has chosen here is as the server's configuration or its model has it. */
function showEffort(told) {
  const effort = { minimal: "none", xhigh: "high" }[told] ?? told;
  for (const radio of document.getElementsByName("effort")) radio.checked = radio.value === effort;
}

function serverError(error) {
  if (error.event_id && error.event_id === formatAsked && format === "opus") {
    fallBackToPcm(); // It knows no Opus; everything else in that update is asked for again.
    return;
  }
  if (error.code === "conversation_already_has_active_response" && conversation.active) {
    replyWanted = true;
    return;
  }
  const words = errorWords(error);
  if (words) notice(words);
}

function fallBackToPcm() {
  format = "pcm";
  askForSession();
  if (micState === "on") void startMicrophone();
}

// ---- The microphone -------------------------------------------------------------------------------------------------

microphone.onframe = (bytes) => {
  if (microphone.format === "track") {
    if (wire.takesTracks) soundMs += 20;
    return;
  }
  if (agreed !== microphone.format) return;
  const before = wire.dropped;
  if (wire.sendSound(bytes)) soundMs += 20;
  else if (wire.dropped > before && wire.dropped % 50 === 1) notice("The connection is too slow: some of what you said was not sent.");
};
microphone.onlevel = (db) => {
  page.meter.level = db;
};
microphone.onended = () => {
  micState = "off";
  page.meter.analyser = null;
  showState();
  notice("The microphone was unplugged.");
  void listDevices().then(() => startMicrophone());
};
microphone.onpaused = (paused) => {
  if (micState === "off" || micState === "starting") return;
  micState = paused ? "paused" : "on";
  showState();
};
microphone.onencoderfailed = () => fallBackToPcm();

async function startMicrophone() {
  micState = "starting";
  hideHelp();
  clearNotice();
  applyGate();
  showState();
  try {
    await microphone.start({ deviceId: settings.device, cleanup: settings.cleanup, format: wire.takesTracks ? "track" : format });
    if (!microphone.running) return; // Stopped while the browser was still asking.
    micState = "on";
    page.meter.analyser = microphone.analyser;
    at("fact-format").textContent = FORMATS[microphone.format].name;
    // Another wire may have come while the browser was asking.
    if (wire.state === "open") joinSound();
    announce(gateOpen() ? "Listening." : "The microphone is ready.");
    void stayAwake();
    void listDevices();
  } catch (error) {
    micState = "off";
    page.meter.analyser = null;
    showHelp(error.kind);
  }
  showState();
}

function stopMicrophone() {
  void microphone.finish(tailMs()).then((finished) => finished && wire.setTrack(null));
  micState = "off";
  muted = false;
  held = false;
  page.meter.analyser = null;
  page.meter.level = -Infinity;
  announce("Not listening.");
  letSleep();
  showState();
}

/** Enough silence for the server to see that the turn is over. */
function tailMs() {
  return Math.min(3000, silenceMs + 300);
}

function gateOpen() {
  return held || (settings.mode === "open" && !muted);
}

function applyGate() {
  if (gateOpen() && wire.state === "resting" && !tokenWanted) wire.connect();
  microphone.setOpen(gateOpen(), tailMs());
}

function setMuted(value) {
  if (micState === "off" || settings.mode === "hold") return;
  muted = value;
  mutedByHold = false;
  applyGate();
  announce(muted ? "Muted." : "Listening.");
  showState();
}

/** Press: the gate opens, and a microphone that was off starts. Release: it closes again. */
function hold(down) {
  if (held === down) return;
  held = down;
  if (down) {
    void microphone.resume();
    if (micState === "off") {
      muted = mutedByHold = true; // Once let go, it does not go on listening by itself.
      void startMicrophone();
    }
  }
  applyGate();
  showState();
}

async function listDevices() {
  const devices = await microphones().catch(() => []);
  const known = devices.some((device) => device.deviceId === settings.device);
  const options = devices.filter((device) => device.deviceId !== "default").map((device, index) => {
    return new Option(device.label || `Microphone ${index + 1}`, device.deviceId);
  });
  page.device.replaceChildren(new Option("Default microphone", ""), ...options);
  page.device.value = known ? settings.device : "";
  if (devices.length && page.help.dataset.kind === "missing") hideHelp();
}

navigator.mediaDevices?.addEventListener?.("devicechange", () => void listDevices());

// A permission changed in the browser's own settings takes effect without a reload.
navigator.permissions?.query({ name: "microphone" }).then(
  (permission) => {
    permission.onchange = () => {
      if (permission.state !== "denied") hideHelp("denied");
      void listDevices();
    };
  },
  () => {},
);

let wakeLock = null;
async function stayAwake() {
  try {
    wakeLock ??= await navigator.wakeLock?.request("screen");
    wakeLock?.addEventListener("release", () => (wakeLock = null), { once: true });
    if (micState === "off") letSleep();
  } catch {
    wakeLock = null; // Refused on low battery: the person's choice.
  }
}
function letSleep() {
  void wakeLock?.release();
}

// ---- What is said -----------------------------------------------------------------------------------------------------

function say(words) {
  const id = `msg_${crypto.getRandomValues(new Uint32Array(3)).join("_")}`;
  if (conversation.active) stopReply();
  speech.stop();
  const sent = wire.send(typedItem(id, words));
  // With a reply still being cancelled the next one has to wait for its end; with no connection, for `tellAgain`.
  if (!sent || conversation.active) replyWanted = true;
  else wire.send({ type: "response.create" });
  conversation.typed(id, words, performance.now());
  if (!sent) {
    notice("There is no connection now. This will be answered as soon as there is one.");
    wire.connect();
  }
}

/** A file is heard like a turn of speech. */
async function sendFile(file) {
  clearNotice();
  if (wire.state !== "open") {
    wire.connect();
    return notice("There is no connection now. Send the file again when there is.");
  }
  let sound;
  try {
    sound = await readSound(file);
  } catch (error) {
    return notice(`${file.name} was not sent. ${fileWords(error.kind ?? "unreadable", MOST_SECONDS)}`);
  }
  if (conversation.active) stopReply();
  speech.stop();
  const id = `file_${crypto.getRandomValues(new Uint32Array(3)).join("_")}`;
  const item = { id, type: "message", role: "user", content: [{ type: "input_audio", audio: sound.audio }] };
  if (!wire.send({ type: "conversation.item.create", item })) return notice("The connection was lost before the file was sent.");
  conversation.file(id, sound.ms, performance.now());
  if (conversation.active) replyWanted = true;
  else wire.send({ type: "response.create" });
  announce(`Sent ${file.name}.`);
  showState();
}

function stopReply() {
  replyWanted = false;
  speech.stop();
  const active = conversation.active;
  if (active) wire.send({ type: "response.cancel", response_id: active.id });
  else if (conversation.awaitingSince !== null) {
    wire.send({ type: "response.cancel" });
    conversation.giveUpWaiting();
  }
  showState();
}

conversation.addEventListener("added", () => {
  page.welcome.hidden = true;
  clearNotice();
  keepAtEnd();
});
conversation.addEventListener("changed", ({ detail: turn }) => {
  if (turn.role === "agent") speech.follow(turn);
  else if (turn.state === "hearing") speech.stop();
  keepAtEnd();
});
conversation.addEventListener("finished", ({ detail: turn }) => {
  if (turn.role === "user" && turn.how === "spoken" && turn.words) announce(`You: ${turn.words}`);
  if (turn.role === "agent" && turn.text) announce(`Hearken: ${turn.text}`);
});
page.log.conversation = conversation;

// ---- Showing ----------------------------------------------------------------------------------------------------------

function currentState() {
  if (wire.state === "connecting") return lostDetail ? "lost" : "connecting";
  if (wire.state === "waiting" || tokenWanted) return "lost";
  if (conversation.hearing) return "hearing";
  if (conversation.active) return conversation.active.state;
  if (conversation.awaitingSince !== null) return "thinking";
  if (micState === "starting") return "starting";
  if (micState === "paused") return "paused";
  if (micState === "on") return gateOpen() ? "listening" : settings.mode === "hold" ? "holding" : "muted";
  return "idle";
}

function showState() {
  const state = currentState();
  const now = performance.now();
  if (page.state.dataset.state !== state) page.state.dataset.state = state;
  const turn = conversation.active ?? { waitFrom: conversation.awaitingSince, thinkFrom: null };
  const words = state === "thinking" ? thinkingWords(turn, now) : STATES[state];
  if (page.stateWords.textContent !== words) page.stateWords.textContent = words;

  const on = micState !== "off";
  const holding = settings.mode === "hold";
  const stops = on && !(muted && mutedByHold);
  const does = holding ? "Hold to talk" : stops ? "Stop listening" : "Start listening";
  if (page.mic.getAttribute("aria-label") !== does) {
    page.mic.setAttribute("aria-label", does);
    page.mic.title = holding ? `${does} (space)` : does;
  }
  page.mic.dataset.mic = on && !gateOpen() ? "muted" : micState;
  page.mute.hidden = !on || holding;
  page.mute.setAttribute("aria-pressed", String(on && muted && !held));
  page.mute.title = muted ? "Unmute (m)" : "Mute (m)";

  const busy = conversation.active !== null || conversation.awaitingSince !== null;
  const typing = page.message.value.trim() !== "";
  const hadFocus = document.activeElement;
  page.stop.hidden = !busy || typing;
  page.send.hidden = !page.stop.hidden;
  if (hadFocus === page.stop && page.stop.hidden) page.message.focus();
  page.send.disabled = !typing;
  if (page.wire.textContent !== wire.wire) page.wire.textContent = wire.wire;
  if (soundMs) at("fact-sent").textContent = seconds(soundMs);
}

// Timers in words, and a reply that never came.
setInterval(() => {
  const now = performance.now();
  if (conversation.active?.state === "thinking") page.log.tick(conversation.active, now);
  if (conversation.awaitingSince !== null && now - conversation.awaitingSince > 20_000) conversation.giveUpWaiting();
  if (lostDetail) showBanner();
  showState();
}, 100);

function showBanner() {
  const lost = wire.state !== "open" && lostDetail !== null;
  page.banner.hidden = !lost || tokenWanted;
  at("token-form").hidden = !tokenWanted;
  if (page.banner.hidden) return;
  const why = connectionWords(lostDetail);
  const left = wire.state === "connecting" ? 0 : Math.ceil(((lostDetail?.retryAt ?? 0) - Date.now()) / 1000);
  const again = wire.state === "resting" ? "" : left > 0 ? ` Trying again in ${left} s.` : " Trying again.";
  const words = why + again;
  if (page.bannerWords.textContent !== words) page.bannerWords.textContent = words;
}

function notice(words) {
  page.notice.textContent = words;
  page.notice.hidden = false;
}
function clearNotice() {
  page.notice.hidden = true;
  page.notice.textContent = "";
}

function showHelp(kind = "failed") {
  const { title, steps } = microphoneHelp(kind, location);
  const meanwhile = document.createElement("p");
  meanwhile.textContent = "Until then you can type.";
  const heading = document.createElement("h2");
  heading.textContent = title;
  const list = document.createElement("ol");
  for (const step of steps) {
    const item = document.createElement("li");
    item.textContent = step;
    list.append(item);
  }
  const again = document.createElement("button");
  again.type = "button";
  again.className = "small";
  again.textContent = "Try again";
  again.onclick = () => void startMicrophone();
  page.help.replaceChildren(heading, list, meanwhile, ...(kind === "insecure" || kind === "unsupported" ? [] : [again]));
  page.help.dataset.kind = kind;
  page.help.hidden = false;
  page.help.scrollIntoView({ block: "nearest" });
}
function hideHelp(kind = page.help.dataset.kind) {
  if (page.help.dataset.kind !== kind) return;
  page.help.hidden = true;
  delete page.help.dataset.kind;
}

/** Only finished lines reach a screen reader; the visible log changes with every word. */
function announce(words) {
  const line = document.createElement("p");
  line.textContent = words;
  page.announce.append(line);
  while (page.announce.childElementCount > 12) page.announce.firstElementChild.remove();
}

let following = true;
function keepAtEnd() {
  if (following) page.scroll.scrollTop = page.scroll.scrollHeight;
  else page.latest.hidden = false;
}
page.scroll.addEventListener("scroll", () => {
  following = page.scroll.scrollTop + page.scroll.clientHeight > page.scroll.scrollHeight - 48;
  if (following) page.latest.hidden = true;
}, { passive: true });
page.latest.addEventListener("click", () => {
  following = true;
  page.latest.hidden = true;
  keepAtEnd();
});
new ResizeObserver(() => keepAtEnd()).observe(page.scroll);

// ---- Hands ------------------------------------------------------------------------------------------------------------

page.mic.addEventListener("click", (event) => {
  if (settings.mode === "hold") return;
  if (event.detail > 0) page.mic.blur(); // After a mouse or a finger, space means "hold to talk" and not "press again".
  if (micState === "paused") void microphone.resume();
  else if (micState !== "off" && muted && mutedByHold) setMuted(false);
  else if (micState === "off") {
    muted = false;
    void startMicrophone();
  } else stopMicrophone();
});
page.mic.addEventListener("pointerdown", (event) => {
  if (settings.mode !== "hold" || event.button !== 0) return;
  page.mic.setPointerCapture(event.pointerId);
  hold(true);
});
for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
  page.mic.addEventListener(type, () => settings.mode === "hold" && hold(false));
}
page.mic.addEventListener("contextmenu", (event) => settings.mode === "hold" && event.preventDefault());
page.mute.addEventListener("click", (event) => {
  if (event.detail > 0) page.mute.blur();
  setMuted(!muted);
});
page.stop.addEventListener("click", stopReply);
at("attach").addEventListener("click", () => page.file.click());
page.file.addEventListener("change", () => {
  if (page.file.files.length) void sendFile(page.file.files[0]);
  page.file.value = "";
});
for (const type of ["dragenter", "dragover"]) {
  addEventListener(type, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    page.drop.hidden = false;
  });
}
addEventListener("dragleave", (event) => (page.drop.hidden = event.relatedTarget === null ? true : page.drop.hidden));
addEventListener("drop", (event) => {
  page.drop.hidden = true;
  if (!event.dataTransfer?.files.length) return;
  event.preventDefault();
  void sendFile(event.dataTransfer.files[0]);
});
at("banner-retry").addEventListener("click", () => wire.connect());

function sendMessage() {
  const words = page.message.value.trim();
  if (!words) return;
  say(words);
  page.message.value = "";
  growMessage();
  following = true;
  keepAtEnd();
  showState();
}
page.compose.addEventListener("submit", (event) => {
  event.preventDefault();
  sendMessage();
});
page.message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    sendMessage();
  }
});
page.message.addEventListener("input", () => {
  if (wire.state === "resting" && !tokenWanted) wire.connect(); // It is there by the time the message is.
  growMessage();
  showState();
});
function growMessage() {
  page.message.style.height = "auto";
  page.message.style.height = `${Math.min(page.message.scrollHeight, 160)}px`;
}

/** Keys belong to whatever has the focus, unless that is just the page. */
function inControl(target) {
  return target.closest?.("input, textarea, select, button, summary, a, [contenteditable]") !== null;
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) {
    if (page.history.classList.contains("shown")) toggleHistory(false);
    else if (page.panel.classList.contains("shown")) togglePanel(false);
    else stopReply();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onMic = event.target === page.mic && settings.mode === "hold";
  if (event.code === "Space" && (onMic || !inControl(event.target))) {
    event.preventDefault();
    if (!event.repeat) hold(true);
  } else if (inControl(event.target) && event.target.matches("input:not([type=radio], [type=checkbox]), textarea, select")) {
    return;
  } else if (event.key === "m" && !event.repeat) setMuted(!muted);
  else if (event.key === "/") {
    event.preventDefault();
    page.message.focus();
  }
});
addEventListener("keyup", (event) => {
  if (event.code === "Space" && held) {
    event.preventDefault();
    hold(false);
  }
});
addEventListener("blur", () => hold(false)); // A key let go in another window is never heard of here.

for (const radio of document.getElementsByName("effort")) {
  radio.addEventListener("change", () => {
    settings.effort = radio.value;
    saveSettings();
    wire.send({ type: "session.update", session: { type: "realtime", reasoning: { effort: radio.value } } });
  });
}
for (const radio of document.getElementsByName("mode")) {
  radio.addEventListener("change", () => {
    settings.mode = radio.value;
    saveSettings();
    muted = held = false;
    applyGate();
    showState();
  });
}
page.aloud.addEventListener("change", () => {
  settings.aloud = speech.on = page.aloud.checked;
  saveSettings();
  if (speech.on) speech.skip(conversation.turns.findLast((turn) => turn.role === "agent"));
  else speech.stop();
});
page.cleanup.addEventListener("change", () => {
  settings.cleanup = page.cleanup.checked;
  saveSettings();
  if (micState === "on") void startMicrophone();
});
page.device.addEventListener("change", () => {
  settings.device = page.device.value;
  saveSettings();
  if (micState === "on") void startMicrophone();
});

function togglePanel(shown = !page.panel.classList.contains("shown")) {
  page.panel.classList.toggle("shown", shown);
  page.panelToggle.setAttribute("aria-expanded", String(shown));
  if (shown) page.device.focus();
  else if (page.panel.contains(document.activeElement)) page.panelToggle.focus();
}
page.panelToggle.addEventListener("click", () => togglePanel());

function toggleHistory(shown = !page.history.classList.contains("shown")) {
  page.history.classList.toggle("shown", shown);
  page.historyToggle.setAttribute("aria-expanded", String(shown));
  if (shown) {
    void page.history.refresh();
    page.history.focus();
  } else if (page.history.contains(document.activeElement)) page.historyToggle.focus();
}
page.historyToggle.addEventListener("click", () => toggleHistory());
page.scroll.addEventListener("pointerdown", () => {
  togglePanel(false);
  toggleHistory(false);
});

page.history.ask = ask;
page.history.addEventListener("begin", () => {
  leaveConversation();
  wire.goTo();
  toggleHistory(false);
  page.message.focus();
});
page.history.addEventListener("open", async ({ detail: { id } }) => {
  if (!(await openConversation(id))) return notice("That conversation cannot be had now.");
  toggleHistory(false);
  announce("Opened an earlier conversation.");
});
page.history.addEventListener("forgotten", ({ detail: id }) => {
  if (wire.resume?.conversation_id !== id) return;
  leaveConversation();
  wire.goTo(null, 0, { goodbye: false });
});

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible") return;
  if (micState === "on" || micState === "paused") void stayAwake();
  void microphone.resume();
  if (wire.state === "waiting") wire.connect();
});
addEventListener("online", () => wire.state === "waiting" && wire.connect());
addEventListener("pointerdown", () => void microphone.resume(), { passive: true });

// ---- Begin ------------------------------------------------------------------------------------------------------------

/** Goes on where this tab was before it was reloaded, or begins. */
async function begin() {
  const id = remembered("hearken.conversation");
  if (!id || !(await openConversation(id))) if (!tokenWanted) wire.connect();
}

showSettings();
showState();
void listDevices();
wire.token = remembered("hearken.token");
format = await bestFormat();
await begin();
