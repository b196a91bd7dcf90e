// Runs on the audio thread. Mixes the microphone to mono, brings it to the rate the wire wants and posts frames of
// 20 ms. One file without imports, because not every browser lets a worklet import.

/** A streaming windowed-sinc resampler: any rate to any rate, low-passed below the lower of the two. */
class Resampler {
  static PHASES = 256;

  constructor(from, to) {
    this.step = from / to;
    const scale = Math.max(1, this.step);
    this.half = Math.ceil(16 * scale);
    this.taps = this.half * 2;
    // A little below half the lower rate, so that the slope of the filter falls inside the band that is dropped.
    const cutoff = 0.46 * Math.min(1, 1 / this.step) * 2;
    this.table = new Float32Array((Resampler.PHASES + 1) * this.taps);
    for (let phase = 0; phase <= Resampler.PHASES; phase++) {
      const row = phase * this.taps;
      let sum = 0;
      for (let tap = 0; tap < this.taps; tap++) {
        const x = tap - this.half + 1 - phase / Resampler.PHASES;
        const sinc = x === 0 ? 1 : Math.sin(Math.PI * cutoff * x) / (Math.PI * cutoff * x);
        const turn = Math.PI * (x / this.half);
        const window = Math.abs(x) > this.half ? 0 : 0.42 + 0.5 * Math.cos(turn) + 0.08 * Math.cos(2 * turn);
        sum += this.table[row + tap] = sinc * window;
      }
      for (let tap = 0; tap < this.taps; tap++) this.table[row + tap] /= sum;
    }
    this.held = new Float32Array(this.taps);
    this.length = this.half - 1; // Silence before the first sample, so that output starts at its time.
    this.position = this.half - 1;
  }

  /** Calls `emit` with each output sample that `input` completes. */
  push(input, emit) {
    if (this.length + input.length > this.held.length) {
      const bigger = new Float32Array(this.length + input.length + this.taps);
      bigger.set(this.held.subarray(0, this.length));
      this.held = bigger;
    }
    this.held.set(input, this.length);
    this.length += input.length;
    while (Math.floor(this.position) + this.half < this.length) {
      const whole = Math.floor(this.position);
      const row = Math.round((this.position - whole) * Resampler.PHASES) * this.taps;
      const start = whole - this.half + 1;
      let sum = 0;
      for (let tap = 0; tap < this.taps; tap++) sum += this.held[start + tap] * this.table[row + tap];
      emit(sum);
      this.position += this.step;
    }
    const drop = Math.floor(this.position) - this.half + 1;
    if (drop > 0) {
      this.held.copyWithin(0, drop, this.length);
      this.length -= drop;
      this.position -= drop;
    }
  }
}

class Capture extends AudioWorkletProcessor {
  constructor({ processorOptions: { rate } }) {
    super();
    this.frameLength = Math.round(rate / 50);
    this.frame = new Float32Array(this.frameLength);
    this.filled = 0;
    this.mono = new Float32Array(128);
    this.resampler = rate === sampleRate ? null : new Resampler(sampleRate, rate);
    this.emit = (sample) => {
      this.frame[this.filled++] = sample;
      if (this.filled < this.frameLength) return;
      this.port.postMessage(this.frame, [this.frame.buffer]);
      this.frame = new Float32Array(this.frameLength);
      this.filled = 0;
    };
  }

  process([channels]) {
    if (channels.length === 0) return true;
    const length = channels[0].length;
    if (this.mono.length !== length) this.mono = new Float32Array(length);
    this.mono.set(channels[0]);
    for (let c = 1; c < channels.length; c++) {
      for (let i = 0; i < length; i++) this.mono[i] += channels[c][i];
    }
    if (channels.length > 1) for (let i = 0; i < length; i++) this.mono[i] /= channels.length;
    if (this.resampler) this.resampler.push(this.mono, this.emit);
    else for (let i = 0; i < length; i++) this.emit(this.mono[i]);
    return true;
  }
}

registerProcessor("hearken-capture", Capture);
