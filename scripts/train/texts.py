"""What is said in the training clips: sentences, and questions with answers that are right by construction.

Every item is a dict with `text` (as spoken, numbers in words), and where one exists `written` (the
same with digits, the way a word recogniser writes it) and `reply`.
"""

import json
import random
import re
from functools import cache
from pathlib import Path
from zlib import crc32

from . import facts

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """English words of 0 to 9999."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + ("-" + ONES[number % 10] if number % 10 else "")
    if number < 1000:
        rest = number % 100
        return ONES[number // 100] + " hundred" + (" and " + in_words(rest) if rest else "")
    rest = number % 1000
    return in_words(number // 1000) + " thousand" + (" " + in_words(rest) if rest else "")


def item(pattern: str, reply: str | None = None, **numbers: int) -> dict:
    """Fills {names} with numbers, once in words and once in digits."""
    spoken = pattern.format(**{k: in_words(v) for k, v in numbers.items()})
    made = {"text": spoken[0].upper() + spoken[1:], "reply": reply}
    if numbers:
        written = pattern.format(**numbers)
        made["written"] = written[0].upper() + written[1:]
    return made


def arithmetic(rng: random.Random) -> dict:
    a, b = rng.randint(2, 20), rng.randint(2, 12)
    ask = rng.choice(["What is {a} %s {b}?", "How much is {a} %s {b}?", "Can you tell me what {a} %s {b} is?", "{a} %s {b} is how much?"])
    operator, value = rng.choice([("plus", a + b), ("minus", a - b), ("times", a * b)])
    if value < 0:
        a, b, value = b, a, -value
    if operator == "plus" and rng.random() < 0.5:
        a, value = a * 10, a * 10 + b
    return item(ask % operator, f"{value}.", a=a, b=b)


def word_problem(rng: random.Random) -> dict:
    a, b = rng.randint(5, 40), rng.randint(2, 5)
    who, other = rng.sample(facts.NAMES, 2)
    thing = rng.choice(facts.THINGS)
    kinds = [
        (f"{who} has {{a}} {thing} and gives {{b}} to {other}. How many are left?", f"{a - b} {thing} are left."),
        (f"{who} has {{a}} {thing} and buys {{b}} more. How many {thing} does {who} have now?", f"{who} has {a + b} {thing}."),
        (f"There are {{a}} {thing} in each box and {{b}} boxes. How many {thing} are there?", f"There are {a * b} {thing}."),
        (f"{who} is {{a}} years old and {other} is {{b}} years older. How old is {other}?", f"{other} is {a + b} years old."),
    ]
    pattern, reply = rng.choice(kinds)
    return item(pattern, reply, a=a, b=b)


def fact(rng: random.Random) -> dict:
    """A question from one of the tables of facts."""
    if rng.random() < 0.4:
        return item(*rng.choice(facts.ANSWERS))
    kind = rng.randrange(9)
    if kind in (0, 1):
        country, capital = rng.choice(facts.CAPITALS)
        ask = rng.choice(["What is the capital of {}?", "Tell me the capital of {}.", "Which city is the capital of {}?", "Do you know the capital of {}?"])
        return item(ask.format(country), f"The capital of {country} is {capital}.")
    if kind == 2:
        word, opposite = rng.choice(facts.OPPOSITES)
        if rng.random() < 0.5:
            word, opposite = opposite, word
        ask = rng.choice(["What is the opposite of {}?", "Give me the opposite of the word {}.", "What word means the opposite of {}?"])
        return item(ask.format(word), f"The opposite of {word} is {opposite}.")
    if kind == 3:
        place = rng.randrange(12)
        day = rng.randrange(7)
        return rng.choice([
            item(f"What month comes after {facts.MONTHS[place]}?", f"{facts.MONTHS[(place + 1) % 12]} comes after {facts.MONTHS[place]}."),
            item(f"What month comes before {facts.MONTHS[place]}?", f"{facts.MONTHS[place - 1]} comes before {facts.MONTHS[place]}."),
            item(f"What day comes after {facts.DAYS[day]}?", f"{facts.DAYS[(day + 1) % 7]} comes after {facts.DAYS[day]}."),
            item(f"If today is {facts.DAYS[day]}, what day was yesterday?", f"Yesterday was {facts.DAYS[day - 1]}."),
        ])
    if kind == 4:
        animal, young, sound = rng.choice(facts.ANIMALS)
        return rng.choice([
            item(f"What do you call a baby {animal}?", f"A baby {animal} is called a {young}."),
            item(f"What sound does a {animal} make?", f"A {animal} {sound}."),
        ])
    if kind == 5:
        a, b = rng.sample(range(2, 900), 2)
        return item("Which is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}.", a=a, b=b)
    if kind == 6:
        a = rng.randint(2, 998)
        return rng.choice([
            item("What number comes after {a}?", f"{a + 1} comes after {a}.", a=a),
            item("What number comes before {a}?", f"{a - 1} comes before {a}.", a=a),
        ])
    if kind == 7:
        country, language = rng.choice(facts.LANGUAGES)
        return item(rng.choice(["What language do people speak in {}?", "Which language is spoken in {}?"]).format(country), f"People in {country} speak {language}.")
    amount = rng.randint(2, 12)
    unit, factor, small = rng.choice(facts.UNITS)
    return item(f"How many {small} are there in {{a}} {unit}?", f"There are {amount * factor} {small} in {amount} {unit}.", a=amount)


def request(rng: random.Random) -> dict:
    """Something to be done, and the short confirmation a person expects."""
    name, room, hour = rng.choice(facts.NAMES), rng.choice(facts.ROOMS), rng.randint(1, 12)
    device, city, minutes = rng.choice(facts.DEVICES), rng.choice(facts.CAPITALS)[1], rng.choice([5, 10, 15, 20, 30, 45])
    dish, weekday = rng.choice(facts.DISHES), rng.choice(facts.DAYS)
    polite = rng.choice(["", "", "Please ", "Could you ", "Hey, "])
    end = "?" if polite == "Could you " else "."

    def ask(words: str, reply: str, **numbers: int) -> dict:
        return item(polite + words + end, reply, **numbers)

    return rng.choice([
        lambda: ask(f"turn on the {device} in the {room}", f"Okay, I am turning on the {device} in the {room}."),
        lambda: ask(f"turn off the {device} in the {room}", f"Okay, I am turning off the {device} in the {room}."),
        lambda: ask(f"remind me to call {name} at {{a}} o'clock", f"Okay, I will remind you to call {name} at {hour} o'clock.", a=hour),
        lambda: ask("set a timer for {a} minutes", f"Okay, the timer is set for {minutes} minutes.", a=minutes),
        lambda: ask("wake me up at {a} tomorrow morning", f"Okay, I will wake you up at {hour} tomorrow morning.", a=hour),
        lambda: ask(f"add {dish} to my shopping list", f"Okay, I added {dish} to your shopping list."),
        lambda: ask(f"send a message to {name} that I will be late", f"Okay, I will tell {name} that you will be late."),
        lambda: ask(f"book a table for {{a}} people on {weekday}", f"Okay, a table for {hour} people on {weekday}.", a=hour),
        lambda: ask(f"find me a train to {city} on {weekday}", f"Okay, I am looking for a train to {city} on {weekday}."),
        lambda: ask(f"play some {rng.choice(facts.MUSIC)}", "Okay, here is some music."),
        lambda: ask(f"call {name}", f"Okay, I am calling {name}."),
        lambda: ask(f"cancel my meeting with {name} on {weekday}", f"Okay, I cancelled your meeting with {name} on {weekday}."),
    ])()


def call_turn(rng: random.Random) -> dict:
    """A turn of a call to a service desk."""
    name, surname, city = rng.choice(facts.NAMES), rng.choice(facts.SURNAMES), rng.choice(facts.CAPITALS)[1]
    digits = [rng.randint(0, 9) for _ in range(rng.choice([4, 5, 6]))]
    spoken, plain = " ".join(in_words(d) for d in digits), "".join(map(str, digits))
    product, weekday, amount = rng.choice(facts.PRODUCTS), rng.choice(facts.DAYS), rng.randint(10, 300)
    turns = [
        item(f"Hello, my name is {name} {surname} and I am calling about my order.", f"Hello {name}, I can help with your order. What is the order number?"),
        {"text": f"My order number is {spoken}.", "written": f"My order number is {plain}.", "reply": f"Thank you. I am looking up order {plain}."},
        {"text": f"The number on my account is {spoken}.", "written": f"The number on my account is {plain}.", "reply": f"Thank you, I found account {plain}."},
        item(f"The {product} I bought on {weekday} does not work.", f"I am sorry that the {product} does not work. I can send a new one."),
        item(f"I want to send the {product} back and get a refund.", f"You can return the {product}, and I will start the refund."),
        item("I was charged {a} dollars twice.", f"I am sorry about that. I will refund the second {amount} dollars.", a=amount),
        item("I have been waiting for an hour and nobody is helping me.", "I am very sorry for the wait. How can I help you now?"),
        item(f"Can you change my address to {city}?", f"Yes, I will change your address to {city}."),
        item(f"I would like to cancel my subscription on {weekday}.", f"I can cancel your subscription on {weekday}."),
        item(f"When will the {product} arrive?", f"Let me check when the {product} will arrive."),
        item("Can I talk to a manager please?", "Of course, I will connect you to a manager."),
        item("My internet has been down since this morning.", "I am sorry that your internet is down. Let me check the line."),
        item("Thank you very much, you have been very helpful.", "You are welcome. Have a nice day."),
        item("I forgot my password and I cannot log in.", "No problem, I will send you a link to reset your password."),
    ]
    return rng.choice(turns)


def small_talk(rng: random.Random) -> dict:
    return item(*rng.choice(facts.TALK))


def made(rng: random.Random) -> dict:
    """One item with a reply."""
    makers = [arithmetic, word_problem, fact, fact, fact, request, request, call_turn, call_turn, small_talk]
    return rng.choice(makers)(rng)


ACCEPTED = re.compile(r"^[A-Za-z][A-Za-z ,.'?!;:-]*$")


def sentences(fortunes: Path, wordnet: Path) -> list[str]:
    """Plain English sentences of 3 to 24 words from the Debian packages fortunes and wordnet-base."""
    found: dict[str, str] = {}

    def take(text: str) -> None:
        text = re.sub(r"\s+", " ", text.replace("’", "'").replace("`", "'").replace("--", ", ")).strip(" \"'-*")
        words = text.split()
        if not ACCEPTED.match(text) or not 3 <= len(words) <= 24 or max(map(len, words)) > 14:
            return
        if re.search(r"\b[A-Z]{2,}\b", text):
            return
        text = text[0].upper() + text[1:]
        if text[-1] not in ".?!":
            text = re.sub(r"[^A-Za-z]+$", "", text) + "."
        found.setdefault(text.lower(), text)

    for path in sorted(wordnet.glob("data.*")):
        for line in path.read_text(errors="ignore").splitlines():
            if "|" in line:
                gloss = line.split("|", 1)[1]
                take(re.sub(r"\([^)]*\)", "", gloss.split('"')[0]).split(";")[0])
                for example in re.findall(r'"([^"]+)"', gloss):
                    take(example)
    for path in sorted(fortunes.iterdir()):
        if path.suffix or not path.is_file():
            continue
        for entry in path.read_text(errors="ignore").split("\n%\n"):
            entry = re.sub(r"\n\s*--.*", "", entry, flags=re.S)
            for sentence in re.split(r"(?<=[.?!])\s+", re.sub(r"\s+", " ", entry)):
                take(sentence)
    return list(found.values())


@cache
def evaluated() -> set[str]:
    """The questions of tests/eval, which `hearken eval` asks."""
    tasks = json.loads((Path(__file__).parents[2] / "tests/eval/questions.json").read_text())["tasks"]
    return {task["words"].lower() for task in tasks}


def is_held_out(text: str, share: int = 25) -> bool:
    """One text in `share` is kept for evaluation, the same ones on every machine and in every run, and so is every text of tests/eval."""
    return crc32(text.lower().encode()) % share == 0 or text.lower() in evaluated()
