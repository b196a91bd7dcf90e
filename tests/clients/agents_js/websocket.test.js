// RealtimeSession of @openai/agents-realtime over a WebSocket, as its users write it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { z } from "zod";

const url = `${process.env.HEARKEN_URL.replace("http", "ws")}/v1/realtime`;

/** question.wav ("What is the capital of France?", 16 kHz) at 24 kHz, a second of silence behind it, in packets of 20 ms. */
function question() {
  const wav = readFileSync(new URL("../../browser/question.wav", import.meta.url));
  const start = wav.indexOf("data", 12, "latin1") + 8;
  const given = (wav.length - start) >> 1;
  const sample = (n) => wav.readInt16LE(start + 2 * Math.min(n, given - 1));
  const said = new Int16Array(Math.floor(given * 1.5) + 24_000);
  for (let n = 0; n < Math.floor(given * 1.5); n++) {
    const at = Math.floor(n / 1.5);
    said[n] = sample(at) + (sample(at + 1) - sample(at)) * (n / 1.5 - at);
  }
  const packets = [];
  for (let n = 0; n < said.length; n += 480) packets.push(said.slice(n, n + 480).buffer);
  return packets;
}

/** The first event that `wanted` accepts. */
function next(session, wanted) {
  return new Promise((resolve, reject) => {
    const patience = setTimeout(() => reject(new Error("it did not come")), 120_000);
    const seen = (event) => {
      if (!wanted(event)) return;
      clearTimeout(patience);
      session.off("transport_event", seen);
      resolve(event);
    };
    session.on("transport_event", seen);
  });
}

const kind = (type) => (event) => event.type === type;

async function withSession(options, use) {
  const { apiKey = "none", agent = {}, config = {} } = options;
  const session = new RealtimeSession(new RealtimeAgent({ name: "listener", instructions: "Be brief.", ...agent }), {
    transport: new OpenAIRealtimeWebSocket({ url }),
    model: "gpt-realtime",
    config,
  });
  const errors = [];
  session.on("error", (error) => errors.push(error));
  const updated = next(session, (event) => event.type === "session.updated" && event.session.instructions);
  await session.connect({ apiKey });
  try {
    await use(session, (await updated).session);
  } finally {
    session.close();
  }
  assert.deepEqual(errors, []);
}

test("a spoken question is answered and its words are in the history", async () => {
  await withSession({}, async (session, settings) => {
    assert.equal(settings.instructions, "Be brief.");
    assert.deepEqual(settings.output_modalities, ["text"]);
    const done = next(session, kind("response.done"));
    const retrieved = next(session, kind("conversation.item.retrieved"));
    question().forEach((packet) => session.sendAudio(packet));
    assert.equal((await done).response.status, "completed");
    await retrieved;
    const [asked, answered] = session.history;
    assert.equal(asked.role, "user");
    assert.match(asked.content[0].transcript, /capital of France/);
    assert.equal(answered.role, "assistant");
    assert.ok(answered.content[0].text.length > 0);
    assert.ok(session.usage.inputTokens > 10);
  });
});

test("speech interrupts a reply", async () => {
  await withSession({ config: { providerData: { reasoning: { effort: "minimal" } } } }, async (session) => {
    const begun = next(session, kind("response.output_text.delta"));
    session.sendMessage("Write a long poem about the sea, with many verses.");
    await begun;
    const [cut, whole] = ["cancelled", "completed"].map((status) =>
      next(session, (event) => event.type === "response.done" && event.response.status === status),
    );
    question().forEach((packet) => session.sendAudio(packet));
    assert.equal((await cut).response.status_details.reason, "turn_detected");
    await whole;
  });
});

test("a tool is called and its output answered", async () => {
  const asked = [];
  const weather = tool({
    name: "get_weather",
    description: "Get the current weather in a city",
    parameters: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return "sunny, 22 degrees";
    },
  });
  await withSession({ agent: { tools: [weather] } }, async (session) => {
    const called = next(session, kind("response.function_call_arguments.done"));
    const answered = next(session, kind("response.output_text.done"));
    // That it calls is asked for this once; whether it calls by itself is nano's own affair.
    session.transport.sendMessage("Tell me the weather in Tokyo.", {}, { triggerResponse: false });
    session.transport.requestResponse({ tool_choice: "required" });
    assert.equal(JSON.parse((await called).arguments).city, "Tokyo");
    assert.ok((await answered).text.length > 0);
    assert.deepEqual(asked, ["Tokyo"]);
    const call = session.history.find((item) => item.type === "function_call");
    assert.deepEqual([call.status, call.output], ["completed", "sunny, 22 degrees"]);
  });
});

test("a browser's key opens a session", async () => {
  const answer = await fetch(`${process.env.HEARKEN_URL}/v1/realtime/client_secrets`, { method: "POST" });
  const { value: apiKey } = await answer.json();
  assert.match(apiKey, /^ek_/);
  await withSession({ apiKey }, async (session, settings) => assert.equal(settings.object, "realtime.session"));
});
