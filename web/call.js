// <hearken-call>: one call, live or past: its figures, timeline, sound, turns and notes. It is given the call as data and draws what has changed, so that
// an opened note, a selection and the place in the sound survive the next event.

import { element, setText } from "./log.js";
import "./timeline.js";
import { clock, heardWords, seconds } from "./words.js";

const number = (value, digits = 0) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "–");
const signed = (value, digits) => (value > 0 ? "+" : "") + number(value, digits);
const time = (s) => seconds(s * 1000);

/** Each row of the figures: what it is called, why it is there, and what it says of a party. */
const FIGURES = [
  ["Spoke for", "", (party) => `${time(party.talk_seconds)}, ${number(100 * party.talk_ratio)} %`],
  ["Turns", "", (party) => String(party.turns)],
  ["Broke in", "into what the other was saying", (party) => (party.interruptions === 1 ? "once" : `${party.interruptions} times`)],
  ["Pace", "words a minute, and syllables a second as the sound has them", (party) => (party.turns ? `${number(party.words_per_minute)} words/min, ${number(party.syllables_per_second, 1)} syll/s` : "–")],
  ["Loudness", "below full scale, and how it changes", (party) => (party.turns ? `${number(party.loudness_db)} dB${trend(party.loudness_trend, "dB/min")}` : "–")],
  ["Pitch", "the median of each turn, and how it changes", (party) => (party.pitch_hz ? `${number(party.pitch_hz)} Hz${trend(party.pitch_trend, "semitones/min")}` : "–")],
];

function trend(value, unit) {
  return Number.isFinite(value) ? `, ${signed(value, 1)} ${unit}` : "";
}

/** A file is heard at once; its words, and then the model's notes, take their time. */
function progress(turns) {
  const read = turns.filter((turn) => turn.words !== undefined).length;
  const noted = turns.filter((turn) => turn.note).length;
  const notes = noted ? `, ${noted} noted` : "";
  return turns.length ? `The file is being heard: ${turns.length} turns, ${read} written down${notes}` : "The file is being heard";
}

function button(words, className, onclick) {
  const node = element("button", className, words);
  node.type = "button";
  node.onclick = onclick;
  return node;
}

/** What is being said: words that stay, and those that may still change. */
function words(node, { words, tentative }) {
  const text = JSON.stringify([words, tentative]);
  if (node.dataset.said === text) return;
  node.dataset.said = text;
  node.replaceChildren(words, words && tentative ? " " : "", tentative ? element("span", "tentative", tentative) : "");
}

/** One turn, updated in place. */
class CallTurn extends HTMLElement {
  #time = button("", "time", () => this.dispatchEvent(new CustomEvent("place", { bubbles: true, detail: { seconds: this.turn.start, play: true } })));
  #who = element("span", "speaker");
  #tag = element("span", "tag", "breaks in");
  #words = element("p", "words");
  #note = element("p", "turn-note");
  #reasoning = element("p", "reasoning-text");
  #heard = element("span", "think-words");
  #details = element("details", "reasoning", element("summary", "", element("span", "sr", "The model heard: "), this.#heard), this.#reasoning);
  #measures = element("p", "hint");

