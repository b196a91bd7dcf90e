// What has been said, as data: server events go in, turns come out. No DOM and no clock of its own, so that it can be
// tested, stored and exported without a page.

const STATES = { completed: "done", cancelled: "cancelled", failed: "failed", incomplete: "incomplete" };

/**
 * A turn of the person:  {role: "user", id, how: "spoken" | "typed" | "file", words, tentative, state: "hearing" | "reading" | "final", startMs, endMs,
 *                         kept}
 * A turn of the agent:   {role: "agent", id, reasoning, text, state: "thinking" | "replying" | "done" | "cancelled" | "failed" | "incomplete",
 *                         waitFrom, thinkFrom, thinkTo, timings, why}
 * `waitFrom` is when the person had finished, `thinkFrom` when the first of the reasoning came, `thinkTo` when it ended.
 * `words` of a turn being spoken stay as they are; `tentative` is what seems to follow. `kept`: the server has it.
 * Emits `added`, `changed` and `removed`, each with the turn as detail, and `finished` once a turn will not change any more.
 */
export class Conversation extends EventTarget {
  turns = [];
  /** The person's turn being spoken now. */
  hearing = null;
  /** When the sound began whose clock the server tells times by: since the conversation began, and by this page's clock. */
  #sound = { offset: 0, began: null };
  /** The agent's turn being made now. */
  active = null;
  /** When the last turn ended, while no reply to it has begun. */
  awaitingSince = null;

