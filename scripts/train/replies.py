"""Stage replies: what the decoder itself, without its updates, answers to what is typed.

`instruct` mixes these in, so that learning to hear does not cost the decoder what it could do before: replies to speech are
short, and an update that saw nothing else makes every reply short, or finds a voice in a typed request. Prompts are made
here; replies are the likeliest, cut at --longest tokens, and left out where they go round in circles or refuse. Where a right reply is
known by construction, it is taken instead.

    python -m scripts.train.replies --count 300
"""

import json
import random
import re

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from . import common, facts, texts
from .decoder import Decoder, Weights, generate
from .tasks import END, REST, opening

THEMES = (
    "the moon, the sea, a volcano, photosynthesis, electricity, the human heart, democracy, inflation, a rainbow, the water cycle, gravity, vaccines, sleep, "
    "memory, recycling, the internet, a search engine, machine learning, chess, football, the violin, jazz, coffee, bread, cheese, a bicycle, a train, a bridge, "
    "a telephone, a camera, the seasons, snow, honey bees, whales, elephants, owls, dolphins, trees, friendship, courage, patience, money, trade, time zones"
).split(", ")
CODE = (
    "reverses a string, sorts a list of numbers, counts the words in a file, computes the factorial of a number, prints the first twenty prime numbers, checks whether a word is a palindrome, "
    "converts Celsius to Fahrenheit, finds the largest number in a list, removes duplicates from a list, merges two dictionaries, downloads a web page, reads a CSV file, "
    "plays a guessing game, computes the average of a list, prints a multiplication table, validates an email address, draws a triangle of stars, simulates a bank account"
).split(", ")
LANGUAGES = ["Python", "Python", "Python", "JavaScript", "Rust", "C", "Java", "Go"]
INTO = ["French", "German", "Spanish", "Italian"]
HEROES = ["a fox", "a lonely robot", "a lighthouse keeper", "two brothers", "a small dragon", "an old sailor", "a girl who could fly", "a clockmaker", "a brave mouse", "a lost dog"]
SYSTEMS = ["You are a helpful assistant.", "You are Hearken, a voice assistant.", "Answer briefly.", "Answer in one sentence.", "You are an experienced teacher. Explain step by step."]
BOXES = {  # functions that may be called: name -> (what it does, its arguments, who would need it)
    "get_weather": ("The weather in a city.", ["city"], ["What is the weather in {city}?", "Will it rain in {city} today?"]),
    "set_timer": ("Starts a timer.", ["minutes"], ["Set a timer for {number} minutes.", "Wake me in {number} minutes."]),
    "send_message": ("Sends a message to a person.", ["to", "text"], ["Tell {name} that I will be late.", "Send {name} a message: see you on {day}."]),
    "look_up_order": ("Finds an order.", ["number"], ["Where is my order {number}?", "Has order {number} been sent?"]),
    "turn_on": ("Turns a device on.", ["device", "room"], ["Turn on the {device} in the {room}."]),
}


def box(name: str) -> str:
    """A function as Qwen2.5 is told of it (models/src/prompt.rs has the same form)."""
    what, arguments, _ = BOXES[name]
    properties = {a: {"type": "string"} for a in arguments}
    parameters = {"type": "object", "properties": properties, "required": arguments}
    return json.dumps({"type": "function", "function": {"name": name, "description": what, "parameters": parameters}})


def tools(rng: random.Random) -> tuple[str, str]:
    """A system prompt with functions, and a request that needs one of them, or none."""
    names = rng.sample(list(BOXES), rng.randint(1, 3))
    system = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    system += "\n".join(map(box, names)) + "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:"
    system += '\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    fills = {"city": rng.choice(facts.CAPITALS)[1], "number": rng.randint(2, 90), "name": rng.choice(facts.NAMES), "day": rng.choice(facts.DAYS)}
    fills |= {"device": rng.choice(facts.DEVICES), "room": rng.choice(facts.ROOMS)}
    return system, rng.choice(BOXES[rng.choice(names)][2]).format(**fills)


def call(rng: random.Random) -> str:
    """Some turns of a call and what is to be done with them."""
    turns = [texts.call_turn(rng) for _ in range(rng.randint(2, 4))]
    said = "\n".join(f"Caller: {t.get('written', t['text'])}\nAgent: {t['reply']}" for t in turns)
    return rng.choice(["Summarise this call in two sentences.\n\n{}", "{}\n\nWhat did the caller want?", "List what has to be done after this call:\n\n{}"]).format(said)


def count(rng: random.Random) -> tuple[str, str]:
    last = rng.randint(5, 40)
    ask = rng.choice(["Count from one to {}.", "Count slowly from one to {}, in words.", "Say the numbers from one to {}."]).format(texts.in_words(last))
    return ask, ", ".join(map(texts.in_words, range(1, last + 1))).capitalize() + "."


