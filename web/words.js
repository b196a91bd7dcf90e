// Every sentence the page says about a state or a failure, in one place and in plain words.

export function seconds(ms) {
  if (ms < 9_950) return `${(ms / 1000).toFixed(1)} s`;
  const all = Math.round(ms / 1000);
  return all < 60 ? `${all} s` : `${Math.floor(all / 60)} min ${all % 60} s`;
}

export function shortTime(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : seconds(ms);
}

export const STATES = {
  connecting: "Connecting",
  lost: "Connection lost",
  idle: "Idle",
  starting: "Opening the microphone",
  paused: "Paused by the system",
  listening: "Listening",
  muted: "Muted",
  holding: "Hold to talk",
  hearing: "Hearing you",
  thinking: "Thinking",
  replying: "Replying",
};

/** Before it reasons it has to read what it heard; that time is not called thinking. */
export function thinkingWords({ waitFrom, thinkFrom }, now) {
  const words = thinkFrom === null ? "Taking it in" : STATES.thinking;
  return `${words} ${seconds(Math.max(0, now - (thinkFrom ?? waitFrom)))}`;
}

/** The parts of a turn's time, in the order in which they happen. */
export const TIMINGS = [
  ["voice_activity", "Silence", "making sure that you had finished"],
  ["queued", "Queue", "waiting for the model to be free"],
  ["encode", "Encode", "turning the last of the sound into what the model reads"],
  ["words", "Words", "writing down the words that were spoken"],
  ["prefill", "Prefill", "reading the turn"],
  ["think", "Think", "reasoning"],
  ["reply", "Reply", "writing the reply"],
];

const REASONS = {
  turn_detected: "You spoke, so it stopped here.",
  client_cancelled: "You stopped it here.",
  max_output_tokens: "It reached the longest reply allowed.",
  content_filter: "The reply was withheld.",
};

export function endNote(turn) {
  if (turn.code === "server_restarted") return ERRORS.server_restarted;
  if (turn.state === "failed" && ERRORS[turn.code]) return ERRORS[turn.code];
  if (turn.state === "failed") return turn.why ? `The reply failed: ${turn.why}` : "The reply failed.";
  if (turn.state === "incomplete") return REASONS[turn.reason] ?? "The reply is not complete.";
  if (turn.state === "cancelled") return turn.why ?? REASONS[turn.reason] ?? "Stopped here.";
  return "";
}

/** Refusals that are no fault of anybody: two sides acted at the same moment. */
const QUIET = new Set(["response_cancel_not_active", "input_audio_buffer_commit_empty"]);

const ERRORS = {
  conversation_already_has_active_response: "It is still answering. Stop the reply first, then send again.",
  overloaded: "The server is serving as many people as it can. Try again in a moment.",
  rate_limit_exceeded: "This conversation has asked for too many replies. Try again in a minute.",
  context_length_exceeded: "This conversation has grown too long for the model. Begin a new one under History.",
  server_restarted: "The server was restarted here.",
  input_audio_too_long: "That is more sound than can be taken at once.",
  invalid_api_key: "The server asks for a key, and this page was not given one.",
};

/** Null when there is nothing worth saying. */
export function errorWords(error = {}) {
  if (QUIET.has(error.code)) return null;
  if (ERRORS[error.code]) return ERRORS[error.code];
  const message = error.message?.trim();
  return message ? `The server could not do that: ${message}` : "The server could not do that.";
}

export function connectionWords({ code, reason, ready }) {
  if (ready === "full") return "The server is serving as many people as it can.";
  if (ready === "loading") return "The server is up, and not ready yet.";
  if (code === 1013 || code === 4429) return "The server is serving as many people as it can.";
  if (code === 1008 || code === 4401) return reason ? `The server refused this page: ${reason.replace(/\.$/, "")}.` : "The server refused this page.";
  if (code === 1001 || code === 1012) return "The server is restarting.";
  if (ready === "unreachable") return "The server cannot be reached.";
  return "The connection was lost.";
}

/** Why a dropped file is not heard. */
export function fileWords(kind, most) {
  return {
    long: `That is too long: at most ${seconds(most * 1000)} of sound are heard at once.`,
    short: "There is no sound in it.",
    unreadable: "This browser cannot read it as sound. WAV, MP3, Ogg, FLAC and M4A usually work.",
  }[kind];
}

/** `m:ss`, or `h:mm:ss`. */
export function clock(ms) {
  const all = Math.max(0, Math.floor(ms / 1000));
  const [h, m, s] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  return h ? `${h}:${String(m).padStart(2, "0")}:${String(s).padStart(2, "0")}` : `${m}:${String(s).padStart(2, "0")}`;
}

/** Of what the model thought about a turn, how it sounded: the words are told elsewhere. */
export function heardWords(reasoning) {
  const [sound] = reasoning.split(/\bThe words\b/);
  return sound.replace(/^\s*I hear\s*/i, "").replace(/\s+/g, " ").trim().replace(/[.,;]$/, "");
}

/** When something was, as one says it of a list: today only the time, else the day. */
export function when(ms, now = Date.now()) {
  const date = new Date(ms);
  const today = new Date(now).toDateString() === date.toDateString();
  return today ? date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : date.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" });
}

/** {title, steps} for each kind of MicrophoneError. */
export function microphoneHelp(kind, { host, protocol, port } = {}) {
  switch (kind) {
    case "insecure":
      return {
        title: "This address may not use the microphone",
        steps: [
          "Browsers lend the microphone only to pages opened over https, or on the same machine as localhost.",
          `On the machine that runs Hearken, open http://localhost${port ? `:${port}` : ""}/ instead of ${protocol}//${host}/.`,
          "From another device, put Hearken behind https with any reverse proxy and name that address in server.allowed_origins, or carry its port over with ssh -L.",
        ],
      };
    case "unsupported":
      return {
        title: "This browser cannot capture sound",
        steps: ["It lacks audio worklets. Firefox, Chrome, Edge and Safari of the last few years all have them."],
      };
    case "denied":
      return {
        title: "The microphone is blocked for this page",
        steps: [
          "Press the icon left of the address (a lock, or sliders), find Microphone and choose Allow.",
          "If it is allowed there, the system may block it: look for Microphone in the privacy settings of your computer or phone, and allow this browser.",
          "Then press Try again.",
        ],
      };
    case "missing":
      return {
        title: "No microphone was found",
        steps: ["Plug one in, or switch on the headset. It is noticed as soon as it is there."],
      };
    case "no-tabs":
      return { title: "This browser cannot share a tab's sound", steps: ["Chrome and Edge on a computer can. Phones, Firefox and Safari cannot: caption the microphone instead."] };
    case "not-shared":
      return { title: "Nothing was shared", steps: ["Press Start again and choose the tab whose sound is to be captioned."] };
    case "silent-share":
      return { title: "No sound was shared", steps: ["Press Start again, choose a browser tab, and switch on “Also share tab audio” in that window."] };
    case "busy":
      return {
        title: "The microphone is taken",
        steps: ["Another program holds it, or the system would not open it. Close calls and recorders, then press Try again."],
      };
    default:
      return { title: "The microphone would not start", steps: ["Unplug it and plug it in again, or choose another device, then press Try again."] };
  }
}
