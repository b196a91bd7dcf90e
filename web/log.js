// <hearken-log>: draws a Conversation. Each turn is one element that is updated in place, so that a reader's place, an
// opened reasoning panel and a selection survive the next word.

import { endNote, seconds, shortTime, thinkingWords, TIMINGS } from "./words.js";

export function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

/** Sets text by appending where it only grew: cheaper, and a selection in it survives. */
export function setText(node, text) {
  const first = node.firstChild;
  if (first && node.childNodes.length === 1 && text.startsWith(first.data)) {
    if (text.length > first.data.length) first.appendData(text.slice(first.data.length));
  } else {
    node.textContent = text;
  }
}

class UserTurn extends HTMLElement {
  #said = element("span", "said");
  #tentative = element("span", "tentative");
  #words = element("p", "words", this.#said, this.#tentative);
  #label = element("p", "who");

  connectedCallback() {
    this.classList.add("turn", "user");
    if (!this.#words.isConnected) this.replaceChildren(this.#label, this.#words);
  }

  update(turn) {
    this.dataset.how = turn.how;
    this.dataset.state = turn.state;
    const heard = turn.how !== "typed";
    this.#label.replaceChildren("You", element("span", "tag", { spoken: "heard", typed: "typed", file: "sound file" }[turn.how]));
    this.#label.title = heard ? "The words that were heard in what you said" : "";
    const length = turn.endMs > turn.startMs ? seconds(turn.endMs - turn.startMs) : "A moment";
    const empty = turn.state === "final" ? `${length} of speech, no words written down` : "…";
    const tentative = turn.tentative?.trim() ?? "";
    this.#words.classList.toggle("empty", !turn.words && !tentative);
    setText(this.#said, turn.words || (tentative ? "" : empty));
    this.#tentative.textContent = tentative && turn.words ? ` ${tentative}` : tentative;
  }
}

class AgentTurn extends HTMLElement {
  #summary = element("span", "think-words");
  #peek = element("span", "peek");
  #reasoning = element("p", "reasoning-text");
  #details = element("details", "reasoning", element("summary", "", this.#summary, this.#peek), this.#reasoning);
  #text = element("p", "words");
  #note = element("p", "note");
  #latency = document.createElement("hearken-latency");
  #turn = null;
  #now = 0;

  connectedCallback() {
    this.classList.add("turn", "agent");
    if (this.#text.isConnected) return;
    this.#peek.setAttribute("aria-hidden", "true");
    this.replaceChildren(element("p", "who", "Hearken"), this.#details, this.#text, this.#note, this.#latency);
  }

  update(turn) {
    this.#turn = turn;
    this.dataset.state = turn.state;
    const over = !["thinking", "replying"].includes(turn.state);
    this.#details.hidden = !turn.reasoning && (over || turn.state === "replying");
    const atEnd = this.#reasoning.scrollTop + this.#reasoning.clientHeight > this.#reasoning.scrollHeight - 24;
    setText(this.#reasoning, turn.reasoning.trimStart());
    if (atEnd) this.#reasoning.scrollTop = this.#reasoning.scrollHeight;
    this.#peek.textContent = turn.thinkTo === null ? turn.reasoning.slice(-120).replace(/\s+/g, " ") : "";
    setText(this.#text, turn.text.trimStart());
    this.#text.hidden = !turn.text.trim();
    const nothing = turn.state === "done" && !turn.text.trim();
    this.#note.textContent = nothing ? "It gave no reply." : endNote(turn);
    this.#note.hidden = !this.#note.textContent;
    this.#latency.timings = over ? turn.timings : null;
    this.tick(this.#now);
  }

  /** The running "Thinking 2.3 s". */
  tick(now) {
    const turn = this.#turn;
    this.#now = now;
    const running = turn.thinkTo === null;
    const took = turn.thinkTo - (turn.thinkFrom ?? turn.waitFrom);
    this.#summary.textContent = running ? thinkingWords(turn, now) : took > 0 ? `Thought for ${seconds(took)}` : "Thought";
    this.#details.classList.toggle("running", running);
  }
}

/** Where the time of a turn went: one bar to scale, and the same in words. */
class Latency extends HTMLElement {
  set timings(timings) {
    const parts = TIMINGS.map(([key, name, what]) => ({ key, name, what, ms: timings?.[key] })).filter(
      (part) => Number.isFinite(part.ms) && part.ms >= 0.5,
    );
    this.hidden = parts.length === 0;
    if (this.hidden || this.childElementCount) return;
    const total = parts.reduce((sum, part) => sum + part.ms, 0);
    const bar = element("span", "latency-bar");
    bar.setAttribute("aria-hidden", "true");
    const list = element("ul", "latency-parts");
    for (const { key, name, what, ms } of parts) {
      const share = element("span", `part in-${key}`);
      share.style.flexGrow = String(ms);
      bar.append(share);
      const item = element("li", `part-${key}`, element("i", `swatch in-${key}`), `${name} `, element("b", "", shortTime(ms)));
      item.title = what;
      list.append(item);
    }
    list.setAttribute("aria-label", "Where the time went");
    const whole = element("span", "total", element("span", "sr", "In all "), shortTime(total));
    this.replaceChildren(element("p", "latency-whole", bar, whole), list);
  }
}

class HearkenLog extends HTMLElement {
  #rows = new Map();

  set conversation(conversation) {
    conversation.addEventListener("added", ({ detail }) => this.#added(detail));
    conversation.addEventListener("changed", ({ detail }) => this.#rows.get(detail)?.update(detail));
    conversation.addEventListener("removed", ({ detail }) => {
      this.#rows.get(detail)?.remove();
      this.#rows.delete(detail);
    });
    for (const turn of conversation.turns) this.#added(turn);
  }

  #added(turn) {
    const row = document.createElement(turn.role === "user" ? "hearken-user-turn" : "hearken-agent-turn");
    this.#rows.set(turn, row);
    this.append(row);
    row.update(turn);
  }

  /** Takes the lines between turns away, with all else that is no turn. */
  clear() {
    for (const divider of this.querySelectorAll(".divider")) divider.remove();
  }

  /** A line across the log: something about the conversation, said by neither side. */
  divide(words) {
    this.append(element("p", "divider", words));
  }

  tick(turn, now) {
    this.#rows.get(turn)?.tick(now);
  }
}

customElements.define("hearken-latency", Latency);
customElements.define("hearken-user-turn", UserTurn);
customElements.define("hearken-agent-turn", AgentTurn);
customElements.define("hearken-log", HearkenLog);
