// <hearken-meter>: how loud it is now, and a strip of the last seconds' sound as a spectrogram. It draws from an
// AnalyserNode while one is given and rests otherwise.

const FLOOR_DB = -65;
const TOP_HZ = 8000;

class HearkenMeter extends HTMLElement {
  #analyser = null;
  #level = FLOOR_DB;
  #shown = FLOOR_DB;
  #canvas = document.createElement("canvas");
  #bar = document.createElement("div");
  #fill = document.createElement("div");
  #frame = 0;
  #shades = [];
  #still = matchMedia("(prefers-reduced-motion: reduce)");
  #dark = matchMedia("(prefers-color-scheme: dark)");

  connectedCallback() {
    this.#bar.className = "meter-bar";
    this.#fill.className = "meter-fill";
    this.#bar.append(this.#fill);
    this.#bar.setAttribute("role", "meter");
    this.#bar.setAttribute("aria-label", "Microphone level");
    this.#bar.setAttribute("aria-valuemin", "0");
    this.#bar.setAttribute("aria-valuemax", "100");
    this.#bar.setAttribute("aria-valuenow", "0");
    this.#canvas.setAttribute("aria-hidden", "true");
    const inner = document.createElement("div");
    inner.className = "meter-inner";
    inner.append(this.#canvas, this.#bar);
    this.replaceChildren(inner);
    this.#dark.addEventListener("change", () => this.#readShades());
    new ResizeObserver(() => this.#fit()).observe(this.#canvas);
    this.#readShades();
  }

  /** The analyser to draw from, or null to rest. */
  set analyser(analyser) {
    this.#analyser = analyser;
    this.toggleAttribute("live", analyser !== null);
    if (analyser) {
      this.#bins = new Uint8Array(analyser.frequencyBinCount);
      this.#frame ||= requestAnimationFrame(() => this.#draw());
    } else {
      this.#level = FLOOR_DB;
    }
  }

  set level(db) {
    this.#level = Math.max(FLOOR_DB, Math.min(0, db));
  }

  #bins = new Uint8Array(0);

  #readShades() {
    const style = getComputedStyle(this);
    const ink = style.getPropertyValue("--spectrum").trim() || "10 106 92";
    this.#shades = Array.from({ length: 32 }, (_, i) => `rgb(${ink} / ${((i / 31) ** 1.3).toFixed(3)})`);
  }

  #fit() {
    const scale = Math.min(2, devicePixelRatio || 1);
    const width = Math.round(this.#canvas.clientWidth * scale);
    const height = Math.round(this.#canvas.clientHeight * scale);
    if (width && height && (width !== this.#canvas.width || height !== this.#canvas.height)) {
      this.#canvas.width = width;
      this.#canvas.height = height;
    }
  }

  #draw() {
    this.#frame = 0;
    // Quick to rise, slow to fall, as a needle would.
    this.#shown = this.#level > this.#shown ? this.#level : Math.max(this.#level, this.#shown - 1.5);
    const share = 1 - this.#shown / FLOOR_DB;
    this.#fill.style.transform = `scaleX(${share.toFixed(3)})`;
    const percent = String(Math.round(share * 20) * 5);
    if (this.#bar.getAttribute("aria-valuenow") !== percent) this.#bar.setAttribute("aria-valuenow", percent);
    if (!this.#analyser && this.#shown <= FLOOR_DB) {
      this.#canvas.getContext("2d").clearRect(0, 0, this.#canvas.width, this.#canvas.height);
      return;
    }
    if (this.#analyser && !this.#still.matches) this.#column();
    this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** Shifts the picture left and paints the newest column at its right edge, low notes at the bottom. */
  #column() {
    const canvas = this.#canvas;
    const pen = canvas.getContext("2d");
    const { width, height } = canvas;
    if (!width || !height) return;
    const step = Math.min(2, devicePixelRatio || 1);
    this.#analyser.getByteFrequencyData(this.#bins);
    pen.globalCompositeOperation = "copy";
    pen.drawImage(canvas, -step, 0);
    pen.globalCompositeOperation = "source-over";
    const top = Math.min(this.#bins.length - 1, Math.round((TOP_HZ / (this.#analyser.context.sampleRate / 2)) * this.#bins.length));
    const rows = Math.min(48, height);
    const tall = height / rows;
    for (let row = 0; row < rows; row++) {
      // Mel-like: the low half of the strip is speech's own octaves.
      const from = Math.floor(top * (row / rows) ** 1.7);
      const to = Math.max(from + 1, Math.floor(top * ((row + 1) / rows) ** 1.7));
      let loudest = 0;
      for (let bin = from; bin < to; bin++) loudest = Math.max(loudest, this.#bins[bin]);
      const shade = loudest >> 3;
      if (shade < 2) continue;
      pen.fillStyle = this.#shades[shade];
      pen.fillRect(width - step, height - (row + 1) * tall, step, tall);
    }
  }
}

customElements.define("hearken-meter", HearkenMeter);