def prompt(rng: random.Random, sentences: list[str]) -> dict:
    """A system prompt (mostly none), what is typed, and the reply where there is a right one."""
    theme, hero, code, language = rng.choice(THEMES), rng.choice(HEROES), rng.choice(CODE), rng.choice(LANGUAGES)
    into, sentence, (a, b) = rng.choice(INTO), rng.choice(sentences), rng.sample(THEMES, 2)
    kinds = [
        lambda: rng.choice(["Tell me a story about {}.", "Write a short story about {}.", "Write a fairy tale about {} in ten sentences.", "Write a poem about {}."]).format(hero),
        lambda: rng.choice(["Explain {} to a child.", "Explain how {} came to be.", "What should I know about {}?", "Write an essay about {}.", "Tell me about {}.", "Why does {} matter?"]).format(theme),
        lambda: f"Write a {language} program that {code}.",
        lambda: rng.choice(["Write a {} function that {}, and explain it.", "Show me {} code that {}."]).format(language, code),
        lambda: rng.choice(["List {} facts about {}.", "Name {} things that have to do with {}.", "Give me {} reasons to care about {}."]).format(texts.in_words(rng.randint(3, 12)), theme),
        lambda: f"What is the difference between {a} and {b}?",
        lambda: f"Translate into {into}: {sentence}",
        lambda: rng.choice(["Say this in other words: {}", "What does this mean? {}", "Correct the grammar: {}"]).format(sentence),
        lambda: rng.choice(["Give me a recipe with {}.", "How do I store {}?", "What can I cook with {}?"]).format(rng.choice(facts.DISHES)),
        lambda: rng.choice(["How do I repair a {}?", "Write an advertisement for a {}.", "Write a letter of complaint about a broken {}."]).format(rng.choice(facts.PRODUCTS)),
        lambda: rng.choice(["What should I see in {}?", "Write a postcard from {}.", "Tell me about the city of {}."]).format(rng.choice(facts.CAPITALS)[1]),
        lambda: call(rng),
    ]
    kind = rng.random()
    if kind < 0.12:
        system, text = tools(rng)
        return {"system": system, "text": text}
    system = rng.choice(SYSTEMS) if rng.random() < 0.3 else ""
    if kind < 0.72:
        return {"system": system, "text": rng.choice(kinds)()}
    if kind < 0.78:
        text, reply = count(rng)
    elif kind < 0.82:
        text, reply = "Repeat this: " + sentence, sentence
    else:
        made = texts.made(rng)
        text, reply = made.get("written", made["text"]), made["reply"]
    return {"system": system, "text": text, "reply": reply, "whole": True}


def circles(tokens: list[int], run: int = 12) -> bool:
    """Whether some row of `run` tokens comes back."""
    rows = [tuple(tokens[i : i + run]) for i in range(len(tokens) - run + 1)]
    return len(rows) != len(set(rows))


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--longest", type=int, default=140, help="tokens of a reply")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--fortunes", type=common.Path, default="/usr/share/games/fortunes")
    parser.add_argument("--wordnet", type=common.Path, default="/usr/share/wordnet")
    args = parser.parse_args()
    common.start(args)
    path, pause, rng = args.work / "replies.jsonl", common.Pause(args.pause_file), random.Random(args.seed)
    tokenizer, decoder = Tokenizer.from_file(str(args.work / "tokenizer.json")), Decoder(Weights(args.work))
    sentences = [s for s in texts.sentences(args.fortunes, args.wordnet) if not texts.is_held_out(s)]
    prompts = {p["text"]: p for p in (prompt(rng, sentences) for _ in range(2 * args.count)) if not texts.is_held_out(p["text"])}
    prompts = list(prompts.values())[: args.count]
    known = [p for p in prompts if "reply" in p]
    asked = sorted([p for p in prompts if "reply" not in p], key=lambda p: len(p["system"]) + len(p["text"]))  # little padding
    batches = [asked[i : i + args.batch] for i in range(0, len(asked), args.batch)]
    rng.shuffle(batches)
    if not path.exists():
        common.append_json(path, known)
    done = len(path.read_text().splitlines()) - 1  # one line a batch, so that a killed run loses at most one
    for batch in tqdm(batches[done:], initial=done, total=len(batches)):
        pause.wait()
        embedded = [
            decoder.embeddings[tokenizer.encode(opening(p["system"]) + p["text"] + REST).ids] for p in batch
        ]
        with torch.no_grad():
            written = generate(decoder, embedded, tokenizer.token_to_id(END), args.longest)
        kept = []
        for asks, (tokens, _) in zip(batch, written):
            reply = tokenizer.decode(tokens)
            if not circles(tokens) and not re.match(r"#|I'm sorry|Sorry", reply):
                kept.append(asks | {"reply": reply, "whole": tokens[-1] == tokenizer.token_to_id(END)})
        common.append_json(path, kept)


if __name__ == "__main__":
    main()
