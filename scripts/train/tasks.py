"""What nano is asked about a clip, and what it should say: prompts, percepts in words, replies.

The reasoning has one form, because the runtime may put a better ear's words into it:
`<think>\\nI hear <percepts>. The words: <words>\\n</think>\\n\\n<reply>`. Every percept named is true of the clip.
"""

import random
from dataclasses import dataclass

from .adaptor import percept
from .texts import in_words

BEGIN = "<|im_start|>user\n"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
REST = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
TRANSCRIBE, DESCRIBE, DIRECT = "\nTranscribe the speech.", "\nDescribe the voice, then transcribe the speech.", "\nAnswer directly."
EMPTY = "<think>\n\n</think>\n\n"
LOST = [
    "I did not catch any words. Could you say that again?",
    "I am sorry, I did not understand that.",
    "I could not make out any words. Please try again.",
]

WHO = {"man": "a man", "woman": "a woman", "two": "two people", "nobody": "no voice", None: "a voice"}
PITCH = {"low": "a deep voice", "high": "a high voice"}
PACE = {"slow": "slow", "normal": "normal pace", "fast": "fast"}
VOLUME = {"quiet": "quiet", "medium": "medium volume", "loud": "loud"}
SOUND = {"none": "clean sound", "hiss": "hiss", "rumble": "a low rumble", "wind": "wind", "music": "music"}
CONTOUR = {"rising": "rising at the end", "falling": "falling at the end"}


def events(facts: dict) -> str:
    count = facts["count"]
    words = f"{'one' if count == 1 else in_words(count)} {facts['event']}{'s' if count > 1 else ''}"
    return words + (f" {facts['place']} the words" if "place" in facts else "")


def heard(facts: dict) -> dict[str, str]:
    """The percepts of a clip in words, by name, in the order they are named in."""
    said = {"who": WHO[facts["who"]], "pitch": PITCH.get(percept(facts, "pitch")), "pace": PACE.get(facts["pace"])}
    said["volume"] = VOLUME.get(facts.get("volume"))
    said["noise"] = "silence" if facts.get("silence") else None if facts.get("event") and facts["who"] == "nobody" else SOUND[percept(facts, "noise")]
    said["telephone"] = "over a telephone" if facts.get("telephone") else None
    said["echo"] = "an echoing room" if facts.get("echo") else None
    said["contour"] = CONTOUR.get(facts.get("contour"))
    said["pause"] = "a long pause" if facts.get("pause") else None
    said["backwards"] = "unclear speech" if facts.get("backwards") else None
    said["event"] = events(facts) if facts.get("event") else None
    return {name: words for name, words in said.items() if words}


def percepts(facts: dict) -> str:
    return "I hear " + ", ".join(heard(facts).values()) + "."


def questions(facts: dict) -> list[tuple[str, str]]:
    """Questions that a transcript cannot answer, with their answers."""
    asked = []
    if facts["who"] in ("man", "woman"):
        asked.append(("Is the speaker a man or a woman?", f"A {facts['who']}."))
    if facts["pace"]:
        asked.append(("How fast does the person speak?", {"slow": "Slowly.", "normal": "At a normal pace.", "fast": "Fast."}[facts["pace"]]))
    if facts.get("volume"):
        asked.append(("How loud is the sound?", {"quiet": "Quiet.", "medium": "Medium.", "loud": "Loud."}[facts["volume"]]))
    if percept(facts, "pitch") in PITCH:
        asked.append(("Is the voice deep or high?", {"low": "Deep.", "high": "High."}[percept(facts, "pitch")]))
    if facts["who"] != "nobody":
        asked.append(("Is there noise in the background?", f"Yes, {SOUND[facts['noise']]}." if "noise" in facts else "No."))
        asked.append(("How many people are speaking?", "Two." if facts["who"] == "two" else "One."))
        asked.append(("Is this a telephone call?", "Yes." if facts.get("telephone") else "No."))
    if "contour" in facts:
        asked.append(("Does the voice rise or fall at the end?", {"rising": "It rises.", "falling": "It falls."}[facts["contour"]]))
    if "event" in facts:
        asked += [(f"How many {facts['event']}s do you hear?", f"{facts['count']}.")] * 3
        asked.append(("Do you hear beeps or knocks?", f"{facts['event'].capitalize()}s."))
    return asked


SYSTEMS = {  # system prompt -> what it makes of a reply
    "Answer in capital letters.": str.upper,
    "Begin every reply with the word Sure.": lambda reply: "Sure. " + reply,
    "End every reply with the word Over.": lambda reply: reply + " Over.",
}


@dataclass
class Branch:
    """One task on a clip: what follows the sound, and the target in pieces with their loss weights."""

    instruction: str
    target: list[tuple[str, float]]
    ends: bool = True


def thinking(facts: dict, words: str, reply: str | None, joined: bool, instruction: str = "") -> Branch:
    """Percepts weigh double: they are few tokens, and the ones nothing but the sound can tell. Without a
    right reply the branch stops at the end of the reasoning: what follows stays the decoder's own.

    `joined` tokenises the end of the words together with the newline after them (one token `.\\n`), as the
    model itself writes it; apart is how it reads when a runtime forces the words and lets the model go on.
    A model that has seen only one of the two ends its turn at the other.
    """
    said, close, reply = f" The words: {words or 'none'}", "\n</think>\n\n", reply or ""
    ending = [(said + close, 1.0), (reply, 1.0)] if joined else [(said, 1.0), (close + reply, 1.0)]
    return Branch(instruction, [("<think>\n", 0.2), (percepts(facts), 2.0), *ending], ends=bool(reply))


def branches(facts: dict, rng: random.Random) -> tuple[str, list[Branch]]:
    """A system prompt (mostly none) and the tasks trained on one clip together. The reasoning is one of them for
    every clip with words, since it is where the product hears; the others keep their forms alive at less cost."""
    made, system = [], ""
    reply = facts["reply"] if facts["text"] else rng.choice(LOST)
    if reply and rng.random() < 0.12:
        system = rng.choice(list(SYSTEMS))
        reply = SYSTEMS[system](reply)
    words = facts["written"] if rng.random() < 0.3 else facts["text"]
    made.append(thinking(facts, words, reply, joined=rng.random() < 0.5))
    if reply and rng.random() < 0.3:
        made.append(Branch(DIRECT, [(EMPTY, 0.2), (reply, 1.0)]))
    if not system and facts["text"] and rng.random() < 0.2:
        made.append(Branch(TRANSCRIBE, [(facts["text"], 1.0)]))
    if not system and facts["text"] and rng.random() < 0.1:
        made.append(Branch(DESCRIBE, [("<think>\n", 0.2), (percepts(facts), 2.0), ("\n</think>\n\n", 0.2), (facts["text"], 0.5)]))
    asked = questions(facts)
    if asked and not system and rng.random() < 0.6:
        question, answer = rng.choice(asked)
        made.append(Branch(f"\n{question} Answer directly.", [(EMPTY, 0.2), (answer, 3.0)]))
    return system, made
