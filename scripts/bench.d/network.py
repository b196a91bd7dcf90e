"""What nano's word ear makes of the sound that came over bad networks.

    network.py HEARKEN FOLDER   transcribes each wav of the folder and counts words that differ from the clean run's
"""

import json
import pathlib
import re
import subprocess
import sys
import urllib.request
import uuid

from common import errors


def words(url, wav):
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{wav.name}"\r\n\r\n'
    model = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\nnano\r\n--{boundary}--\r\n'
    body = head.encode() + wav.read_bytes() + model.encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/audio/transcriptions", body, headers)) as answer:
        return re.findall(r"[a-z']+", json.load(answer)["text"].lower())


def main(hearken, folder):
    options = ["--set", "server.listen=127.0.0.1:0", "--set", "journal.enabled=false"]
    server = subprocess.Popen([hearken, "serve", *options], stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            found = re.search(r"listening.*?address.*?([0-9.]+:[0-9]+)", re.sub(r"\x1b\[[0-9;]*m", "", line))
            if found:
                break
        url = "http://" + found.group(1)
        clean = words(url, pathlib.Path(folder, "clean.wav"))
        print(f"the word ear, of {len(clean)} words in the clean run: {' '.join(clean)}")
        for wav in sorted(pathlib.Path(folder).glob("*.wav")):
            heard = words(url, wav)
            print(f"{wav.stem:<28} {errors(clean, heard):>3} differ: {' '.join(heard)}")
    finally:
        server.terminate()
        server.wait()


main(*sys.argv[1:])
