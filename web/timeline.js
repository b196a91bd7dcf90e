// <hearken-timeline>: a call from left to right. A lane for each party with its turns, below them how loud and how high each turn was, marks and
// alerts where they happened, and a line where one is. One place in the call is chosen by mouse, finger or keys, as on a slider.

import { element } from "./log.js";
import { clock } from "./words.js";

/** A call is drawn at least so wide: then it is scrolled. */
const PIXELS_PER_SECOND = 3;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
const SVG = "http://www.w3.org/2000/svg";

/** Emits `place` {seconds, play} when the person chooses one, and `toggle` when they want to hear or stop. */
class HearkenTimeline extends HTMLElement {
  #call = null;
  #at = 0;
  #track = element("div", "track");
  #head = element("div", "playhead");
  #scroll = element("div", "track-scroll", this.#track);

  connectedCallback() {
    this.#track.tabIndex = 0;
    this.#track.setAttribute("role", "slider");
    this.#track.setAttribute("aria-label", "Place in the call");
    this.#track.setAttribute("aria-valuemin", "0");
    this.#track.addEventListener("keydown", (event) => this.#key(event));
    this.#track.addEventListener("click", (event) => {
      const { left, width } = this.#track.getBoundingClientRect();
      this.#choose(((event.clientX - left) / width) * this.#seconds, true);
    });
    this.replaceChildren(this.#scroll);
  }

  get #seconds() {
    return Math.max(this.#call?.seconds ?? 0, 0.001);
  }

  /** A call as /v1/calls/{id} tells it. */
  set call(call) {
    this.#call = call;
    const share = (seconds) => `${((100 * seconds) / this.#seconds).toFixed(3)}%`;
    this.#track.style.minWidth = `${Math.round(this.#seconds * PIXELS_PER_SECOND)}px`;
    this.#track.setAttribute("aria-valuemax", this.#seconds.toFixed(1));
    const names = call.parties.map((party) => party.name);
    const lanes = call.parties.map((party, index) => {
      const lane = element("div", "lane", element("span", "lane-name", party.name));
      for (const turn of call.turns.filter((turn) => turn.party === party.name)) {
        const block = element("i", "block");
        block.dataset.party = index;
        block.dataset.turn = turn.id;
        block.toggleAttribute("data-interrupts", turn.interrupts);
        block.style.left = share(turn.start);
        block.style.width = share(Math.max(turn.end - turn.start, 0.15));
        block.title = `${clock(turn.start * 1000)} ${party.name}${turn.interrupts ? ", interrupting" : ""}${turn.words ? `: ${turn.words}` : ""}`;
        lane.append(block);
      }
      return lane;
    });
    const trends = [this.#trend("Loudness", "loudness_db", "dB", 6, names), this.#trend("Pitch", "pitch_hz", "Hz", 20, names)];
    const step = STEPS.find((step) => this.#seconds / step <= Math.max(8, (this.#seconds * PIXELS_PER_SECOND) / 90)) ?? STEPS.at(-1);
    const ticks = element("div", "ticks");
    for (let at = 0; at < this.#seconds; at += step) {
      const tick = element("span", "", clock(at * 1000));
      tick.style.left = share(at);
      ticks.append(tick);
    }
    const flags = [...call.alerts.map((alert) => ["alert", alert]), ...call.marks.map((mark) => ["mark", mark])].map(([kind, { at, name }]) => {
      const flag = element("i", `flag ${kind}`);
      flag.style.left = share(Math.min(at, this.#seconds));
      flag.title = `${clock(at * 1000)} ${name}`;
      return flag;
    });
    this.#track.replaceChildren(...lanes, ...trends, ticks, ...flags, this.#head);
    this.at = this.#at;
  }

  /** Each turn as a bar at its height, between the lowest and the highest of the call. */
  #trend(title, key, unit, least, names) {
    const turns = this.#call.turns.filter((turn) => Number.isFinite(turn[key]));
    const values = turns.map((turn) => turn[key]);
    const middle = values.length ? (Math.min(...values) + Math.max(...values)) / 2 : 0;
    const half = Math.max(least, ...values.map((value) => Math.abs(value - middle))) * 1.15;
    const picture = document.createElementNS(SVG, "svg");
    picture.setAttribute("viewBox", `0 0 ${this.#seconds} 100`);
    picture.setAttribute("preserveAspectRatio", "none");
    for (const turn of turns) {
      const y = 50 - (50 * (turn[key] - middle)) / half;
      const bar = document.createElementNS(SVG, "path");
      bar.setAttribute("d", `M${turn.start} ${y.toFixed(1)}H${turn.end}`);
      bar.dataset.party = names.indexOf(turn.party);
      picture.append(bar);
    }
    const range = values.length ? `${Math.round(Math.min(...values))} to ${Math.round(Math.max(...values))} ${unit}` : "";
    return element("div", "trend", element("span", "lane-name", `${title} ${range}`), picture);
  }

  /** Where one is, seconds. */
  set at(seconds) {
    this.#at = seconds;
    this.#head.style.left = `${((100 * Math.min(seconds, this.#seconds)) / this.#seconds).toFixed(3)}%`;
    const speaking = this.#call.turns.filter((turn) => turn.start <= seconds && seconds < turn.end);
    for (const block of this.#track.querySelectorAll(".block")) {
      block.toggleAttribute("data-now", speaking.some((turn) => String(turn.id) === block.dataset.turn));
    }
    this.#track.setAttribute("aria-valuenow", Math.min(seconds, this.#seconds).toFixed(1));
    const said = speaking.map((turn) => `${turn.party}: ${turn.words ?? ""}`).join("; ");
    this.#track.setAttribute("aria-valuetext", `${clock(seconds * 1000)}, ${said || "nobody speaks"}`);
  }

  /** Brings that place into sight. */
  reveal() {
    const [middle, width] = [(this.#at / this.#seconds) * this.#scroll.scrollWidth, this.#scroll.clientWidth];
    const { scrollLeft } = this.#scroll;
    if (middle < scrollLeft || middle > scrollLeft + width) this.#scroll.scrollLeft = middle - width / 3;
  }

  #choose(seconds, play) {
    const place = Math.max(0, Math.min(this.#seconds, seconds));
    this.dispatchEvent(new CustomEvent("place", { detail: { seconds: place, play } }));
    this.reveal();
  }

  /** Arrows go from turn to turn. */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const starts = this.#call.turns.map((turn) => turn.start);
    const places = {
      ArrowRight: () => starts.find((start) => start > this.#at + 0.01) ?? this.#seconds,
      ArrowLeft: () => starts.findLast((start) => start < this.#at - 0.01) ?? 0,
      PageUp: () => this.#at - 30,
      PageDown: () => this.#at + 30,
      Home: () => 0,
      End: () => this.#seconds,
    };
    places.ArrowUp = places.ArrowRight;
    places.ArrowDown = places.ArrowLeft;
    if (places[event.key]) this.#choose(places[event.key](), false);
    else if (event.key === " " || event.key === "Enter") this.dispatchEvent(new CustomEvent("toggle"));
    else return;
    event.preventDefault();
  }
}

customElements.define("hearken-timeline", HearkenTimeline);
