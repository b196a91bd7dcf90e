// A sound file as the wire wants it: one channel of PCM16 at 24 kHz, in base64.

const RATE = 24_000;
/** Longer files would not fit into one message. */
export const MOST_SECONDS = 120;

/** Why not, as one of: long, short, unreadable. */
export class SoundFileError extends Error {
  constructor(kind, cause) {
    super(kind, { cause });
    this.kind = kind;
  }
}

/** {audio, ms} */
export async function readSound(file) {
  let sound;
  try {
    // Decoding brings it to the context's rate.
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch (error) {
    throw new SoundFileError("unreadable", error);
  }
  if (sound.duration > MOST_SECONDS) throw new SoundFileError("long");
  if (sound.duration < 0.1) throw new SoundFileError("short");
  const mixer = new OfflineAudioContext(1, sound.length, RATE);
  const source = new AudioBufferSourceNode(mixer, { buffer: sound });
  source.connect(mixer.destination);
  source.start();
  const samples = (await mixer.startRendering()).getChannelData(0);
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  samples.forEach((sample, i) => view.setInt16(i * 2, Math.round(Math.max(-1, Math.min(1, sample)) * 32_767), true));
  return { audio: base64(bytes), ms: sound.duration * 1000 };
}

function base64(bytes) {
  let text = "";
  // As many arguments as every browser takes.
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}
