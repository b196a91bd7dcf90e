// What the tests stand on: the server, the wav files that play the microphone, and the browser.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createWriteStream, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import vm from "node:vm";
import { chromium } from "playwright-core";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
export const out = (name) => here(`out/${name}`);

// ---- The server ----

async function freePort() {
  const socket = createServer().listen(0, "127.0.0.1");
  await new Promise((ready) => socket.once("listening", ready));
  const { port } = socket.address();
  await new Promise((closed) => socket.close(closed));
  return port;
}

/**
 * Starts `hearken serve`, or takes the one at HEARKEN_URL. Resolves once /ready says so. `own` asks for one that may be killed; with a `port` it comes back
 * where it was, with the conversations it had. `options` are of its command line.
 */
export async function startServer({ own = false, port: again, options = [] } = {}) {
  if (process.env.HEARKEN_URL && !own) return { url: new URL("/", process.env.HEARKEN_URL).href, stop: async () => {} };
  const port = again ?? (await freePort());
  const program = process.env.HEARKEN_BIN ?? here("../../target/release/hearken");
  const child = spawn(program, ["serve", ...options], {
    cwd: here("../.."),
    env: { ...process.env, HEARKEN_SERVER_LISTEN: `127.0.0.1:${port}`, HEARKEN_JOURNAL_PATH: out(`journal-${port}.sqlite`) },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const log = createWriteStream(out("server.log"));
  let tail = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.on("data", (text) => {
      log.write(text);
      tail = (tail + text).slice(-2000);
    });
  }
  const ended = new Promise((resolve) => {
    child.once("exit", (code, signal) => resolve(signal ?? code));
    child.once("error", (error) => resolve(error.message));
  });
  let over = null;
  void ended.then((how) => (over = how));
  const url = `http://127.0.0.1:${port}/`;
  const patience = Date.now() + 120_000;
  for (;;) {
    if (over !== null) throw new Error(`${program} ended before it was ready (${over}):\n${tail}`);
    if (Date.now() > patience) {
      child.kill("SIGKILL");
      throw new Error(`${program} was not ready within two minutes:\n${tail}`);
    }
    const answer = await fetch(new URL("ready", url)).catch(() => null);
    if (answer?.ok) break;
    await sleep(150);
  }
  return {
    url,
    port,
    /** As a crash does: without a word. */
    async kill() {
      child.kill("SIGKILL");
      await ended;
    },
    async stop() {
      child.kill("SIGTERM");
      const slow = setTimeout(() => child.kill("SIGKILL"), 10_000);
      const how = await ended;
      clearTimeout(slow);
      log.end();
      return how;
    },
  };
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// ---- Sound ----

/** The audio worklet's code, outside a browser: {Resampler, Capture}. */
export function loadWorklet(sampleRate = 48_000) {
  const context = vm.createContext({
    sampleRate,
    AudioWorkletProcessor: class {
      port = { postMessage() {} };
    },
    registerProcessor() {},
  });
  const code = readFileSync(here("../../web/worklet.js"), "utf8");
  return vm.runInContext(`${code}; ({ Resampler, Capture })`, context);
}

export const questionFile = here("question.wav");
/** A call of two made voices, and who says what when in it (tests/audio/README.md). */
export const callFile = here("../audio/call.ogg");
export const callScript = JSON.parse(readFileSync(here("../audio/call.json"), "utf8"));

/** question.wav ("What is the capital of France?", 16 kHz, made with flite's voice slt) as 48 kHz samples. */
function question() {
  const wav = readFileSync(here("question.wav"));
  const start = wav.indexOf("data", 12, "latin1") + 8;
  const input = new Float32Array((wav.length - start) >> 1);
  for (let i = 0; i < input.length; i++) input[i] = wav.readInt16LE(start + i * 2) / 32_768;
  const { Resampler } = loadWorklet();
  const output = [];
  new Resampler(wav.readUInt32LE(24), 48_000).push(input, (sample) => output.push(sample));
  return output;
}

/** Writes a wav for Chromium's fake microphone, which wants 48 kHz mono s16: silence, the question, silence. */
export function microphoneFile(name, beforeSeconds, afterSeconds) {
  const said = question();
  const length = said.length + Math.round((beforeSeconds + afterSeconds) * 48_000);
  const wav = Buffer.alloc(44 + length * 2);
  wav.write("RIFF\0\0\0\0WAVEfmt ", 0, "latin1");
  wav.writeUInt32LE(36 + length * 2, 4);
  wav.writeUInt32LE(16, 16);
  wav.writeUInt16LE(1, 20);
  wav.writeUInt16LE(1, 22);
  wav.writeUInt32LE(48_000, 24);
  wav.writeUInt32LE(96_000, 28);
  wav.writeUInt16LE(2, 32);
  wav.writeUInt16LE(16, 34);
  wav.write("data", 36, "latin1");
  wav.writeUInt32LE(length * 2, 40);
  const offset = 44 + Math.round(beforeSeconds * 48_000) * 2;
  said.forEach((sample, i) => wav.writeInt16LE(Math.round(Math.max(-1, Math.min(1, sample)) * 32_767), offset + i * 2));
  writeFileSync(out(name), wav);
  return out(name);
}

// ---- The browser ----

/** microphone: a wav to play (loop or once), or null for a person who refuses it. tab: the title of the tab that is shared when one is asked for. */
export async function openBrowser({ microphone, loop = false, tab = null }) {
  const args = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
  ];
  if (microphone) args.push("--use-fake-ui-for-media-stream", `--use-file-for-fake-audio-capture=${microphone}${loop ? "" : "%noloop"}`);
  else if (tab) args.push(`--auto-select-tab-capture-source-by-title=${tab}`);
  else args.push("--use-fake-ui-for-media-stream=deny");
  // Each launch has a user data directory of its own, made for it and removed with it.
  // A tab that plays nothing has nothing to share.
  const ignoreDefaultArgs = tab ? ["--mute-audio"] : [];
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", headless: true, args, ignoreDefaultArgs });
  browsers.push(browser);
  return browser;
}

/** A test that failed has left its own open, and Node would wait for it without end. */
const browsers = [];
after(() => Promise.all(browsers.map((browser) => browser.close().catch(() => {}))));

/**
 * A page with its ears open: every request, console complaint, event and sent frame is kept, and every state that the header
 * shows is recorded in order. `close()` asserts nothing; `complaints` is for the test to look at. `wire`: "WebSocket" for a browser without WebRTC.
 */
export async function openPage(browser, url, { before, path = "", wire = "WebRTC", ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 820 }, ...options });
  const page = await context.newPage();
  const seen = { complaints: [], elsewhere: [], soundFrames: 0, events: [], sent: [] };
  const { host } = new URL(url);
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.complaints.push(message.text());
  });
  page.on("pageerror", (error) => seen.complaints.push(error.stack));
  context.on("request", (request) => {
    // A blob is this page's own.
    if (new URL(request.url()).protocol !== "blob:" && new URL(request.url()).host !== host) seen.elsewhere.push(request.url());
  });
  page.on("websocket", (socket) => {
    if (new URL(socket.url()).host !== host) seen.elsewhere.push(socket.url());
    socket.on("framesent", ({ payload }) => {
      if (typeof payload === "string") seen.sent.push(JSON.parse(payload));
      else seen.soundFrames++;
    });
    socket.on("framereceived", ({ payload }) => typeof payload === "string" && seen.events.push(JSON.parse(payload)));
  });
  if (wire === "WebSocket") await page.addInitScript(() => delete window.RTCPeerConnection);
  await page.exposeBinding("noteEvent", (_, which, text) => seen[which].push(JSON.parse(text)));
  await page.addInitScript(() => {
    // Events by a data channel.
    const create = window.RTCPeerConnection?.prototype.createDataChannel;
    if (create) {
      RTCPeerConnection.prototype.createDataChannel = function (...given) {
        const channel = create.apply(this, given);
        window.peer = this;
        channel.addEventListener("message", ({ data }) => window.noteEvent("events", data));
        const send = channel.send;
        channel.send = (text) => (window.noteEvent("sent", text), send.call(channel, text));
        return channel;
      };
    }
    window.states = [];
    addEventListener("DOMContentLoaded", () => {
      const state = document.getElementById("state");
      const note = () => window.states.at(-1) !== state.dataset.state && window.states.push(state.dataset.state);
      note();
      new MutationObserver(note).observe(state, { attributes: true });
    });
  });
  if (before) await before(page, context);
  const response = await page.goto(new URL(path, url).href);
  return { page, context, seen, response };
}

