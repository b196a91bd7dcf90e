// The microphone: permission, capture, and sound ready for the wire: a track where the wire takes one; else frames of 20 ms, of Opus through WebCodecs
// where the browser has it and of 16-bit PCM otherwise.

export const FORMATS = {
  opus: { wire: { type: "audio/opus" }, rate: 48_000, name: "Opus" },
  pcm: { wire: { type: "audio/pcm", rate: 24_000 }, rate: 24_000, name: "PCM, 24 kHz" },
  /** The browser sends it itself, by WebRTC; here it is only looked at. */
  track: { wire: null, rate: 48_000, name: "Opus, by WebRTC" },
};
const FRAME_MS = 20;

const OPUS = {
  codec: "opus",
  sampleRate: 48_000,
  numberOfChannels: 1,
  bitrate: 32_000,
  opus: { frameDuration: FRAME_MS * 1000, application: "voip", signal: "voice" },
};

/** "opus" where this browser can encode it, else "pcm". */
export async function bestFormat() {
  try {
    if (typeof AudioEncoder === "undefined" || typeof AudioData === "undefined") return "pcm";
    return (await AudioEncoder.isConfigSupported(OPUS)).supported ? "opus" : "pcm";
  } catch {
    return "pcm";
  }
}

/** Why there is no microphone, as one of: insecure, unsupported, denied, missing, busy, failed; of a tab's: no-tabs, not-shared, silent-share. */
export class MicrophoneError extends Error {
  constructor(kind, cause) {
    super(cause?.message ?? kind, { cause });
    this.kind = kind;
  }
}

function whyNot(error) {
  if (error instanceof MicrophoneError) return error;
  const kinds = {
    NotAllowedError: "denied",
    SecurityError: "denied",
    NotFoundError: "missing",
    OverconstrainedError: "missing",
    NotReadableError: "busy",
    AbortError: "busy",
  };
  return new MicrophoneError(kinds[error?.name] ?? "failed", error);
}

export async function microphones() {
  if (!navigator.mediaDevices?.enumerateDevices) return [];
  const devices = await navigator.mediaDevices.enumerateDevices();
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId !== "");
}

/** The sound of a browser tab, a window or the whole screen, whatever the person shares. */
export async function tabSound() {
  if (!window.isSecureContext) throw new MicrophoneError("insecure");
  if (!navigator.mediaDevices?.getDisplayMedia || typeof AudioWorkletNode === "undefined") throw new MicrophoneError("no-tabs");
  const sound = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, suppressLocalAudioPlayback: false };
  let stream;
  try {
    // Some browsers share no sound without a picture.
    stream = await navigator.mediaDevices.getDisplayMedia({ video: true, audio: sound, systemAudio: "include" });
  } catch (error) {
    throw new MicrophoneError(error?.name === "NotAllowedError" ? "not-shared" : "failed", error);
  }
  for (const track of stream.getVideoTracks()) track.stop();
  if (!stream.getAudioTracks().length) throw new MicrophoneError("silent-share");
  return new MediaStream(stream.getAudioTracks());
}

async function openStream(deviceId, cleanup) {
  if (!window.isSecureContext) throw new MicrophoneError("insecure");
  if (!navigator.mediaDevices?.getUserMedia || typeof AudioWorkletNode === "undefined") {
    throw new MicrophoneError("unsupported");
  }
  const audio = { channelCount: 1, echoCancellation: cleanup, noiseSuppression: cleanup, autoGainControl: cleanup };
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: deviceId ? { ...audio, deviceId: { exact: deviceId } } : audio });
  } catch (error) {
    // The chosen device was unplugged since: any microphone is better than none.
    if (deviceId && (error.name === "OverconstrainedError" || error.name === "NotFoundError")) {
      return navigator.mediaDevices.getUserMedia({ audio });
    }
    throw error;
  }
}

/**
 * Hooks, all optional: onframe(ArrayBuffer, or null for 20 ms that went as a track), onlevel(dBFS), onended(), onpaused(boolean), onencoderfailed().
 * `analyser` is there while it runs, for whoever draws.
 */
export class Microphone {
  #stream = null;
  #context = null;
  #node = null;
  #encoder = null;
  #clock = 0;
  #open = true;
  #run = 0;
  analyser = null;
  running = false;

  onframe = () => {};
  onlevel = () => {};
  onended = () => {};
  onpaused = () => {};
  onencoderfailed = () => {};

