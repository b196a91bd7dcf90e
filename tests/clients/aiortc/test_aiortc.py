"""aiortc, as it is published, against Hearken with nano: it speaks a question by WebRTC and reads the answer."""

import asyncio
import json
import os
import pathlib
import random
import socket

import aiohttp
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaPlayer

URL = os.environ["HEARKEN_URL"]
QUESTION = pathlib.Path(__file__).parents[3] / "tests/browser/question.wav"  # "What is the capital of France?"
PATIENCE = 120


class Call:
    """A peer that speaks a file; its events, whichever way they come."""

    def __init__(self, http, with_channel):
        self.http = http
        self.peer = RTCPeerConnection()
        self.player = MediaPlayer(str(QUESTION))
        self.peer.addTrack(self.player.audio)
        self.events = asyncio.Queue()
        self.channel = self.peer.createDataChannel("oai-events") if with_channel else None
        if self.channel:
            self.channel.on("message", lambda text: self.events.put_nowait(json.loads(text)))

    async def offer(self, path, detour=None):
        await self.peer.setLocalDescription(await self.peer.createOffer())
        headers = {"Content-Type": "application/sdp"}
        async with self.http.post(URL + path, data=self.peer.localDescription.sdp, headers=headers) as answer:
            assert answer.status == 201, await answer.text()
            self.location = URL + answer.headers["Location"]
            self.etag = answer.headers["ETag"]
            answer = await answer.text()
        if detour:
            answer = await detour(answer)
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def read(self):
        """The events by HTTP, as a publisher without a data channel has them."""
        async with self.http.get(self.location + "/events") as stream:
            assert stream.content_type == "text/event-stream"
            async for line in stream.content:
                if line.startswith(b"data: "):
                    self.events.put_nowait(json.loads(line[6:]))

    async def until(self, kind):
        seen = []
        while not seen or seen[-1]["type"] != kind:
            seen.append(await asyncio.wait_for(self.events.get(), PATIENCE))
            assert seen[-1]["type"] != "error", seen[-1]
        return seen

    async def close(self):
        async with self.http.delete(self.location) as ended:
            assert ended.status == 200
        await self.peer.close()


def run(test):
    async def session():
        # An event is one line, and some are long.
        async with aiohttp.ClientSession(read_bufsize=1 << 20) as http:
            await test(http)

    asyncio.run(session())


def check(events):
    kinds = [event["type"] for event in events]
    wanted = ["session.created", "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "response.created", "response.done"]
    assert [kind for kind in kinds if kind in wanted] == wanted
    words = [event["transcript"] for event in events if event["type"].endswith("input_audio_transcription.completed")]
    assert "capital of france" in words[0].lower()
    response = events[-1]["response"]
    assert response["status"] == "completed" and "Paris" in response["output"][0]["content"][0]["text"], response


def test_a_question_by_a_call():
    async def test(http):
        call = Call(http, with_channel=True)
        await call.offer("/v1/realtime/calls")
        check(await call.until("response.done"))
        # A typed turn by the same channel, and its interruption.
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Tell me a long story."}]}
        call.channel.send(json.dumps({"type": "conversation.item.create", "item": item}))
        call.channel.send(json.dumps({"type": "response.create"}))
        await call.until("response.created")
        call.channel.send(json.dumps({"type": "response.cancel"}))
        assert (await call.until("response.done"))[-1]["response"]["status"] == "cancelled"
        await call.close()

    run(test)


def test_a_question_by_whip():
    async def test(http):
        call = Call(http, with_channel=False)
        await call.offer("/v1/whip")
        reader = asyncio.create_task(call.read())
        check(await call.until("response.done"))
        await call.close()
        await asyncio.wait_for(reader, PATIENCE)

    run(test)


class Lossy(asyncio.DatagramProtocol):
    """Between aiortc and the server: of ten datagrams in either direction, one is lost."""

    def __init__(self, server, seed):
        self.server, self.random, self.peer = server, random.Random(seed), None

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        if address != self.server:
            self.peer = address
        if self.random.random() >= 0.1:
            self.transport.sendto(data, self.peer if address == self.server else self.server)


def test_ten_calls_begin_though_a_tenth_is_lost():
    async def one(http, seed):
        loop = asyncio.get_running_loop()
        relay = None

        async def detour(answer):
            nonlocal relay
            line = next(line for line in answer.splitlines() if line.startswith("a=candidate:"))
            ip, port = line.split(" ")[4:6]
            relay, _ = await loop.create_datagram_endpoint(
                lambda: Lossy((ip, int(port)), seed), local_addr=(ip, 0), family=socket.AF_INET
            )
            return answer.replace(f" {port} typ host", f" {relay.get_extra_info('sockname')[1]} typ host")

        call = Call(http, with_channel=True)
        await call.offer("/v1/realtime/calls", detour)
        await call.until("session.created")
        await call.close()
        relay.close()

    async def test(http):
        for seed in range(10):
            await one(http, seed)

    run(test)