  #find(id) {
    return this.turns.findLast((turn) => turn.id === id);
  }

  #tell(type, turn) {
    this.dispatchEvent(new CustomEvent(type, { detail: turn }));
  }

  #add(turn) {
    this.turns.push(turn);
    this.#tell("added", turn);
    return turn;
  }

  #remove(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    this.#tell("removed", turn);
  }

  #spoken(id) {
    return this.#find(id) ?? this.#add({ role: "user", id, how: "spoken", words: "", tentative: "", state: "reading", kept: true });
  }

  /** What the person typed is shown at once; the server's echo of the same id adds nothing. */
  typed(id, words, now) {
    this.awaitingSince = now;
    this.#tell("finished", this.#add({ role: "user", id, how: "typed", words, state: "final", kept: false }));
  }

  /** A file that the person had heard; its words come from the server. */
  file(id, ms, now) {
    this.awaitingSince = now;
    this.#add({ role: "user", id, how: "file", words: "", tentative: "", state: "reading", startMs: 0, endMs: ms, kept: false });
  }

  /** Begins anew, with what a server tells of a conversation (GET /v1/conversations/{id}), if given. */
  load(story, now) {
    for (const turn of this.turns) this.#tell("removed", turn);
    this.turns = [];
    this.hearing = this.active = this.awaitingSince = null;
    this.#sound = { offset: story?.sound_ms ?? 0, began: null };
    for (const told of story?.turns ?? []) {
      if (told.who === "user") {
        const how = told.spoken ? "spoken" : "typed";
        this.#add({ role: "user", id: told.id, how, words: told.words, tentative: "", state: "final", startMs: told.begins_ms, endMs: told.ends_ms, kept: true });
        continue;
      }
      const { id, reasoning = "", words: text, timings_ms: timings = null, status_details: details } = told;
      const turn = { role: "agent", id, reasoning, text, startMs: told.begins_ms, parts: 1, state: STATES[told.status] ?? "done", waitFrom: 0, thinkFrom: 0, thinkTo: timings?.think ?? 0 };
      Object.assign(turn, { timings, reason: details?.reason ?? null, why: details?.error?.message ?? null, code: details?.error?.code ?? null });
      if (told.status === "in_progress") {
        this.active = Object.assign(turn, { state: text ? "replying" : "thinking", waitFrom: now, thinkFrom: now, thinkTo: text ? now : null });
      }
      this.#add(turn);
    }
  }

  /** The connection is gone: whatever was under way stays as far as it got. */
  interrupted(now) {
    if (this.hearing) this.#settle(this.hearing);
    this.hearing = null;
    this.awaitingSince = null;
    if (this.active) this.#close(this.active, "cancelled", "The connection was lost.", now);
    for (const turn of this.turns) if (turn.role === "user" && turn.state !== "final") this.#settle(turn);
  }

  /** No reply came to what was said. */
  giveUpWaiting() {
    this.awaitingSince = null;
  }

  apply(event, now) {
    Conversation.#on[event.type]?.call(this, event, now);
  }

  #settle(turn) {
    if (turn.state === "final") return;
    turn.state = "final";
    turn.tentative = "";
    this.#tell("changed", turn);
    this.#tell("finished", turn);
  }

  #close(turn, state, why, now) {
    if (this.active === turn) this.active = null;
    turn.thinkTo ??= now;
    turn.state = state;
    turn.why = why;
    if (state === "cancelled" && !turn.text && !turn.reasoning) {
      this.#remove(turn);
      return;
    }
    this.#tell("changed", turn);
    this.#tell("finished", turn);
  }

  #agent(id, now) {
    const known = this.#find(id);
    if (known) return known;
    const waitFrom = this.awaitingSince ?? now;
    this.awaitingSince = null;
    this.active = { role: "agent", id, reasoning: "", text: "", parts: 0, state: "thinking", waitFrom, thinkFrom: null, thinkTo: null };
    return this.#add(this.active);
  }

  /** What each server event does; events not named here are of no concern to the page. */
  static #on = {
    __proto__: null,
    "input_audio_buffer.speech_started"({ item_id, audio_start_ms }, now) {
      this.awaitingSince = null;
      this.hearing = this.#spoken(item_id);
      this.hearing.state = "hearing";
      // The clock of the sound stands still while none is sent, and begins anew with a session of the server. What comes late, many at once, began before.
      const began = now - audio_start_ms;
      const stood = began - (this.#sound.began ?? began);
      if (stood >= 1000) this.#sound = { offset: this.#sound.offset + stood, began };
      else this.#sound.began = Math.min(began, this.#sound.began ?? began);
      this.hearing.startMs ??= audio_start_ms + this.#sound.offset;
      this.#tell("changed", this.hearing);
    },
    "input_audio_buffer.speech_stopped"({ item_id, audio_end_ms }, now) {
      const turn = this.#spoken(item_id);
      if (turn.state !== "final") turn.state = "reading";
      turn.endMs = audio_end_ms + this.#sound.offset;
      this.hearing = null;
      if (!this.active) this.awaitingSince = now;
      this.#tell("changed", turn);
    },
    "input_audio_buffer.committed"({ item_id }, now) {
      const turn = this.#spoken(item_id);
      if (turn.state === "hearing") turn.state = "reading";
      this.hearing = null;
      if (!this.active) this.awaitingSince ??= now;
      this.#tell("changed", turn);
    },
    "input_audio_buffer.cleared"() {
      if (this.hearing) this.#remove(this.hearing);
      this.hearing = null;
    },
    "conversation.item.input_audio_transcription.delta"({ item_id, delta }) {
      const turn = this.#spoken(item_id);
      turn.words += delta;
      turn.tentative = "";
      this.#tell("changed", turn);
    },
    "hearken.input_audio_transcription.tentative"({ item_id, text }) {
      const turn = this.#find(item_id);
      if (!turn || turn.state === "final") return;
      turn.tentative = text;
      this.#tell("changed", turn);
    },
    "conversation.item.added"({ item }) {
      const turn = this.#find(item.id);
      if (turn) turn.kept = true;
    },
    "conversation.item.input_audio_transcription.completed"({ item_id, transcript }) {
      const turn = this.#spoken(item_id);
      turn.words = transcript.trim();
      turn.state = "hearing";
      this.#settle(turn);
    },
    "conversation.item.input_audio_transcription.failed"({ item_id }) {
      this.#settle(this.#spoken(item_id));
    },
    "conversation.item.deleted"({ item_id }) {
      const turn = this.#find(item_id);
      if (turn) this.#remove(turn);
    },
    "response.created"({ response }, now) {
      this.#agent(response.id, now);
    },
    "response.reasoning_text.delta"({ response_id, delta }, now) {
      const turn = this.#agent(response_id, now);
      turn.thinkFrom ??= now;
      turn.reasoning += delta;
      this.#tell("changed", turn);
    },
    "response.reasoning_text.done"({ response_id, text }, now) {
      const turn = this.#agent(response_id, now);
      turn.reasoning = text ?? turn.reasoning; // Whoever was away has missed pieces of it.
      turn.thinkTo ??= now;
      this.#tell("changed", turn);
    },
    "response.content_part.added"({ response_id }, now) {
      const turn = this.#agent(response_id, now);
      if (++turn.parts > 1 && turn.text) turn.text += "\n\n";
    },
    "response.output_text.delta"({ response_id, delta }, now) {
      const turn = this.#agent(response_id, now);
      turn.thinkTo ??= now;
      if (turn.state === "thinking") turn.state = "replying";
      turn.text += delta;
      this.#tell("changed", turn);
    },
    "response.done"({ response }, now) {
      const turn = this.#agent(response.id, now);
      const parts = response.output?.flatMap((item) => item.content ?? []).map((part) => part.text).filter(Boolean);
      if (parts?.length) turn.text = parts.join("\n\n"); // As above.
      turn.timings = response.timings_ms ?? null;
      turn.usage = response.usage ?? null;
      const details = response.status_details;
      turn.reason = details?.reason ?? null;
      for (const said of this.turns) if (said.role === "user" && said.state === "reading") this.#settle(said);
      turn.code = details?.error?.code ?? null;
      this.#close(turn, STATES[response.status] ?? "done", details?.error?.message ?? null, now);
    },
  };
}
