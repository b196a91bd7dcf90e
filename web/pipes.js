// The two ways to the server, alike: a WebSocket that carries events and frames of sound, and a WebRTC peer connection that carries events on a data channel
// and sound as a track. A pipe is opened once and closes once; to come back is the affair of who opened it.

/** Sound waiting in the socket beyond this is sound that would arrive too late to matter: about two seconds of PCM. */
const MOST_WAITING = 96_000;
/** A path that is not found by then will hardly be. */
const ICE_MS = 3000;
/** From the path to the open channel: encryption is agreed on, and a packet may be lost. */
const OPEN_MS = 10_000;
/** A path that is interrupted for so long is lost. */
const LOST_MS = 1500;

/** Of an error as the server words it. */
function messageOf(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return "";
  }
}

function addressOf(base, path, { kind, resume, after }) {
  const url = new URL(path, base);
  url.hash = "";
  url.search = "";
  url.searchParams.set("kind", kind);
  url.searchParams.set("resume", resume);
  if (after !== null) url.searchParams.set("after", after);
  return url;
}

/** The STUN and TURN servers of a Link header (RFC 9725, 4.6), as a peer connection takes them. */
export function iceServers(link) {
  return [...(link ?? "").matchAll(/<([^>]*)>((?:\s*;\s*[\w-]+="(?:[^"\\]|\\.)*")*)/g)].flatMap(([, urls, rest]) => {
    const pairs = [...rest.matchAll(/([\w-]+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value.replaceAll(/\\(.)/g, "$1")]);
    const { rel, username, credential } = Object.fromEntries(pairs);
    return rel === "ice-server" ? [{ urls, ...(username !== undefined && { username, credential }) }] : [];
  });
}

/**
 * `options`: {kind, token, resume, after}; `on`: {text(string), closed({code, reason})}.
 */
export class SocketPipe {
  static wire = "WebSocket";
  #socket;
  dropped = 0;

  constructor(base, options, on) {
    const url = addressOf(base, "v1/realtime", options);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    // A browser cannot set headers on a WebSocket, so the token goes as a subprotocol, in which not every sign may stand.
    const coded = (token) => btoa(token).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
    const key = options.token ? [`hearken-key.${coded(options.token)}`] : [];
    this.#socket = new WebSocket(url, ["realtime", ...key]);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => typeof data === "string" && on.text(data);
    this.#socket.onclose = ({ code, reason }) => on.closed({ code, reason });
  }

  /** Whether it was handed over. */
  send(text) {
    if (this.#socket.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(text);
    return true;
  }

  fits() {
    return true;
  }

  /** One frame; false when it had to be dropped. */
  sendSound(bytes) {
    if (this.#socket.readyState !== WebSocket.OPEN) return false;
    if (this.#socket.bufferedAmount > MOST_WAITING) {
      this.dropped++;
      return false;
    }
    this.#socket.send(bytes);
    return true;
  }

  setTrack() {}

  /** `goodbye`: the conversation is left, and need not be kept ready. */
  close() {
    this.#socket.close(1000);
  }
}

/**
 * As above. `closed` may say `unusable`: no path was found, and none will be by trying again.
 */
export class PeerPipe {
  static wire = "WebRTC";
  static get available() {
    return typeof RTCPeerConnection !== "undefined";
  }

  #base;
  #options;
  #on;
  #peer = new RTCPeerConnection();
  #channel = this.#peer.createDataChannel("oai-events");
  #sender = this.#peer.addTransceiver("audio", { direction: "sendonly" }).sender;
  #request = new AbortController();
  #timer = 0;
  #call = null;
  #over = false;
  // A page that is left says so, or the server would wait for it until it has been silent for long.
  #leave = () => this.#end({ code: 1006 });
  dropped = 0;

  constructor(base, options, on) {
    [this.#base, this.#options, this.#on] = [base, options, on];
    this.#channel.onmessage = ({ data }) => on.text(data);
    this.#channel.onopen = () => clearTimeout(this.#timer);
    this.#channel.onclose = () => void this.#ended();
    this.#peer.oniceconnectionstatechange = () => this.#changed();
    addEventListener("pagehide", this.#leave);
    void this.#begin();
  }

  #fetch(url, options = {}) {
    const { token } = this.#options;
    return fetch(url, { ...options, cache: "no-store", headers: { ...options.headers, ...(token ? { authorization: `Bearer ${token}` } : {}) } });
  }

  async #begin() {
    let answer;
    try {
      const url = addressOf(this.#base, "v1/realtime/calls", this.#options);
      await this.#askTheWay(url);
      await this.#peer.setLocalDescription();
      const body = this.#peer.localDescription.sdp;
      answer = await this.#fetch(url, { method: "POST", body, headers: { "content-type": "application/sdp" }, signal: this.#request.signal });
      const text = await answer.text();
      if (answer.status !== 201) return this.#refused(answer.status, text);
      const place = answer.headers.get("location");
      this.#call = place && new URL(place, this.#base);
      if (this.#over) return this.#hangUp();
      this.#timer = setTimeout(() => this.#fail(), ICE_MS);
      await this.#peer.setRemoteDescription({ type: "answer", sdp: text });
    } catch {
      // No answer: the server is not there. An answer that this browser does not take is of no use.
      answer?.ok ? this.#fail() : this.#end({ code: 1006 });
    }
  }

  /** Servers that lead to ours must be known before an offer is made. */
  async #askTheWay(url) {
    const { headers } = await this.#fetch(url, { method: "OPTIONS", signal: this.#request.signal });
    try {
      this.#peer.setConfiguration({ iceServers: iceServers(headers.get("link")) });
    } catch {
      // A server that this browser does not take, TURN without a password for one: it goes without.
    }
  }

  #refused(status, text) {
    // Not served here, or not in this form. All else a WebSocket would be told, too.
    const unusable = [405, 415, 422].includes(status) || (status === 404 && text.includes('"not_found"'));
    // A page from an address that the server does not know would try for ever without ever being told why.
    this.#end({ code: status === 401 || status === 403 ? 1008 : 1006, reason: status === 403 ? messageOf(text) : "", unusable });
  }

  #fail() {
    // A session that nobody has spoken in yet is given back; one that goes on is taken over by the next pipe.
    if (!this.#options.resume) void this.#hangUp();
    this.#end({ code: 1006, unusable: true });
  }

  #changed() {
    const state = this.#peer.iceConnectionState;
    const opened = this.#channel.readyState === "open";
    clearTimeout(opened || state === "connected" || state === "completed" ? this.#timer : 0);
    if (!opened && (state === "connected" || state === "completed")) this.#timer = setTimeout(() => this.#fail(), OPEN_MS);
    else if (state === "failed") opened ? this.#end({ code: 1006 }) : this.#fail();
    else if (opened && state === "disconnected") this.#timer = setTimeout(() => this.#end({ code: 1006 }), LOST_MS);
  }

  /** The server has closed the channel. A channel does not say why: either the session was over, or the server is ending. */
  async #ended() {
    if (this.#over) return;
    const ready = await this.#fetch(new URL("ready", this.#base)).catch(() => null);
    this.#end({ code: ready?.ok ? 1000 : 1001 });
  }

  #end(how) {
    if (this.#over) return;
    this.#shut();
    this.#on.closed({ reason: "", ...how });
  }

  /** `after`: what the connection itself is kept for. */
  #shut(after = null) {
    this.#over = true;
    removeEventListener("pagehide", this.#leave);
    clearTimeout(this.#timer);
    this.#request.abort();
    const free = () => {
      this.#channel.close();
      this.#peer.close();
    };
    after ? void after.then(free) : free();
  }

  async #hangUp() {
    if (this.#call) await this.#fetch(this.#call, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  send(text) {
    if (this.#over || this.#channel.readyState !== "open") return false;
    this.#channel.send(text);
    return true;
  }

  /** A channel's messages are of bounded size: a sound file may be too large for one. */
  fits(text) {
    return new TextEncoder().encode(text).length <= (this.#peer.sctp?.maxMessageSize || 65_536);
  }

  sendSound() {
    return false;
  }

  /** The sound to be carried from now on, or null. */
  setTrack(track) {
    if (!this.#over) void this.#sender.replaceTrack(track).catch(() => {});
  }

  close({ goodbye = true } = {}) {
    if (this.#over) return;
    // A connection that closes first is one that was lost, and may come back.
    this.#shut(goodbye ? this.#hangUp() : null);
  }
}
