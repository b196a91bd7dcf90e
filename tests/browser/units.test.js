// The parts of the page that need no browser: the resampler of the audio thread and the conversation's bookkeeping.

import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { loadWorklet } from "./support.js";
import { Conversation } from "../../web/conversation.js";
import { iceServers } from "../../web/pipes.js";
import { serverSentEvents } from "../../web/sse.js";
import { endNote, errorWords, microphoneHelp, seconds } from "../../web/words.js";

function resample(from, to, hertz, blocks = 400) {
  const { Resampler } = loadWorklet();
  const resampler = new Resampler(from, to);
  const output = [];
  for (let block = 0; block < blocks; block++) {
    const input = Float32Array.from({ length: 128 }, (_, i) => Math.sin((2 * Math.PI * hertz * (block * 128 + i)) / from));
    resampler.push(input, (sample) => output.push(sample));
  }
  return output;
}
const rms = (samples) => Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);

describe("the servers of a Link header", () => {
  it("are found among other links, with what they are to be told", () => {
    const link = '</v1/whip/x/events>; rel="urn:ietf:params:whip:ext:core:server-sent-events", <stun:stun.example>; rel="ice-server", '
      + '<turn:turn.example:3478?transport=tcp>; rel="ice-server"; username="a, b"; credential="<p\\"w\\\\>"; credential-type="password"';
    assert.deepEqual(iceServers(link), [
      { urls: "stun:stun.example" },
      { urls: "turn:turn.example:3478?transport=tcp", username: "a, b", credential: '<p"w\\>' },
    ]);
    for (const nothing of [null, "", "</x>", "hello", '<turn:x>; rel="ice-server']) assert.deepEqual(iceServers(nothing), []);
  });
});

describe("the worklet's resampler", () => {
  for (const [from, to] of [[48_000, 24_000], [44_100, 24_000], [44_100, 48_000], [16_000, 48_000], [96_000, 24_000]]) {
    it(`keeps a 1 kHz tone, ${from} to ${to} Hz`, () => {
      const output = resample(from, to, 1000);
      assert.ok(Math.abs(output.length - (400 * 128 * to) / from) < 80, `${output.length} samples`);
      let worst = 0;
      for (let i = 400; i < output.length - 400; i++) worst = Math.max(worst, Math.abs(output[i] - Math.sin((2 * Math.PI * 1000 * i) / to)));
      assert.ok(worst < 0.01, `off by ${worst}`);
    });
  }

  it("lets nothing fold back from above the new band", () => {
    assert.ok(rms(resample(48_000, 24_000, 14_000).slice(400, -400)) < 0.003);
  });

  it("posts frames of 20 ms, mixed to mono", () => {
    const { Capture } = loadWorklet(48_000);
    const capture = new Capture({ processorOptions: { rate: 24_000 } });
    const frames = [];
    capture.port.postMessage = (frame) => frames.push(frame);
    const left = new Float32Array(128).fill(0.5);
    const right = new Float32Array(128).fill(0.1);
    for (let i = 0; i < 100; i++) assert.equal(capture.process([[left, right]]), true);
    assert.equal(capture.process([[]]), true);
    assert.ok(frames.length >= 12 && frames.every((frame) => frame.length === 480));
    assert.ok(Math.abs(frames.at(-1)[0] - 0.3) < 1e-3);
  });
});

