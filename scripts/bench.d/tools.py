"""Whether functions are called when they should be, and with what: a server that runs (HEARKEN_URL), 40 prompts, over chat completions.

    python3 scripts/bench.d/tools.py [http://127.0.0.1:8080]

Half of the prompts want a function of the three or two that they come with, half want none. With `auto` the model decides, with
`required` it must call one.
"""

import json
import os
import pathlib
import sys
import urllib.request

DATA = json.loads((pathlib.Path(__file__).parent / "tools.json").read_text(encoding="utf-8"))


def plain(arguments):
    """Arguments as they are compared: letters' case and a full stop do not matter."""
    return {key: value.lower().strip(". ") if isinstance(value, str) else value for key, value in arguments.items()}


def call(url, prompt, choice, effort):
    """What was called, if anything."""
    tools = [{"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in DATA["tools"][prompt["tools"]]]
    ask = {"model": "any", "messages": [{"role": "user", "content": prompt["text"]}], "tools": tools, "tool_choice": choice,
           "reasoning_effort": effort, "temperature": 0}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(ask).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        calls = json.load(answer)["choices"][0]["message"].get("tool_calls")
    return calls and calls[0]["function"]


def main():
    url = (sys.argv[1:] or [os.environ.get("HEARKEN_URL", "http://127.0.0.1:8080")])[0]
    print("| tool_choice | reasoning | called when due | called when not | right function | right arguments |\n|---|---|---|---|---|---|")
    for choice in ("auto", "required"):
        for effort in ("none", "medium"):
            due = idle = name = whole = 0
            for prompt in DATA["prompts"]:
                want = prompt["call"]
                if choice == "required" and not want:
                    continue
                made = call(url, prompt, choice, effort)
                due += bool(made and want)
                idle += bool(made and not want)
                if made and want and made["name"] == want["name"]:
                    name += 1
                    whole += plain(json.loads(made["arguments"])) == plain(want["arguments"])
            wants = sum(bool(prompt["call"]) for prompt in DATA["prompts"])
            rest = f"{idle} of {len(DATA['prompts']) - wants}" if choice == "auto" else "–"
            print(f"| {choice} | {effort} | {due} of {wants} | {rest} | {name} | {whole} |", flush=True)


main()