/** Waits until the header's state is one of these. */
export function waitState(page, states, timeout = 30_000) {
  return page.waitForFunction((wanted) => wanted.includes(document.getElementById("state").dataset.state), [states].flat(), { timeout });
}

/** Packets of sound that the page's WebRTC has sent. */
export const packetsSent = (page) =>
  page.evaluate(async () => [...((await window.peer?.getStats()) ?? new Map()).values()].find((entry) => entry.type === "outbound-rtp")?.packetsSent ?? 0);

// ---- What each test asks of a page ----

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export async function accessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const found = violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((node) => node.html).join(" | ")}`);
  assert.deepEqual(found, [], what);
}

export function blameless(seen) {
  assert.deepEqual(seen.complaints, [], "console errors and warnings");
  assert.deepEqual(seen.elsewhere, [], "requests to other hosts");
}

/** Nothing sticks out of the window sideways. */
export async function fits(page) {
  const [wide, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= window, `${wide} px of page in ${window} px`);
  const cut = await page.evaluate(() =>
    [...document.querySelectorAll(".controls, .turn, .state, .quiet, .pages, .call-turn, .now-saying, .upload, .call-head")].filter((node) => node.getBoundingClientRect().right > innerWidth + 0.5).length,
  );
  assert.equal(cut, 0, "elements cut off at the right");
}

/** A small model on a busy machine may take its time over one turn. */
export const TURN = Number(process.env.HEARKEN_TURN_SECONDS ?? 90) * 1000;

/** The n-th reply (from 0), once it has come to an end. */
export async function finishedReply(page, n = 0) {
  const reply = page.locator("hearken-agent-turn").nth(n);
  await page.waitForFunction(
    (n) => /^(done|cancelled|failed|incomplete)$/.test(document.querySelectorAll("hearken-agent-turn")[n]?.dataset.state ?? ""),
    n,
    { timeout: TURN },
  );
  return reply;
}