describe("the conversation", () => {
  const play = (events, conversation = new Conversation()) => {
    events.forEach(([type, fields], i) => conversation.apply({ type, ...fields }, 1000 * (i + 1)));
    return conversation;
  };
  const spoken = [
    ["input_audio_buffer.speech_started", { item_id: "a", audio_start_ms: 100 }],
    ["input_audio_buffer.speech_stopped", { item_id: "a", audio_end_ms: 1900 }],
    ["input_audio_buffer.committed", { item_id: "a" }],
    ["conversation.item.input_audio_transcription.completed", { item_id: "a", transcript: " Hello. " }],
    ["response.created", { response: { id: "r" } }],
    ["response.reasoning_text.delta", { response_id: "r", delta: "A greet" }],
    ["response.reasoning_text.delta", { response_id: "r", delta: "ing." }],
    ["response.reasoning_text.done", { response_id: "r" }],
    ["response.content_part.added", { response_id: "r" }],
    ["response.output_text.delta", { response_id: "r", delta: "Good " }],
  ];

  it("goes through a turn", () => {
    const conversation = play(spoken);
    const [user, agent] = conversation.turns;
    assert.deepEqual([user.words, user.state, user.endMs - user.startMs], ["Hello.", "final", 1800]);
    assert.deepEqual([agent.reasoning, agent.text, agent.state], ["A greeting.", "Good ", "replying"]);
    assert.deepEqual([agent.waitFrom, agent.thinkFrom, agent.thinkTo], [2000, 6000, 8000]);
    conversation.apply({ type: "response.done", response: { id: "r", status: "completed", timings_ms: { think: 5 } } }, 20_000);
    assert.deepEqual([agent.state, agent.timings, conversation.active], ["done", { think: 5 }, null]);
  });

  it("tells times by the sound's clock, and by its own where that stood still", () => {
    const conversation = new Conversation();
    conversation.load({ sound_ms: 500, turns: [] }, 0);
    // The first one came late, with the second; then nobody sent sound for a minute, and then the server began anew.
    for (const [id, ms, now] of [["a", 1000, 9000], ["b", 8000, 9010], ["c", 12_000, 13_100], ["d", 13_000, 74_010], ["e", 2000, 77_010]]) {
      conversation.apply({ type: "input_audio_buffer.speech_started", item_id: id, audio_start_ms: ms }, now);
    }
    assert.deepEqual(conversation.turns.map((turn) => turn.startMs), [1500, 8500, 12_500, 73_500, 76_500]);
  });

  it("keeps what was shown when speech interrupts", () => {
    const conversation = play(spoken);
    conversation.apply({ type: "input_audio_buffer.speech_started", item_id: "b", audio_start_ms: 4000 }, 20_000);
    const cancelled = { id: "r", status: "cancelled", status_details: { type: "cancelled", reason: "turn_detected" } };
    conversation.apply({ type: "response.done", response: cancelled }, 20_001);
    assert.deepEqual(conversation.turns.map((turn) => turn.id), ["a", "r", "b"]);
    assert.equal(conversation.turns[1].text, "Good ");
    assert.match(endNote(conversation.turns[1]), /You spoke/);
    assert.equal(conversation.hearing.id, "b");
  });

  it("forgets a reply that was cancelled before anything was shown", () => {
    const conversation = play(spoken.slice(0, 5));
    conversation.apply({ type: "response.done", response: { id: "r", status: "cancelled" } }, 20_000);
    assert.deepEqual(conversation.turns.map((turn) => turn.id), ["a"]);
  });

  it("settles words that never came, and takes them if they come late", () => {
    const conversation = play([...spoken.slice(0, 3), ...spoken.slice(4)]);
    conversation.apply({ type: "response.done", response: { id: "r", status: "completed" } }, 20_000);
    assert.deepEqual([conversation.turns[0].state, conversation.turns[0].words], ["final", ""]);
    conversation.apply({ type: spoken[3][0], ...spoken[3][1] }, 21_000);
    assert.equal(conversation.turns[0].words, "Hello.");
  });

  it("shrugs at events it does not know", () => {
    const conversation = play([["rate_limits.updated", {}], ["toString", {}], ["__proto__", {}], [undefined, {}]]);
    assert.equal(conversation.turns.length, 0);
  });

  it("survives the connection's end at every point", () => {
    for (let n = 0; n <= spoken.length; n++) {
      const conversation = play(spoken.slice(0, n));
      conversation.interrupted(30_000);
      assert.deepEqual([conversation.hearing, conversation.active, conversation.awaitingSince], [null, null, null]);
      for (const turn of conversation.turns) assert.ok(["final", "cancelled"].includes(turn.state), `${n}: ${turn.state}`);
    }
  });
});

describe("words", () => {
  it("tells time as people do", () => {
    assert.deepEqual([seconds(0), seconds(2345), seconds(9990), seconds(61_000)], ["0.0 s", "2.3 s", "10 s", "1 min 1 s"]);
    assert.deepEqual([seconds(59_700), seconds(119_600)], ["1 min 0 s", "2 min 0 s"]);
  });
  it("has an answer for every failure of a microphone", () => {
    for (const kind of ["insecure", "unsupported", "denied", "missing", "busy", "failed"]) {
      const { title, steps } = microphoneHelp(kind, { host: "10.0.0.5:8080", protocol: "http:", port: "8080" });
      assert.ok(title && steps.length && !/undefined/.test(title + steps));
    }
  });
  it("keeps quiet about a race, and not about the rest", () => {
    assert.equal(errorWords({ code: "response_cancel_not_active" }), null);
    assert.match(errorWords({ code: "overloaded" }), /as many people/);
    assert.match(errorWords({ message: "no" }), /no/);
    assert.ok(errorWords());
  });
});

describe("server-sent events", () => {
  it("are read whatever their packets and line ends", async () => {
    const text = ": hello\r\n\r\nid: 1\ndata: {\"a\":1}\n\ndata:é\r\ndata: two\r\n\r\nid: 3\ndata: never finished";
    const bytes = new TextEncoder().encode(text);
    for (let size = 1; size <= bytes.length; size++) {
      const body = new ReadableStream({
        start(controller) {
          for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
          controller.close();
        },
      });
      const found = [];
      for await (const event of serverSentEvents({ body })) found.push(event);
      assert.deepEqual(found, [{ id: "1", data: '{"a":1}' }, { id: "1", data: "é\ntwo" }], `${size} bytes a packet`);
    }
  });
});
