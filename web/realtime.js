// The wire: a session of the Realtime API, events in and out as JSON, sound out, over a connection that comes back by itself, to the same conversation.
// Knows nothing of microphones or of the page. Where it may, it tries WebRTC first, which bears lost packets, and takes a WebSocket, which goes through
// every proxy, where no path is found. Both lead to the same conversation, so that one may take over from the other.

import { PeerPipe, SocketPipe } from "./pipes.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

/** How the server is, by what its plain page says; a refused WebSocket tells nothing. */
export async function readiness(ask) {
  const ready = await ask("ready").catch(() => null);
  if (!ready) return "unreachable";
  if (!ready.ok) return "loading";
  const { free_sessions } = await ready.json().catch(() => ({}));
  return free_sessions === 0 ? "full" : "ready";
}

/**
 * Emits `status` {state: "connecting" | "open" | "waiting" | "resting", retryAt, code, reason} and `message` (a server
 * event). "open" means that the server has greeted with session.created, not merely that the connection opened, and comes
 * with `again`: whether the conversation is the one of before; "waiting", that it will try again by itself; "resting",
 * that it will not until it is told to connect. What was missed comes as `message` before "open".
 */
export class Realtime extends EventTarget {
  #pipe = null;
  #peers;
  #timer = 0;
  #failures = 0;
  #counter = 0;
  /** The event_id of the last event that came. */
  #last = "";
  /** What waits for another pipe, because it is too large for this one; null when nothing does. */
  #held = null;
  state = "resting";
  /** What a server that asks for one is given; "" where none is asked for. */
  token = "";
  /** How to come back: {token, conversation_id}; null before the first greeting, and where a server keeps nothing. */
  resume = null;

  /** `base`: the page's address; `kind`: chat or captions, for the list of conversations; `peers`: whether WebRTC is tried. */
  constructor(base = location.href, kind = "chat", { peers = false } = {}) {
    super();
    this.base = base;
    this.kind = kind;
    this.#peers = peers && PeerPipe.available;
  }

  /** "WebRTC", "WebSocket", or "" while there is no connection. */
  get wire() {
    return this.state === "open" ? this.#pipe.constructor.wire : "";
  }

  /** Whether sound goes as a track, and not as frames. */
  get takesTracks() {
    return this.wire === PeerPipe.wire;
  }

  /** Frames not sent because the connection could not keep up. */
  get dropped() {
    return this.#pipe?.dropped ?? 0;
  }

  connect() {
    clearTimeout(this.#timer);
    if (this.#pipe) return;
    this.#status("connecting");
    const options = { kind: this.kind, token: this.token, resume: this.resume?.token ?? "", after: this.resume ? this.#last : null };
    const Pipe = this.#peers && !this.#held ? PeerPipe : SocketPipe;
    try {
      const pipe = new Pipe(this.base, options, {
        text: (text) => pipe === this.#pipe && this.#heard(text),
        closed: (how) => pipe === this.#pipe && this.#closed(how),
      });
      this.#pipe = pipe;
    } catch {
      this.#status("resting", { code: 1008, reason: "a token has no spaces, commas or accents" });
    }
  }

  #heard(text) {
    let event;
    try {
      event = JSON.parse(text);
    } catch {
      return; // What is not JSON is not an event; there is nobody to tell.
    }
    if (event.event_id) this.#last = event.event_id;
    if (event.type === "session.created") {
      this.#failures = 0;
      const before = this.resume?.conversation_id;
      this.resume = event.session?.resume ?? null;
      const held = this.#held ?? [];
      this.#held = null;
      this.#status("open", { again: before !== undefined && before === this.resume?.conversation_id });
      for (const text of held) this.#pipe.send(text);
    }
    this.dispatchEvent(new CustomEvent("message", { detail: event }));
  }

  #closed({ code, reason, unusable = false }) {
    this.#pipe = null;
    if (unusable) {
      this.#peers = false;
      this.connect();
    }
    // A normal close is the server's good night after a long silence; whoever speaks next connects again.
    else if (code === 1000) this.#status("resting", { code, reason });
    else this.#lost(code, reason);
  }

  /**
   * Leaves this conversation and goes to another: a new one, or, with `resume`, on with one whose events are known up to a number. Without `goodbye`,
   * because the server has ended it already.
   */
  goTo(resume = null, last = 0, { goodbye = true } = {}) {
    clearTimeout(this.#timer);
    const pipe = this.#pipe;
    this.#pipe = this.#held = null;
    pipe?.close({ goodbye });
    this.resume = resume;
    this.#last = String(last);
    this.#failures = 0;
    this.connect();
  }

  /** Trying again would be no use before something else has changed. */
  rest() {
    if (this.state !== "waiting") return;
    clearTimeout(this.#timer);
    this.#status("resting");
  }

  /** Sends an event; returns its id, or null when there is no session to send it to. */
  send(event) {
    const event_id = event.event_id ?? `page_${++this.#counter}`;
    const text = JSON.stringify({ event_id, ...event });
    if (this.#held) {
      this.#held.push(text);
      return event_id;
    }
    if (this.state !== "open") return null;
    if (!this.#pipe.fits(text)) {
      this.#held = [text];
      this.#pipe.close({ goodbye: false });
      this.#pipe = null;
      this.connect();
      return event_id;
    }
    return this.#pipe.send(text) ? event_id : null;
  }

  /** Sends one binary frame of sound; false when it had to be dropped. */
  sendSound(bytes) {
    return this.state === "open" && this.#pipe.sendSound(bytes);
  }

  /** The track that carries the sound from now on, where sound goes as one; null for none. */
  setTrack(track) {
    if (this.takesTracks) this.#pipe.setTrack(track);
  }

  #lost(code, reason) {
    const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#failures++);
    const jittered = wait * (0.75 + Math.random() * 0.5);
    this.#timer = setTimeout(() => this.connect(), jittered);
    this.#status("waiting", { retryAt: Date.now() + jittered, code, reason });
  }

  #status(state, more = {}) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("status", { detail: { state, failures: this.#failures, ...more } }));
  }
}