  /**
   * Must be called from a gesture, or Safari leaves the audio context suspended. `open` gives another stream than the microphone's: a promise of one.
   */
  async start({ deviceId = "", cleanup = true, format = "pcm", open = () => openStream(deviceId, cleanup) } = {}) {
    this.stop();
    const run = ++this.#run;
    const context = newContext();
    this.#context = context;
    const waking = context.state === "suspended" ? context.resume() : Promise.resolve();
    try {
      const stream = await open();
      if (run !== this.#run) return endTracks(stream);
      this.#stream = stream;
      await Promise.all([waking, context.audioWorklet.addModule(new URL("worklet.js", import.meta.url))]);
      if (run !== this.#run) return;
      this.#wire(stream, format);
    } catch (error) {
      if (run === this.#run) this.stop();
      throw whyNot(error);
    }
  }

  #wire(stream, format) {
    let context = this.#context;
    const source = context.createMediaStreamSource(stream);
    this.format = format;
    this.#node = new AudioWorkletNode(context, "hearken-capture", {
      numberOfInputs: 1,
      numberOfOutputs: 0,
      processorOptions: { rate: FORMATS[format].rate },
    });
    this.#node.port.onmessage = ({ data }) => this.#heard(data);
    this.analyser = context.createAnalyser();
    this.analyser.fftSize = 1024;
    this.analyser.smoothingTimeConstant = 0.4;
    this.analyser.minDecibels = -95;
    this.analyser.maxDecibels = -25;
    source.connect(this.#node);
    source.connect(this.analyser);
    const [track] = stream.getAudioTracks();
    track.enabled = this.#open;
    track.onended = () => {
      if (this.#stream === stream) {
        this.stop();
        this.onended();
      }
    };
    context.onstatechange = () => {
      if (this.#context === context) this.onpaused(context.state !== "running");
    };
    if (format === "opus") this.#startEncoder();
    this.running = true;
  }

  stop() {
    this.#run++;
    this.running = false;
    if (this.#node) this.#node.port.onmessage = null;
    this.#node?.disconnect();
    endTracks(this.#stream);
    this.#context?.close().catch(() => {});
    if (this.#encoder && this.#encoder.state !== "closed") this.#encoder.close();
    this.#node = this.#stream = this.#context = this.#encoder = this.analyser = null;
  }

  /** As `stop`, but what was said and its closing silence still go out. Whether it came to that, and was not started anew meanwhile. */
  async finish(tailMs) {
    if (!this.running) {
      this.stop(); // Nothing is to be said to its end, and what is being opened is not wanted.
      return true;
    }
    const run = this.#run;
    this.setOpen(false, tailMs);
    if (this.format === "track") await new Promise((over) => setTimeout(over, tailMs)); // A track is silent in its own time.
    else {
      endTracks(this.#stream);
      await this.#encoder?.flush().catch(() => {});
    }
    if (run !== this.#run) return false;
    this.stop();
    return true;
  }

  /** After a phone call or a locked screen the system leaves the context suspended until a gesture. */
  resume() {
    if (this.#context && this.#context.state !== "running") return this.#context.resume();
  }

  get deviceId() {
    return this.#stream?.getAudioTracks()[0]?.getSettings().deviceId ?? "";
  }

  /** What a wire that takes tracks is to carry. Closing the gate makes it silent. */
  get track() {
    return this.#stream?.getAudioTracks()[0] ?? null;
  }

  get open() {
    return this.#open;
  }

  /**
   * A closed gate sends nothing. Closing it sends `tailMs` of silence at once, so that the listener, who counts in
   * sound and not by a clock, sees that the turn has ended.
   */
  setOpen(open, tailMs = 0) {
    if (open === this.#open) return;
    this.#open = open;
    for (const track of this.#stream?.getAudioTracks() ?? []) track.enabled = open;
    if (!open && this.running && this.format !== "track") {
      const length = (FORMATS[this.format].rate * FRAME_MS) / 1000;
      for (let ms = 0; ms < tailMs; ms += FRAME_MS) this.#deliver(new Float32Array(length));
    }
  }

  #heard(frame) {
    this.onlevel(this.#open ? decibels(frame) : -Infinity);
    if (this.#open) this.#deliver(frame);
  }

  #deliver(frame) {
    if (this.format === "track") this.onframe(null);
    else if (this.format === "opus") this.#encode(frame);
    else this.onframe(toPcm16(frame));
  }

  #startEncoder() {
    this.#clock = 0;
    const encoder = new AudioEncoder({
      output: (chunk) => {
        const bytes = new ArrayBuffer(chunk.byteLength);
        chunk.copyTo(bytes);
        if (encoder === this.#encoder) this.onframe(bytes);
      },
      error: () => {
        if (encoder === this.#encoder) this.onencoderfailed();
      },
    });
    encoder.configure(OPUS);
    this.#encoder = encoder;
  }

  #encode(frame) {
    if (this.#encoder?.state !== "configured") return;
    const data = new AudioData({
      format: "f32",
      sampleRate: OPUS.sampleRate,
      numberOfFrames: frame.length,
      numberOfChannels: 1,
      timestamp: this.#clock,
      data: frame,
    });
    this.#clock += FRAME_MS * 1000;
    this.#encoder.encode(data);
    data.close();
  }
}

function newContext() {
  const Context = window.AudioContext ?? window.webkitAudioContext;
  if (!Context) throw new MicrophoneError("unsupported");
  // The device's own rate: some browsers refuse to connect a microphone to a context of another. The worklet resamples.
  return new Context({ latencyHint: "interactive" });
}

function endTracks(stream) {
  for (const track of stream?.getTracks() ?? []) {
    track.onended = null;
    track.stop();
  }
}

function decibels(frame) {
  let sum = 0;
  for (const sample of frame) sum += sample * sample;
  return 10 * Math.log10(sum / frame.length + 1e-12);
}

function toPcm16(frame) {
  const view = new DataView(new ArrayBuffer(frame.length * 2));
  for (let i = 0; i < frame.length; i++) {
    const sample = Math.max(-1, Math.min(1, frame[i]));
    view.setInt16(i * 2, Math.round(sample * 32_767), true);
  }
  return view.buffer;
}