  connectedCallback() {
    if (this.#words.isConnected) return;
    this.classList.add("call-turn");
    this.replaceChildren(element("p", "turn-head", this.#time, this.#who, this.#tag), this.#words, this.#note, this.#measures, this.#details);
  }

  update(turn, party, isOver, saying) {
    this.turn = turn;
    this.dataset.party = party;
    this.#time.textContent = clock(turn.start * 1000);
    this.#time.setAttribute("aria-label", `Go to ${clock(turn.start * 1000)}`);
    this.#who.textContent = turn.party;
    this.#tag.hidden = !turn.interrupts;
    const said = turn.words?.trim();
    if (said === undefined && saying) words(this.#words, saying);
    else setText(this.#words, said || (said === undefined && !isOver ? "…" : "no words written down"));
    this.#words.classList.toggle("empty", !said && !saying);
    const { note } = turn;
    this.#note.hidden = !note;
    if (note && this.#note.dataset.text !== note.text) {
      this.#note.dataset.text = note.text;
      // What a small model could not tell is not told as if it had.
      const found = [note.mood === "unclear" ? null : element("b", "mood", note.mood), note.risk === "none" ? null : element("span", "risk", `${note.risk} risk`)];
      found.forEach((each) => each && (each.dataset.risk = note.risk));
      this.#note.replaceChildren(...found.filter(Boolean).flatMap((each) => [each, " "]), element("span", "noted", note.text));
    }
    this.#details.hidden = !note?.reasoning;
    setText(this.#reasoning, note?.reasoning ?? "");
    setText(this.#heard, heardWords(note?.reasoning ?? "") || "What the model thought");
    const pitch = turn.pitch_hz ? `, ${number(turn.pitch_hz)} Hz` : "";
    setText(this.#measures, `${time(turn.end - turn.start)}, ${number(turn.loudness_db)} dB${pitch}, ${number(turn.syllables_per_second, 1)} syllables a second`);
  }
}

/** Emits `save` ("json", "csv" or "ogg"), `forget`, and `sound` (a File to listen to). */
class HearkenCall extends HTMLElement {
  #id = null;
  #call = null;
  #rows = new Map();
  /** What is being said now, by party: at the top, where one who watches a call looks. */
  #now = new Map();
  #saying = element("ul", "saying");
  #title = element("h2", "call-title");
  #about = element("p", "hint");
  #live = element("p", "live-line");
  #recorded = element("p", "recorded");
  #saveSound = button("Sound", "small", () => this.#tell("save", "ogg"));
  #delete = button("Delete", "small", () => this.#tell("forget"));
  #summary = element("p", "summary");
  #alerts = element("ul", "alerts");
  #share = element("div", "share");
  #table = element("table", "figures");
  #silence = element("p", "hint");
  #timeline = document.createElement("hearken-timeline");
  #audio = document.createElement("audio");
  #nosound = element("p", "hint nosound");
  #whynot = element("span");
  #file = document.createElement("input");
  #turns = element("ol", "turns");
  #sections = {};
  #frame = 0;
  #why = "";

  connectedCallback() {
    if (this.#title.isConnected) return;
    this.#title.tabIndex = -1;
    this.#live.setAttribute("role", "status");
    this.#share.setAttribute("aria-hidden", "true");
    this.#audio.controls = true;
    this.#audio.preload = "auto";
    this.#audio.setAttribute("aria-label", "The sound of the call");
    this.#file.type = "file";
    this.#file.accept = "audio/*";
    this.#file.className = "sr";
    this.#file.tabIndex = -1;
    this.#file.setAttribute("aria-hidden", "true");
    this.#file.onchange = () => {
      if (this.#file.files.length) this.#tell("sound", this.#file.files[0]);
      this.#file.value = "";
    };
    this.#nosound.append(
      this.#whynot,
      element("span", "has-file", " To listen along, ", button("choose the file again", "link", () => this.#file.click()), "."),
      this.#file,
    );
    const section = (key, title, ...children) => (this.#sections[key] = element("section", key, element("h3", "", title), ...children));
    const back = element("a", "back", "‹ All calls");
    back.href = "#";
    const saving = element("div", "save", "Save as", button("JSON", "small", () => this.#tell("save", "json")), button("CSV", "small", () => this.#tell("save", "csv")), this.#saveSound, this.#delete);
    saving.setAttribute("role", "group");
    saving.setAttribute("aria-label", "This call");
    const scroller = element("div", "figures-scroll", this.#table);
    this.append(
      back,
      element("header", "call-head", element("div", "", this.#title, this.#about), saving),
      element("div", "lines", this.#live, this.#recorded),
      this.#saying,
      section("sum", "Summary", this.#summary),
      section("warned", "Alerts", this.#alerts),
      section("time-section", "Timeline", this.#timeline, this.#audio, this.#nosound),
      section("figures-section", "In figures", this.#share, scroller, this.#silence),
      section("said-section", "What was said", this.#turns),
    );
    this.addEventListener("place", ({ detail }) => this.#go(detail.seconds, detail.play));
    this.#timeline.addEventListener("toggle", () => (this.#audio.paused ? this.#play() : this.#audio.pause()));
    this.#timeline.addEventListener("place", ({ detail }) => this.#go(detail.seconds, detail.play));
    this.#audio.addEventListener("error", () => this.#audio.hasAttribute("src") && this.#silent("The sound cannot be played here."));
    for (const type of ["play", "seeked", "pause"]) this.#audio.addEventListener(type, () => this.#follow());
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  focus() {
    this.#title.focus();
  }

  /** An address of the call's sound, or null. */
  set sound(url) {
    if (url === null) {
      this.#audio.removeAttribute("src");
      return this.#silent();
    }
    this.#audio.hidden = false;
    this.#nosound.hidden = true;
    this.#audio.src = url;
  }

  /** Why there is no sound that should be there. */
  set nosound(why) {
    this.#silent(why);
  }

  /** There is no sound, and why. */
  #silent(why = "") {
    this.#audio.hidden = true;
    this.#nosound.hidden = false;
    this.#why = why;
    this.#explain();
  }

  #explain() {
    const { recorded, state } = this.#call ?? {};
    const kept = state === "live" ? "The sound can be heard here when the call is over." : "The sound is being brought.";
    setText(this.#whynot, this.#why || (recorded ? kept : "The sound is not here: the server keeps none."));
  }

  /** A call as /v1/calls/{id} tells it, or as events have brought it up to date. */
  set call(call) {
    if (call.id !== this.#id) {
      this.#id = call.id;
      this.#rows.clear();
      this.#now.clear();
      this.#saying.replaceChildren();
      this.#turns.replaceChildren();
      this.#audio.pause();
      this.#timeline.call = call;
      this.#timeline.at = 0;
    }
    this.#call = call;
    const isOver = call.state === "ended";
    const names = call.parties.map((party) => party.name);
    setText(this.#title, names.join(" and ") || "A call");
    const source = { file: "from a file", twilio: "by telephone" }[call.source] ?? call.source;
    const began = new Date(call.created * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    setText(this.#about, `${began}, ${source}, ${time(call.seconds)}${call.skipped ? `, ${call.skipped} turns or notes left out: the model did not keep up` : ""}`);
    const speaking = call.speaking ?? [];
    this.#live.hidden = isOver;
    this.#live.dataset.state = speaking.length ? "hearing" : "listening";
    setText(this.#live, speaking.length ? `${speaking.join(" and ")} ${speaking.length > 1 ? "are" : "is"} speaking` : call.source === "file" ? progress(call.turns) : "The line is open, nobody speaks");
    this.#delete.hidden = !isOver;
    this.#recorded.hidden = !call.recorded;
    setText(this.#recorded, isOver ? "This call was recorded: its sound is kept as long as the call." : "This call is recorded.");
    this.#saveSound.hidden = !(isOver && call.recorded);
    this.#explain();
    this.#nosound.querySelector(".has-file").hidden = call.source !== "file";
    this.#sections.sum.hidden = !call.summary;
    setText(this.#summary, call.summary ?? "");
    this.#drawAlerts(call);
    this.#drawFigures(call);
    this.#timeline.call = call;
    this.#drawTurns(call, names, isOver);
    this.#sections["said-section"].hidden = call.turns.length === 0;
  }

  #drawAlerts({ alerts, marks }) {
    this.#sections.warned.hidden = alerts.length + marks.length === 0;
    const all = [...alerts.map((alert) => ({ ...alert, kind: "alert" })), ...marks.map((mark) => ({ ...mark, kind: "mark" }))].sort((a, b) => a.at - b.at);
    const text = JSON.stringify(all);
    if (this.#alerts.dataset.shown === text) return;
    this.#alerts.dataset.shown = text;
    const rows = all.map(({ kind, at, name, party }) => {
      const place = button(clock(at * 1000), "time", () => this.#go(at, true));
      place.setAttribute("aria-label", `Go to ${clock(at * 1000)}`);
      return element("li", kind, place, element("span", "", party ? `${name} (${party})` : name));
    });
    this.#alerts.replaceChildren(...rows);
    this.#sections.warned.querySelector("h3").textContent = alerts.length ? "Alerts" : "Marks";
  }

  #drawFigures({ parties, silence }) {
    this.#share.hidden = !parties.some((party) => party.turns);
    this.#share.replaceChildren(
      ...parties.map((party, index) => {
        const part = element("span", "", `${party.name} ${number(100 * party.talk_ratio)} %`);
        part.dataset.party = index;
        part.style.flexGrow = String(Math.max(party.talk_ratio, 0.001));
        return part;
      }),
    );
    const head = parties.map((party, index) => {
      const cell = element("th", "", party.name);
      cell.scope = "col";
      cell.dataset.party = index;
      return cell;
    });
    const rows = FIGURES.map(([name, why, of]) => {
      const title = element("th", "", name, why ? element("small", "", why) : "");
      title.scope = "row";
      return element("tr", "", title, ...parties.map((party) => element("td", "", of(party))));
    });
    this.#table.replaceChildren(element("thead", "", element("tr", "", element("td"), ...head)), element("tbody", "", ...rows));
    setText(this.#silence, `Nobody spoke for ${time(silence.seconds)}, ${time(silence.longest_seconds)} at the longest. Everything but the words is measured from the sound.`);
  }

  #drawTurns({ turns, saying = [] }, names, isOver) {
    this.#drawNow(isOver ? [] : saying.filter(({ turn }) => turn === undefined), names);
    turns.forEach((turn, index) => {
      let row = this.#rows.get(turn.id);
      if (!row) {
        row = document.createElement("hearken-call-turn");
        this.#rows.set(turn.id, row);
        const item = element("li", "", row);
        this.#turns.insertBefore(item, this.#turns.children[index] ?? null);
      }
      row.update(turn, names.indexOf(turn.party), isOver, saying.find((each) => each.turn === turn.id));
    });
  }

  #drawNow(saying, names) {
    this.#saying.hidden = saying.length === 0;
    for (const [party, { row }] of this.#now) {
      if (saying.some((each) => each.party === party)) continue;
      row.remove();
      this.#now.delete(party);
    }
    for (const each of saying) {
      let now = this.#now.get(each.party);
      if (!now) {
        const said = element("p", "words");
        const row = element("li", "now-saying", element("p", "turn-head", element("span", "speaker", each.party), element("span", "", "speaking now")), said);
        row.dataset.party = names.indexOf(each.party);
        now = { row, said };
        this.#now.set(each.party, now);
        this.#saying.append(row);
      }
      words(now.said, each);
    }
  }

  #play() {
    if (!this.#audio.hidden) void this.#audio.play().catch(() => {});
  }

  #go(place, play) {
    this.#show(place);
    if (this.#audio.hidden) return;
    this.#audio.currentTime = place;
    if (play) this.#play();
  }

  /** The place, and who speaks there. */
  #show(place) {
    this.#timeline.at = place;
    this.#timeline.reveal();
    for (const row of this.#rows.values()) {
      const now = row.turn.start <= place && place < row.turn.end;
      if (now && !row.hasAttribute("data-now")) row.scrollIntoView({ block: "nearest" });
      row.toggleAttribute("data-now", now);
    }
  }

  #follow() {
    cancelAnimationFrame(this.#frame);
    this.#show(this.#audio.currentTime);
    if (!this.#audio.paused && !this.#audio.ended) this.#frame = requestAnimationFrame(() => this.#follow());
  }
}

customElements.define("hearken-call-turn", CallTurn);
customElements.define("hearken-call", HearkenCall);
