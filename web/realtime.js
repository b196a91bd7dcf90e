// The wire: one WebSocket to /v1/realtime, events in and out as JSON, sound out as binary frames, and a connection
// that comes back by itself, to the same conversation. Knows nothing of microphones or of the page. Another wire (WebRTC)
// takes its place by having the same methods and telling the same things.

/** Sound waiting in the socket beyond this is sound that would arrive too late to matter: about two seconds of PCM. */
const MOST_WAITING = 96_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

export function realtimeAddress(base = location.href) {
  const url = new URL("v1/realtime", base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.hash = "";
  return url.href;
}

/**
 * Emits `status` {state: "connecting" | "open" | "waiting" | "resting", retryAt, code, reason} and `message` (a server
 * event). "open" means that the server has greeted with session.created, not merely that the socket opened, and comes
 * with `again`: whether the conversation is the one of before; "waiting", that it will try again by itself; "resting",
 * that it will not until it is told to connect. What was missed comes as `message` before "open".
 */
export class Realtime extends EventTarget {
  #socket = null;
  #timer = 0;
  #failures = 0;
  #counter = 0;
  /** The event_id of the last event that came. */
  #last = "";
  state = "resting";
  /** What a server that asks for one is given; "" where none is asked for. */
  token = "";
  /** How to come back: {token, conversation_id}; null before the first greeting, and where a server keeps nothing. */
  resume = null;
  /** Frames not sent because the connection could not keep up. */
  dropped = 0;

  /** `kind`: chat or captions, for the list of conversations. */
  constructor(address, kind = "chat") {
    super();
    this.address = address;
    this.kind = kind;
  }

  connect() {
    clearTimeout(this.#timer);
    if (this.#socket) return;
    this.#status("connecting");
    let socket;
    try {
      const url = new URL(this.address);
      url.searchParams.set("kind", this.kind);
      url.searchParams.set("resume", this.resume?.token ?? "");
      if (this.resume) url.searchParams.set("after", this.#last);
      // A browser cannot set headers on a WebSocket, so the token goes as a subprotocol.
      const key = this.token ? [`openai-insecure-api-key.${this.token}`] : [];
      socket = new WebSocket(url, ["realtime", ...key]);
    } catch {
      this.#status("resting", { code: 1008, reason: "a token has no spaces, commas or accents" });
      return;
    }
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket || typeof data !== "string") return;
      let event;
      try {
        event = JSON.parse(data);
      } catch {
        return; // A frame that is not JSON is not an event; there is nobody to tell.
      }
      if (event.event_id) this.#last = event.event_id;
      if (event.type === "session.created") {
        this.#failures = 0;
        const before = this.resume?.conversation_id;
        this.resume = event.session?.resume ?? null;
        this.#status("open", { again: before !== undefined && before === this.resume?.conversation_id });
      }
      this.dispatchEvent(new CustomEvent("message", { detail: event }));
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      // A normal close is the server's good night after a long silence; whoever speaks next connects again.
      if (code === 1000) this.#status("resting", { code, reason });
      else this.#lost(code, reason);
    };
  }

  /** Leaves this conversation and goes to another: a new one, or, with `resume`, on with one whose events are known up to a number. */
  goTo(resume = null, last = 0) {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
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
    if (this.state !== "open" || this.#socket?.readyState !== WebSocket.OPEN) return null;
    const event_id = event.event_id ?? `page_${++this.#counter}`;
    this.#socket.send(JSON.stringify({ event_id, ...event }));
    return event_id;
  }

  /** Sends one binary frame of sound; false when it had to be dropped. */
  sendSound(bytes) {
    if (this.state !== "open" || this.#socket?.readyState !== WebSocket.OPEN) return false;
    if (this.#socket.bufferedAmount > MOST_WAITING) {
      this.dropped++;
      return false;
    }
    this.#socket.send(bytes);
    return true;
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
