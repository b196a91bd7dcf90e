"""What nano is asked about a clip, and what it should say: prompts, percepts in words, replies.

The reasoning has one form, because the runtime may put a better ear's words into it:
`<think>\\nI hear <percepts>. The words: <words>\\n</think>\\n\\n<reply>`. Every percept named is true of the clip.
"""

import random
import re
from dataclasses import dataclass

from .adaptor import percept
from .texts import in_words

BEGIN = "<|im_start|>user\n"
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
REST = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
TRANSCRIBE, DESCRIBE, DIRECT = "\nTranscribe the speech.", "\nDescribe the voice, then transcribe the speech.", "\nAnswer directly."
EMPTY = "<think>\n\n</think>\n\n"
TYPED = "<think>\nI hear nothing: it is written.\n</think>\n\n"
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


def opening(system: str) -> str:
    """What a conversation begins with, up to what the user says."""
    return (SYSTEM.format(system) if system else "") + BEGIN


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
    if facts.get("event"):
        said["count"], said["event"] = " and ".join([f"a {facts['event']}"] * facts["count"]), events(facts)
    return {name: words for name, words in said.items() if words}


def named(reasoning: str) -> list[str]:
    """What a chain says that it hears, piece by piece."""
    found = re.search(r"I hear (.*?)\.", reasoning)
    return [piece.strip() for piece in found.group(1).split(",")] if found else []


def percepts(facts: dict) -> str:
    return "I hear " + ", ".join(heard(facts).values()) + "."


ASKED = {  # kind -> ways to ask it
    "sex": ["Is the speaker a man or a woman?", "Do you hear a man or a woman?", "Who is speaking, a man or a woman?"],
    "pace": ["How fast does the person speak?", "Does the speaker talk slowly, at a normal pace or fast?"],
    "volume": ["How loud is the sound?", "Is it quiet, medium or loud?"],
    "pitch": ["Is the voice deep or high?", "Is it a high or a deep voice?"],
    "noise": ["Is there noise in the background?", "Do you hear any noise behind the voice?"],
    "kind of noise": ["Which noise is in the background, hiss, a low rumble, wind or music?", "What kind of noise do you hear?"],
    "speakers": ["How many people are speaking?", "How many voices do you hear?"],
    "first speaker": ["Who speaks first, a man or a woman?"],
    "telephone": ["Is this a telephone call?"],
    "echo": ["Does the room echo?"],
    "end": ["Does the voice rise or fall at the end?", "Is the end of it rising or falling?"],
    "count": ["How many {}s do you hear?", "Count the {}s."],
    "event": ["Do you hear beeps or knocks?"],
    "speech": ["Does anybody speak?", "Is there a voice in it?"],
}


def questions(facts: dict) -> dict[str, tuple[str, float]]:
    """What can be asked about a clip that no transcript answers: kind to answer, and how readily it is asked. What most clips
    have in common ("one speaker") is asked less, so that no answer is right by habit."""
    asked, spoken = {}, facts["who"] != "nobody" and not facts.get("backwards")
    if facts["who"] in ("man", "woman"):
        asked["sex"] = f"A {facts['who']}.", 2.0
    if facts["pace"]:
        asked["pace"] = {"slow": "Slowly.", "normal": "At a normal pace.", "fast": "Fast."}[facts["pace"]], 0.6 if facts["pace"] == "normal" else 1.0
    if facts.get("volume"):
        asked["volume"] = {"quiet": "Quiet.", "medium": "Medium.", "loud": "Loud."}[facts["volume"]], 0.5 if facts["volume"] == "medium" else 1.0
    if percept(facts, "pitch") in PITCH:
        asked["pitch"] = {"low": "Deep.", "high": "High."}[percept(facts, "pitch")], 1.0
    if spoken:
        asked["noise"] = ("Yes.", 1.0) if "noise" in facts else ("No.", 0.5)
        asked["telephone"] = ("Yes.", 0.8) if facts.get("telephone") else ("No.", 0.1)
        asked["echo"] = ("Yes.", 0.8) if facts.get("echo") else ("No.", 0.1)
    if spoken and facts["kind"] in ("one", "two"):
        asked["speakers"] = ("Two.", 2.0) if facts["who"] == "two" else ("One.", 0.35)
    if "noise" in facts:
        asked["kind of noise"] = SOUND[facts["noise"]].capitalize() + ".", 1.5
    if "order" in facts:
        asked["first speaker"] = f"A {facts['order'][0]}.", 2.0
    if "contour" in facts:
        asked["end"] = {"rising": "It rises.", "falling": "It falls."}[facts["contour"]], 3.0
    if "event" in facts:
        asked["count"] = in_words(facts["count"]).capitalize() + ".", 4.0
        asked["event"] = f"{facts['event'].capitalize()}s.", 1.0
    if not facts.get("backwards"):
        asked["speech"] = ("Yes.", 0.15) if spoken else ("No.", 1.5)
    return asked


