"""aiortc on the work of `scripts/bench load`: takes calls, decodes their Opus, throws it away.

    load_aiortc.py CALLS TEST_BINARY   runs the same senders against itself and prints the same figures
"""

import asyncio
import os
import subprocess
import sys
import time

from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription

WINDOW = 20.0


class Server:
    def __init__(self):
        self.peers, self.frames = [], 0

    async def call(self, request):
        peer = RTCPeerConnection()
        self.peers.append(peer)

        @peer.on("track")
        def on_track(track):
            asyncio.ensure_future(self.listen(track))

        await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        headers = {"Location": "/calls/1"}
        return web.Response(status=201, text=peer.localDescription.sdp, content_type="application/sdp", headers=headers)

    async def listen(self, track):
        while True:
            await track.recv()
            self.frames += 1


async def main(calls, binary):
    server = Server()
    app = web.Application()
    app.router.add_post("/v1/realtime/calls", server.call)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    environment = os.environ | {"HEARKEN_LOAD": str(calls), "HEARKEN_LOAD_SERVER": f"127.0.0.1:{port}"}
    senders = await asyncio.create_subprocess_exec(
        binary, "--exact", "--ignored", "load::alone_senders", env=environment, stdout=subprocess.DEVNULL
    )
    try:
        while len(server.peers) < calls:
            await asyncio.sleep(0.2)
        await asyncio.sleep(5)
        frames, cpu, began = server.frames, time.process_time(), time.monotonic()
        await asyncio.sleep(WINDOW)
        seconds = time.monotonic() - began
        core = (time.process_time() - cpu) / seconds * 100
        came = (server.frames - frames) / (calls * 50 * seconds) * 100
        print(f"aiortc, {calls} calls: {core:.0f} % of a core, {core / calls:.2f} % a call; {came:.2f} % of the packets came")
    finally:
        senders.kill()
        await senders.wait()


asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
