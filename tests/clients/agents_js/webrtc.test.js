// RealtimeSession of @openai/agents-realtime over WebRTC, in Chromium with a microphone that plays a file: the browser's bundle as it is published, on a page
// of the server's own.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";

const server = process.env.HEARKEN_URL;
const BUNDLE = new URL("node_modules/@openai/agents-realtime/dist/bundle/", import.meta.url);
const folder = mkdtempSync(join(tmpdir(), "hearken-agents-"));

/** question.wav ("What is the capital of France?", 16 kHz) at 48 kHz, four seconds of silence before it and eight behind: played again and again. */
function microphone() {
  const wav = readFileSync(new URL("../../browser/question.wav", import.meta.url));
  const start = wav.indexOf("data", 12, "latin1") + 8;
  const given = (wav.length - start) >> 1;
  const sample = (n) => wav.readInt16LE(start + 2 * Math.min(n, given - 1));
  const [silence, said] = [4 * 48_000, given * 3];
  const sound = Buffer.alloc(2 * (said + 3 * silence));
  for (let n = 0; n < said; n++) {
    const [at, part] = [Math.floor(n / 3), (n % 3) / 3];
    sound.writeInt16LE(Math.round(sample(at) * (1 - part) + sample(at + 1) * part), 2 * (silence + n));
  }
  const head = Buffer.alloc(44);
  head.write("RIFF\0\0\0\0WAVEfmt ", "latin1");
  head.writeUInt32LE(36 + sound.length, 4);
  head.writeUInt32LE(16, 16);
  head.writeUInt32LE(0x0001_0001, 20);
  head.writeUInt32LE(48_000, 24);
  head.writeUInt32LE(96_000, 28);
  head.writeUInt32LE(0x0010_0002, 32);
  head.write("data", 36, "latin1");
  head.writeUInt32LE(sound.length, 40);
  const path = join(folder, "microphone.wav");
  writeFileSync(path, Buffer.concat([head, sound]));
  return path;
}

let browser;
before(async () => {
  const args = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    `--use-file-for-fake-audio-capture=${microphone()}`,
  ];
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, args });
});
after(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true });
});

/** A page of the server's that has the SDK as `sdk`, and `connect(agent, config)`, which gives a session that hears the microphone. */
async function withPage(use) {
  const context = await browser.newContext({ bypassCSP: true, permissions: ["microphone"] });
  const page = await context.newPage();
  await page.route("**/sdk/*", (route) => route.fulfill({ path: new URL(new URL(route.request().url()).pathname.replace("/sdk/", ""), BUNDLE).pathname }));
  await page.goto(`${server}/captions`);
  await page.evaluate(async () => {
    const sdk = (window.sdk = await import("/sdk/openai-realtime-agents.mjs"));
    window.next = (session, wanted) =>
      new Promise((resolve, reject) => {
        const patience = setTimeout(() => reject(new Error(`it did not come: ${wanted}`)), 120_000);
        const seen = (event) => {
          if (!wanted(event)) return;
          clearTimeout(patience);
          session.off("transport_event", seen);
          resolve(event);
        };
        session.on("transport_event", seen);
      });
    window.connect = async (agent = {}, config = {}) => {
      const { value: apiKey } = await (await fetch("/v1/realtime/client_secrets", { method: "POST" })).json();
      const transport = new sdk.OpenAIRealtimeWebRTC({ baseUrl: new URL("/v1/realtime/calls", location).href });
      const listener = new sdk.RealtimeAgent({ name: "listener", instructions: "Be brief.", ...agent });
      const session = new sdk.RealtimeSession(listener, { transport, model: "gpt-realtime", config });
      session.errors = [];
      session.on("error", (error) => session.errors.push(String(error.error?.message ?? error.error ?? error)));
      await session.connect({ apiKey });
      return session;
    };
  });
  try {
    await use(page);
  } finally {
    await context.close();
  }
}

test("a spoken question is answered and its words are in the history", async () => {
  await withPage(async (page) => {
    const came = await page.evaluate(async () => {
      const session = await connect();
      const done = next(session, (event) => event.type === "response.done");
      const retrieved = next(session, (event) => event.type === "conversation.item.retrieved");
      await next(session, (event) => event.type === "input_audio_buffer.speech_stopped");
      session.mute(true);
      const { response } = await done;
      await retrieved;
      const { history, errors, usage } = session;
      const [status, call] = [response.status, session.transport.callId];
      session.close();
      return { status, call, errors, tokens: usage.inputTokens, history: JSON.parse(JSON.stringify(history)) };
    });
    assert.deepEqual([came.status, came.errors], ["completed", []]);
    assert.match(came.call, /^rtc_/);
    const [asked, answered] = came.history;
    assert.match(asked.content[0].transcript, /capital of France/);
    assert.ok(answered.role === "assistant" && answered.content[0].text.length > 0);
    assert.ok(came.tokens > 10);
  });
});

test("speech interrupts a reply", async () => {
  await withPage(async (page) => {
    const came = await page.evaluate(async () => {
      const session = await connect({}, { providerData: { reasoning: { effort: "minimal" } } });
      session.mute(true);
      const begun = next(session, (event) => event.type === "response.output_text.delta");
      const cut = next(session, (event) => event.type === "response.done" && event.response.status === "cancelled");
      const whole = next(session, (event) => event.type === "response.done" && event.response.status === "completed");
      // The microphone speaks when its time comes; until then there is always a reply to be interrupted.
      const poem = () => session.sendMessage("Write a long poem about the sea, with many verses.");
      poem();
      await begun;
      session.mute(false);
      let spoke = false;
      session.on("transport_event", (event) => {
        spoke ||= event.type === "input_audio_buffer.speech_started";
        if (event.type === "response.done" && event.response.status !== "cancelled" && !spoke) poem();
      });
      const { response } = await cut;
      await next(session, (event) => event.type === "input_audio_buffer.speech_stopped");
      session.mute(true);
      await whole;
      const { errors } = session;
      session.close();
      return { reason: response.status_details.reason, errors };
    });
    assert.deepEqual(came, { reason: "turn_detected", errors: [] });
  });
});

test("a tool is called and its output answered", async () => {
  await withPage(async (page) => {
    const came = await page.evaluate(async () => {
      const asked = [];
      const weather = sdk.tool({
        name: "get_weather",
        description: "Get the current weather in a city",
        parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false },
        execute: async ({ city }) => {
          asked.push(city);
          return "sunny, 22 degrees";
        },
      });
      const session = await connect({ tools: [weather] });
      session.mute(true);
      const called = next(session, (event) => event.type === "response.function_call_arguments.done");
      const answered = next(session, (event) => event.type === "response.output_text.done");
      session.transport.sendMessage("Tell me the weather in Tokyo.", {}, { triggerResponse: false });
      session.transport.requestResponse({ tool_choice: "required" });
      const { arguments: given } = await called;
      const { text } = await answered;
      const call = session.history.find((item) => item.type === "function_call");
      const { errors } = session;
      session.close();
      return { given: JSON.parse(given), asked, text, status: call.status, output: call.output, errors };
    });
    assert.deepEqual([came.given.city, came.asked, came.errors], ["Tokyo", ["Tokyo"], []]);
    assert.deepEqual([came.status, came.output], ["completed", "sunny, 22 degrees"]);
    assert.ok(came.text.length > 0);
  });
});
