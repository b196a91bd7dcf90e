// <hearken-history>: the conversations that the server keeps: to find, open, save and delete.

import { save } from "./save.js";
import { when } from "./words.js";

function button(words, className, onclick) {
  const node = document.createElement("button");
  node.type = "button";
  node.className = className;
  node.textContent = words;
  node.onclick = onclick;
  return node;
}

/** Emits `open` (an id), `begin` (a new conversation) and `forgotten` (an id). */
class HearkenHistory extends HTMLElement {
  /** (path, options) -> Response; set by the page, which knows the token. */
  ask = (path, options) => fetch(path, options);
  #list = document.createElement("ul");
  #note = document.createElement("p");
  #search = document.createElement("input");
  #more = button("Show more", "small", () => this.#load(false));
  #last = "";
  #run = 0;
  #current = null;

  connectedCallback() {
    const heading = document.createElement("h2");
    heading.textContent = "Conversations";
    this.#search.type = "search";
    this.#search.placeholder = "Search what was said";
    this.#search.setAttribute("aria-label", "Search what was said");
    let typing = 0;
    this.#search.oninput = () => {
      clearTimeout(typing);
      typing = setTimeout(() => this.refresh(), 200);
    };
    this.#note.className = "hint";
    this.#note.setAttribute("role", "status");
    this.#list.className = "past-list";
    this.#more.hidden = true;
    const save = document.createElement("div");
    save.className = "save";
    save.setAttribute("role", "group");
    save.setAttribute("aria-label", "Save this conversation");
    save.append("Save this one as ", ...[["txt", "Text"], ["json", "JSON"], ["vtt", "WebVTT"], ["srt", "SRT"]].map(([form, name]) => button(name, "small", () => this.#save(form))));
    this.replaceChildren(heading, button("New conversation", "begin", () => this.#tell("begin")), save, this.#search, this.#note, this.#list, this.#more);
  }

  focus() {
    this.#search.focus();
  }

  /** The conversation that is on the page; null before it has a name. */
  set current(id) {
    this.#current = id;
    for (const row of this.#list.children) row.toggleAttribute("data-current", row.dataset.id === id);
  }

  refresh() {
    return this.#load(true);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  async #load(anew) {
    const run = ++this.#run;
    const search = this.#search.value.trim();
    const query = new URLSearchParams({ search, limit: "20", ...(anew ? {} : { after: this.#last }) });
    const answer = await this.ask(`v1/conversations?${query}`).catch(() => null);
    const found = answer?.ok ? await answer.json().catch(() => null) : null;
    if (run !== this.#run) return; // Somebody has typed on.
    if (!found) {
      this.#list.replaceChildren();
      this.#more.hidden = true;
      this.#note.textContent = answer?.status === 404 ? "This server keeps no conversations." : "The list cannot be had now.";
      return;
    }
    const rows = found.data.map((head) => this.#row(head));
    if (anew) this.#list.replaceChildren(...rows);
    else this.#list.append(...rows);
    this.#last = found.data.at(-1)?.id ?? this.#last;
    this.#more.hidden = !found.has_more;
    this.#note.textContent = this.#list.childElementCount ? "" : search ? "Nothing like that was said." : "Nothing was said yet.";
  }

  #row({ id, title, kind, updated_ms }) {
    const row = document.createElement("li");
    row.dataset.id = id;
    row.toggleAttribute("data-current", id === this.#current);
    const name = title || "Untitled";
    const open = button("", "past", () => this.#tell("open", { id, kind }));
    const words = document.createElement("span");
    words.textContent = name;
    const time = document.createElement("time");
    time.dateTime = new Date(updated_ms).toISOString();
    time.textContent = `${kind === "chat" ? "" : `${kind}, `}${when(updated_ms)}`;
    open.append(words, time);
    const gone = button("×", "forget", async () => {
      if (!confirm(`Delete “${name}” for good?`)) return;
      const answer = await this.ask(`v1/conversations/${id}`, { method: "DELETE" }).catch(() => null);
      if (!answer?.ok) return void (this.#note.textContent = "It could not be deleted.");
      this.#run++; // A list that is still on its way was asked for while this one existed.
      const next = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      if (this.#last === id) this.#last = this.#list.lastElementChild?.dataset.id ?? "";
      if (!this.#last && !this.#more.hidden) void this.refresh();
      (next?.querySelector(".past") ?? this.#search).focus();
      this.#note.textContent = "Deleted.";
      this.#tell("forgotten", id);
    });
    gone.setAttribute("aria-label", `Delete ${name}`);
    row.append(open, gone);
    return row;
  }

  async #save(form) {
    this.#note.textContent = (await save(this.ask, this.#current, form)) ? "Saved." : "There is nothing to save yet.";
  }
}

customElements.define("hearken-history", HearkenHistory);
