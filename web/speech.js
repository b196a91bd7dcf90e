// Reads replies aloud with the browser's own voices, sentence by sentence as they are written.

/** Where a text can be cut so that a voice does not stumble; what is left stays for later. */
export function sentences(text) {
  const end = Math.max(...[". ", "! ", "? ", "\n", ": "].map((mark) => text.lastIndexOf(mark)));
  return end < 0 ? ["", text] : [text.slice(0, end + 1), text.slice(end + 1)];
}

export class Speech {
  #turn = null;
  #read = 0;
  on = false;
  available = "speechSynthesis" in globalThis;

  /** Takes a turn of the agent as it is now. */
  follow(turn) {
    if (!this.on || !this.available) return;
    if (turn !== this.#turn) {
      if (turn.state !== "replying" && turn.state !== "done") return;
      this.#turn = turn;
      this.#read = 0;
    }
    const fresh = turn.text.slice(this.#read);
    const [ready] = turn.state === "replying" ? sentences(fresh) : [fresh];
    this.#read += ready.length;
    if (ready.trim()) speechSynthesis.speak(new SpeechSynthesisUtterance(ready.trim()));
  }

  /** What was said before is not read any more. */
  skip(turn) {
    this.#turn = turn;
    this.#read = turn?.text.length ?? 0;
  }

  /** The person speaks, or wants silence. */
  stop() {
    if (this.available) speechSynthesis.cancel();
    if (this.#turn) this.#read = Infinity;
  }
}