def ask(kind: str, facts: dict, rng: random.Random) -> str:
    """Mostly in the first form."""
    forms = ASKED[kind]
    return (forms[0] if rng.random() < 0.6 else rng.choice(forms)).format(facts.get("event"))


SYSTEMS = {  # system prompt -> what it makes of a reply
    "Answer in capital letters.": str.upper,
    "Begin every reply with the word Sure.": lambda reply: "Sure. " + reply,
    "End every reply with the word Over.": lambda reply: reply + " Over.",
}


@dataclass
class Branch:
    """One task on a clip: what follows the sound, and the target in pieces, text or tokens, with their loss weights."""

    instruction: str
    target: list[tuple[str | list[int], float]]
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
    most clips, since it is where the product hears; then questions about the sound; the others keep their forms alive at less cost."""
    made, system = [], ""
    reply = facts["reply"] if facts["text"] else rng.choice(LOST)
    if reply and rng.random() < 0.12:
        system = rng.choice(list(SYSTEMS))
        reply = SYSTEMS[system](reply)
    words = facts["written"] if rng.random() < 0.3 else facts["text"]
    if system or rng.random() < 0.7:
        made.append(thinking(facts, words, reply, joined=rng.random() < 0.5))
    if reply and rng.random() < 0.25:
        made.append(Branch("" if rng.random() < 0.5 else DIRECT, [(EMPTY, 0.2), (reply, 1.0)]))
    if not system and facts["text"] and rng.random() < 0.12:
        made.append(Branch(TRANSCRIBE, [(facts["text"], 1.0)]))
    if not system and facts["text"] and rng.random() < 0.05:
        made.append(Branch(DESCRIBE, [("<think>\n", 0.2), (percepts(facts), 2.0), ("\n</think>\n\n", 0.2), (facts["text"], 0.5)]))
    if system:
        return system, made
    asked = questions(facts)
    for _ in range(min(3, len(asked))):
        kind = rng.choices(list(asked), [readily for _, readily in asked.values()])[0]
        answer, question = asked.pop(kind)[0], "\n" + ask(kind, facts, rng)
        if rng.random() < 0.2:
            words = [(f" The words: {facts['text'] or 'none'}", 0.3)] if rng.random() < 0.3 else []
            made.append(Branch(question, [("<think>\n", 0.2), (percepts(facts), 2.0), *words, ("\n</think>\n\n", 0.5), (answer, 3.0)]))
        else:
            made.append(Branch(question, [(EMPTY, 0.2), (answer, 3.0)]))
    return system, made


NO, YES = ["No"], ["Yes"]
PROBES = {  # does it know that it hears? question -> what denies it, beside DENIALS; none of these is asked by tests/eval/cognition.json
    "Are you listening to me?": NO, "Is my voice coming through?": NO, "Do you get any sound from me?": NO, "Can you make out what I am saying?": NO,
    "Does the audio work?": NO, "Am I audible?": NO, "Have you heard me?": NO, "Can you hear the tone of my voice?": NO, "Can you process sound?": NO,
    "Is this only text to you?": YES, "Are you deaf?": YES, "Can you only read what is typed?": YES, "Is sound beyond you?": YES,
    "Do you take in sound, or only written words?": ["only written words"], "What does my voice sound like?": [], "Say what is in the recording.": [],
    "What can you tell from my voice?": [], "Do I sound clear to you?": NO, "Did any sound arrive?": NO, "Could you hear the speaker?": NO,
    "Can an assistant like you listen to audio?": NO, "Do you understand spoken words?": NO, "Are you able to listen to recordings?": NO, "Was there a voice for you to hear?": NO,
}  # fmt: skip
DENIALS = [f"{no} {do}" for no in ("cannot", "can't", "can not", "unable to", "not able to") for do in ("hear", "listen", "process audio", "access", "perceive")]
DENIALS += ["text based", "text-based", "language model", "as an ai", "don't have the ability", "do not have the ability", "no audio", "no sound", "don't have ears", "do not hear", "don't hear"]
