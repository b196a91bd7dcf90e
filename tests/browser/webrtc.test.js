// A page of its own making: what any voice developer's first lines are, RTCPeerConnection against /v1/realtime/calls,
// in Chromium with a microphone that plays a file.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { microphoneFile, openBrowser, openPage, startServer } from "./support.js";

const TURN = Number(process.env.HEARKEN_TURN_SECONDS ?? 90) * 1000;

/** In the page: a call, and its events in window.events. */
async function call({ form }) {
  const peer = new RTCPeerConnection();
  const events = (window.events = []);
  const channel = peer.createDataChannel("oai-events");
  channel.onmessage = ({ data }) => events.push(JSON.parse(data));
  const stream = await navigator.mediaDevices.getUserMedia({
    audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false },
  });
  peer.addTrack(stream.getAudioTracks()[0], stream);
  await peer.setLocalDescription();
  let request = { method: "POST", body: peer.localDescription.sdp, headers: { "Content-Type": "application/sdp" } };
  if (form) {
    const body = new FormData();
    body.set("sdp", peer.localDescription.sdp);
    body.set("session", JSON.stringify({ type: "realtime", model: "gpt-realtime", instructions: "Answer in one sentence." }));
    request = { method: "POST", body };
  }
  const answer = await fetch("/v1/realtime/calls", request);
  if (answer.status !== 201) throw new Error(await answer.text());
  await peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
  Object.assign(window, { peer, channel, place: answer.headers.get("Location") });
}

describe("a call by WebRTC", () => {
  let server;
  let browser;
  before(async () => {
    server = await startServer();
    browser = await openBrowser({ microphone: microphoneFile("call.wav", 1, 4) });
  });
  after(async () => {
    await browser?.close();
    await server?.stop();
  });

  const has = (page, type, n = 1) =>
    page.waitForFunction(([type, n]) => window.events.filter((event) => event.type === type).length >= n, [type, n], { timeout: TURN });

  for (const form of [false, true]) {
    it(form ? "by a form with the session's settings" : "by the bare description", async () => {
      const { page, seen } = await openPage(browser, server.url);
      await page.evaluate(call, { form });
      await has(page, "response.done");
      const events = await page.evaluate(() => window.events);
      const types = events.map((event) => event.type);
      assert.equal(types[0], "session.created");
      assert.equal(events[0].session.instructions.includes("one sentence"), form);
      const order = ["input_audio_buffer.speech_started", "input_audio_buffer.committed", "response.created", "response.output_text.delta", "response.done"];
      assert.deepEqual(order.map((type) => types.indexOf(type)).toSorted((a, b) => a - b), order.map((type) => types.indexOf(type)));
      assert.match(events.find((event) => event.type.endsWith("transcription.completed")).transcript, /capital of France/i);
      const done = events.at(-1).response ?? events.find((event) => event.type === "response.done").response;
      assert.equal(done.status, "completed");

      // What was sent, as the browser counts it, and that nothing comes back as sound.
      const report = await page.evaluate(async () => {
        const all = [...(await window.peer.getStats()).values()];
        const of = (type) => all.find((entry) => entry.type === type);
        return { out: of("outbound-rtp"), remote: of("remote-inbound-rtp"), inbound: of("inbound-rtp") ?? null, codec: of("codec") };
      });
      assert.equal(report.codec.mimeType, "audio/opus");
      assert.match(report.codec.sdpFmtpLine, /useinbandfec=1/);
      assert.equal(report.remote.packetsLost, 0, "receiver reports come, and tell of no loss");
      assert.equal(report.inbound, null);

      // A typed turn, interrupted.
      await page.evaluate(() => {
        const content = [{ type: "input_text", text: "Tell me a long story." }];
        window.channel.send(JSON.stringify({ type: "conversation.item.create", item: { type: "message", role: "user", content } }));
        window.channel.send(JSON.stringify({ type: "response.create" }));
      });
      await has(page, "response.created", 2);
      await page.evaluate(() => window.channel.send(JSON.stringify({ type: "response.cancel" })));
      await has(page, "response.done", 2);
      const last = await page.evaluate(() => window.events.findLast((event) => event.type === "response.done").response.status);
      assert.equal(last, "cancelled");

      const ended = await page.evaluate(async () => (await fetch(window.place, { method: "DELETE" })).status);
      assert.equal(ended, 200);
      await page.waitForFunction(() => window.channel.readyState === "closed", null, { timeout: 30_000 });
      assert.deepEqual(seen.complaints, []);
      await page.context().close();
    });
  }
});
