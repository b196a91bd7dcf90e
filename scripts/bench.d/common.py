"""What several benches need: a server of their own, and words compared."""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator


@contextlib.contextmanager
def serve(hearken: str, *settings: str) -> Iterator[str]:
    """Serves with these settings (`key=value`) and without a journal, and gives the address, `http://host:port`."""
    url = f"http://127.0.0.1:{18_000 + os.getpid() % 10_000}"
    environment = dict(os.environ, HEARKEN_SERVER_LISTEN=url[7:], HEARKEN_JOURNAL_ENABLED="false")
    command = [hearken, "serve", *(part for setting in settings for part in ("--set", setting))]
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/ready", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit("the server did not come up")
        yield url
    finally:
        server.terminate()
        server.wait()


def plain(text: str) -> list[str]:
    """Words alone: no case, no punctuation."""
    return re.sub(r"[^a-z0-9' ]+", " ", text.lower().replace("mr.", "mister")).split()


def errors(wanted: list[str], heard: list[str]) -> int:
    """Words inserted, deleted and changed between two texts."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]
