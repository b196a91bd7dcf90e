// Calls: a stereo file and a phone line become one each, are shown as they are heard, listened to, saved, kept over a restart, deleted.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { accessible, blameless, callFile, callScript, fits, openBrowser, openPage, out, questionFile, sleep, startServer, TURN } from "./support.js";

const RULES = `
[[calls.alerts]]
name = "wants to leave"
party = "customer"
words = ["cancel my contract", "cancel"]
[[calls.alerts]]
name = "talks over the other"
interrupts = true
`;

let server;
let browser;
const options = () => ["--config", out("calls.toml")];
before(async () => {
  writeFileSync(out("calls.toml"), RULES);
  server = await startServer({ own: true, options: options() });
  browser = await openBrowser({ microphone: null });
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

/** A whole call takes a small model longer than a turn. */
const CALL = 4 * TURN;
const turns = (page) => page.locator("hearken-call-turn");
const place = (page) => page.getByRole("slider", { name: "Place in the call" });
const at = async (page) => Number(await place(page).getAttribute("aria-valuenow"));
const audio = (page) => page.evaluate(() => {
  const { currentTime, paused, hidden } = document.querySelector("hearken-call audio");
  return { currentTime, paused, hidden };
});

/** The call that is shown is over, with all that comes with that. */
const over = (page) => page.locator("hearken-call .live-line").waitFor({ state: "hidden", timeout: CALL });

async function choose(page, file) {
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Choose a file" }).press("Enter");
  await (await chooser).setFiles(file);
}

describe("a call from a file", () => {
  it("is shown as it is heard, measured, noted, listened to and saved, by keyboard alone", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { path: "calls", acceptDownloads: true, colorScheme: "light" });
    await page.getByText("None yet.").waitFor();
    await page.getByText("off: the sound is heard and not kept").waitFor();
    await page.getByText("kept for 30 days, 256 calls at most").waitFor();
    await page.screenshot({ path: out("calls-empty.png") });
    await accessible(page, "calls, none");
    await choose(page, callFile);
    await turns(page).first().waitFor({ timeout: TURN });
    await page.screenshot({ path: out("calls-live.png") });
    await accessible(page, "calls, one that goes on");
    await over(page);
    assert.equal(await turns(page).count(), callScript.length);

    // Against the script.
    const talk = (party) => callScript.filter((line) => line.party === party).reduce((sum, line) => sum + line.end - line.start, 0);
    const share = await page.locator(".share span").first().textContent();
    const wanted = (100 * talk(0)) / (talk(0) + talk(1));
    assert.ok(Math.abs(Number(/(\d+) %/.exec(share)[1]) - wanted) < 2.5, `${share} against ${wanted.toFixed(1)} %`);
    const broke = await page.locator("hearken-call-turn:has(.tag:not([hidden]))").evaluateAll((rows) => rows.map((row) => [row.dataset.party, row.turn.start]));
    const script = callScript.filter((line) => line.interrupts);
    assert.equal(broke.length, script.length, JSON.stringify(broke));
    for (const [n, [party, start]] of broke.entries()) {
      assert.ok(Number(party) === script[n].party && Math.abs(start - script[n].start) < 0.4, `${party} at ${start}`);
    }
    const said = (await turns(page).locator(".words").allTextContents()).join(" ");
    assert.match(said, /router.*order.*cancel my contract/is);
    assert.ok((await page.locator(".noted").count()) > 0, "the model notes how turns sounded");
    assert.ok((await page.locator(".summary").textContent()).length > 10);
    assert.match(await page.locator("table.figures").textContent(), /words\/min.*dB.*Hz.*semitones\/min/s);
    const alerts = await page.locator(".alerts .alert").allTextContents();
    assert.ok(alerts.some((alert) => alert.includes("wants to leave (customer)")), alerts.join());
    assert.equal(alerts.filter((alert) => alert.includes("talks over the other")).length, 2);

    // The timeline by keys, and the sound that never left the browser.
    assert.equal((await audio(page)).hidden, false);
    await place(page).focus();
    await page.keyboard.press("ArrowRight");
    const first = await at(page);
    assert.ok(Math.abs(first - callScript[0].start) < 0.3, String(first));
    assert.match(await place(page).getAttribute("aria-valuetext"), /^0:00, agent: Good morning/);
    for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowRight");
    await page.keyboard.press("ArrowLeft");
    assert.ok(Math.abs((await at(page)) - callScript[2].start) < 0.3);
    assert.equal(await page.locator("hearken-call-turn[data-now]").count() > 0, true);
    await page.keyboard.press("Home");
    await page.keyboard.press("Space");
    await page.waitForFunction(() => document.querySelector("hearken-call audio").currentTime > 0.3);
    await page.keyboard.press("Space");
    await page.waitForFunction(() => document.querySelector("hearken-call audio").paused);
    await page.keyboard.press("End");
    assert.ok(Math.abs((await at(page)) - (await place(page).getAttribute("aria-valuemax"))) < 0.1);
    // By mouse: a turn of the transcript, and a place on the track.
    await page.getByRole("button", { name: /^Go to 0:3/ }).first().click();
    await page.waitForFunction(() => !document.querySelector("hearken-call audio").paused && document.querySelector("hearken-call audio").currentTime > 29);
    const { width } = await page.locator(".track").boundingBox();
    await page.locator(".track").click({ position: { x: width / 2, y: 60 } });
    const length = Number(await place(page).getAttribute("aria-valuemax"));
    await page.waitForFunction((half) => Math.abs(document.querySelector("hearken-call audio").currentTime - half) < 2, length / 2);
    await place(page).press("Space");
    await page.locator("hearken-call-turn summary:visible").first().press("Enter");
    const tall = await page.evaluate(() => document.documentElement.scrollHeight - innerHeight);
    assert.equal(tall, 0, "the header stays: only what is below it is scrolled");
    await page.screenshot({ path: out("calls-over.png"), fullPage: true });
    await accessible(page, "calls, one that is over");

    const id = new URL(page.url()).hash.slice(1);
    for (const [name, form, wanted] of [["JSON", "json", /"talk_ratio"/], ["CSV", "csv", /^start,end,party,interrupts/]]) {
      const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name, exact: true }).press("Enter")]);
      assert.equal(download.suggestedFilename(), `hearken-${id}.${form}`);
      assert.match(readFileSync(await download.path(), "utf8"), wanted);
    }
    blameless(seen);
    await context.close();
  });

  it("is there after a restart, on a phone and in the dark, until it is deleted", async () => {
    await server.kill();
    server = await startServer({ own: true, port: server.port, options: options() });
    const { page, context, seen } = await openPage(browser, server.url, { path: "calls", viewport: { width: 390, height: 780 }, hasTouch: true, isMobile: true, colorScheme: "dark", reducedMotion: "reduce" });
    const link = page.getByRole("link", { name: /customer and agent/ });
    await link.waitFor();
    assert.match(await link.textContent(), /14 turns.*3 alerts/);
    await page.screenshot({ path: out("calls-phone-list.png") });
    await accessible(page, "calls on a phone, the list");
    await fits(page);
    await link.tap();
    await turns(page).nth(callScript.length - 1).waitFor();
    assert.equal(await page.locator(".shelf").isVisible(), false, "the call has the whole width");
    assert.match((await turns(page).locator(".words").allTextContents()).join(" "), /cancel my contract/i);
    assert.ok((await page.locator(".noted").count()) > 0 && (await page.locator(".summary").textContent()).length > 10);
    await page.screenshot({ path: out("calls-phone.png"), fullPage: true });
    await accessible(page, "calls on a phone");
    await fits(page);
    // The server kept no sound; the file is in the person's hands.
    assert.equal((await audio(page)).hidden, true);
    const chooser = page.waitForEvent("filechooser");
    await page.getByRole("button", { name: "choose the file again" }).tap();
    await (await chooser).setFiles(callFile);
    await page.locator("hearken-call audio").waitFor();
    await page.getByRole("button", { name: /^Go to 0:/ }).first().tap();
    await page.waitForFunction(() => document.querySelector("hearken-call audio").currentTime > 0.3);
    // Back, forward, and gone.
    await page.getByRole("link", { name: "All calls" }).tap();
    await link.waitFor();
    await page.goBack();
    await turns(page).first().waitFor();
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Delete" }).tap();
    await page.getByText("None yet.").waitFor();
    const { data } = await (await fetch(`${server.url}v1/calls`)).json();
    assert.deepEqual(data, []);
    blameless(seen);
    await context.close();
  });

  it("says why it is not heard", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { path: "calls" });
    await page.locator("#state").filter({ hasText: "No call now" }).waitFor();
    await choose(page, questionFile);
    await page.getByRole("alert").filter({ hasText: "question.wav was not heard" }).waitFor();
    assert.match(await page.locator("#notice").textContent(), /two channels/);
    await page.goto(`${server.url}calls#call_none`);
    await page.getByRole("alert").filter({ hasText: "no such call" }).waitFor();
    await accessible(page, "calls, a refusal");
    blameless({ ...seen, complaints: seen.complaints.filter((text) => !/status of (400|404)/.test(text)) });
    await context.close();
  });
});

/** ITU-T G.711 µ-law. */
function ulaw(sample) {
  const magnitude = Math.min(32_635, Math.abs(sample)) + 132;
  const exponent = Math.floor(Math.log2(magnitude)) - 7;
  return ~((sample < 0 ? 0x80 : 0) | (exponent << 4) | ((magnitude >> (exponent + 3)) & 15)) & 0xff;
}

describe("a recorded call", () => {
  let recorder;
  const begin = async (more = "") => {
    writeFileSync(out("recorded.toml"), `[calls]\nrecord = true\nnotes = false\n${more}`);
    recorder = await startServer({ own: true, options: ["--config", out("recorded.toml")] });
  };
  after(() => recorder?.stop());
  const playsAt = (page, least) => page.waitForFunction((least) => {
    const { paused, currentTime, error } = document.querySelector("hearken-call audio");
    if (error) throw new Error(error.message);
    return !paused && currentTime > least;
  }, least);

  it("says so, and is listened to from the server, each party on a side, until it is deleted", async () => {
    await begin();
    const { page, context, seen } = await openPage(browser, recorder.url, { path: "calls", acceptDownloads: true });
    const answers = [];
    page.on("response", (answer) => answer.url().endsWith("/sound") && answers.push([answer.status(), answer.headers()["content-range"]]));
    await page.getByText("on: the sound of each call is kept as long as its words").waitFor();
    await choose(page, callFile);
    await page.getByText("This call is recorded.").waitFor();
    await page.screenshot({ path: out("calls-recorded-live.png") });
    await accessible(page, "calls, one that is being recorded");
    await over(page);
    await page.getByText("This call was recorded").waitFor();
    assert.match(await page.getByRole("link", { name: /customer and agent/ }).textContent(), /recorded/);
    // The file that was chosen is in no hand any more.
    await page.reload();
    await page.locator("hearken-call audio").waitFor();
    const last = callScript.at(-1);
    const length = await page.waitForFunction(() => document.querySelector("hearken-call audio").duration || false);
    assert.ok(Math.abs((await length.jsonValue()) - Number(await place(page).getAttribute("aria-valuemax"))) < 0.2, "as long as the call");
    await page.getByRole("button", { name: /^Go to 0:3/ }).first().click();
    await playsAt(page, 29.5);
    const { width } = await page.locator(".track").boundingBox();
    await page.locator(".track").click({ position: { x: width * 0.9, y: 60 } });
    await playsAt(page, last.end * 0.85);
    await place(page).press("Space");
    assert.ok(answers.some(([status, range]) => status === 206 && /^bytes \d+-\d+\/\d+$/.test(range)), JSON.stringify(answers));
    // Left is the customer and right the agent, and neither is heard in the other.
    const loud = await page.evaluate(async (script) => {
      const answer = await fetch(`v1/calls/${location.hash.slice(1)}/sound`);
      const sound = await new OfflineAudioContext(2, 1, 48_000).decodeAudioData(await answer.arrayBuffer());
      const power = (channel, { start, end }) => {
        const part = sound.getChannelData(channel).subarray(start * 48_000, end * 48_000);
        return 10 * Math.log10(part.reduce((sum, x) => sum + x * x, 1e-9) / part.length);
      };
      const alone = script.filter((line) => !script.some((other) => other !== line && other.start < line.end && line.start < other.end));
      return alone.map((line) => [sound.numberOfChannels, power(line.party, line) - power(1 - line.party, line)]);
    }, callScript);
    assert.ok(loud.length > 3 && loud.every(([channels, apart]) => channels === 2 && apart > 25), JSON.stringify(loud));
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Sound", exact: true }).press("Enter")]);
    assert.match(download.suggestedFilename(), /^hearken-call_.*\.ogg$/);
    assert.equal(readFileSync(await download.path()).subarray(0, 4).toString(), "OggS");
    await page.screenshot({ path: out("calls-recorded.png") });
    await accessible(page, "calls, a recorded one");

    await page.setViewportSize({ width: 390, height: 780 });
    await page.screenshot({ path: out("calls-recorded-phone.png") });
    await fits(page);
    await accessible(page, "calls on a phone, a recorded one");
    const address = `${recorder.url}v1/calls/${new URL(page.url()).hash.slice(1)}/sound`;
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "Delete" }).click();
    await page.getByText("None yet.").waitFor();
    assert.equal((await fetch(address)).status, 404);
    blameless(seen);
    await context.close();
    await recorder.stop();
  });

  it("is listened to where the server asks for a token, too", async () => {
    await begin('[server]\napi_tokens = ["open"]\n');
    const { page, context, seen } = await openPage(browser, recorder.url, { path: "calls" });
    await page.getByLabel("This server asks for a token").fill("open");
    await page.getByRole("button", { name: "Enter" }).click();
    await page.locator("#state").filter({ hasText: "No call now" }).waitFor();
    await choose(page, stereoQuestion());
    await turns(page).first().waitFor({ timeout: TURN });
    await over(page);
    await page.reload();
    await page.locator("hearken-call audio").waitFor();
    await page.getByRole("button", { name: /^Go to 0:0/ }).first().click();
    await playsAt(page, 0.3);
    blameless({ ...seen, complaints: seen.complaints.filter((text) => !/status of 401/.test(text)) });
    await context.close();
  });
});

/** The question on the left, and nobody on the right. */
function stereoQuestion() {
  const wav = readFileSync(questionFile);
  const start = wav.indexOf("data", 12, "latin1") + 8;
  const frames = (wav.length - start) >> 1;
  const two = Buffer.alloc(start + frames * 4 + 4 * 32_000);
  wav.copy(two, 0, 0, start);
  two.writeUInt32LE(two.length - 8, 4);
  two.writeUInt16LE(2, 22);
  two.writeUInt32LE(64_000, 28);
  two.writeUInt16LE(4, 32);
  two.writeUInt32LE(two.length - start, start - 4);
  for (let i = 0; i < frames; i++) two.writeInt16LE(wav.readInt16LE(start + 2 * i), start + 4 * i);
  writeFileSync(out("stereo.wav"), two);
  return out("stereo.wav");
}

/** The question as 20 ms chunks of a phone line, with silence around it. */
function line(before, after) {
  const wav = readFileSync(questionFile);
  const start = wav.indexOf("data", 12, "latin1") + 8;
  const said = [];
  for (let i = start; i + 3 < wav.length; i += 4) said.push(ulaw((wav.readInt16LE(i) + wav.readInt16LE(i + 2)) >> 1));
  const quiet = (seconds) => Array(seconds * 8000).fill(ulaw(0));
  const all = Buffer.from([...quiet(before), ...said, ...quiet(after)]);
  return Array.from({ length: Math.ceil(all.length / 160) }, (_, n) => all.subarray(n * 160, (n + 1) * 160));
}

describe("a phone call", () => {
  it("is shown while it goes on", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { path: "calls" });
    await page.locator("#state").filter({ hasText: "No call now" }).waitFor();
    // The telephone company is another page.
    const phone = await context.newPage();
    await phone.goto(`${server.url}health`);
    await phone.evaluate((url) => new Promise((open) => ((window.phone = new WebSocket(url)).onopen = open)), new URL("v1/telephony/twilio", server.url).href.replace("http", "ws"));
    let waiting = [];
    const send = (message) => waiting.push(JSON.stringify(message));
    const flush = async () => {
      await phone.evaluate((all) => all.forEach((message) => window.phone.send(message)), waiting);
      waiting = [];
    };
    send({ event: "connected", protocol: "Call", version: "1.0.0" });
    const mediaFormat = { encoding: "audio/x-mulaw", sampleRate: 8000, channels: 1 };
    send({ event: "start", streamSid: "MZ1", start: { streamSid: "MZ1", callSid: "CA1", tracks: ["inbound", "outbound"], mediaFormat, customParameters: { outbound: "Eve" } } });
    const silence = Buffer.alloc(160, ulaw(0)).toString("base64");
    let chunk = 0;
    const speak = (track, payload) => {
      const other = track === "inbound" ? "outbound" : "inbound";
      chunk++;
      const media = { chunk: String(chunk), timestamp: String((chunk - 1) * 20) };
      send({ event: "media", streamSid: "MZ1", media: { ...media, track, payload: payload.toString("base64") } });
      send({ event: "media", streamSid: "MZ1", media: { ...media, track: other, payload: silence } });
    };
    await flush();
    await page.bringToFront();
    await page.getByRole("link", { name: "customer and Eve" }).click();
    await page.getByText("The line is open, nobody speaks").waitFor();
    const hand = await context.newPage();
    await hand.setViewportSize({ width: 390, height: 780 });
    await hand.goto(page.url());
    // Three times without a pause; first up to the middle of the third.
    const chunks = [...line(1, 0), ...line(0, 0), ...line(0, 2)];
    const half = Math.round(5.5 * 50);
    for (let at = 0; at < half; at += 25) {
      // As fast as one speaks: what two readings after one another agree on is certain.
      for (const payload of chunks.slice(at, Math.min(at + 25, half))) speak("inbound", payload);
      await flush();
      await sleep(500);
    }
    await page.getByText("customer is speaking").waitFor();
    const certain = (page) => page.waitForFunction(() => {
      const words = document.querySelector(".now-saying .words")?.firstChild?.data ?? "";
      return words.split(" ").length >= 3 && words;
    }, null, { timeout: TURN });
    const told = await (await certain(page)).jsonValue();
    assert.equal(await turns(page).count(), 0, "the turn is not over");
    const { y, height } = await page.locator(".now-saying").boundingBox();
    assert.ok(y + height < 820, "nobody scrolls for what is being said");
    await page.screenshot({ path: out("calls-phone-line.png") });
    await accessible(page, "calls, while somebody speaks");
    await hand.bringToFront();
    await certain(hand);
    await hand.screenshot({ path: out("calls-phone-line-phone.png"), fullPage: true });
    await accessible(hand, "calls on a phone, while somebody speaks");
    await fits(hand);
    await hand.close();
    await page.bringToFront();
    for (const payload of chunks.slice(half)) speak("inbound", payload);
    await flush();
    await page.getByText("The line is open, nobody speaks").waitFor();
    await turns(page).filter({ hasText: /capital|France/i }).waitFor({ timeout: TURN });
    await page.waitForFunction(() => !document.querySelector(".now-saying"));
    const said = await turns(page).first().locator(".words").textContent();
    assert.ok(said.startsWith(told), `“${told}” became “${said}”`);
    send({ event: "mark", streamSid: "MZ1", mark: { name: "greeting" } });
    await flush();
    await page.getByText("greeting").waitFor();
    for (const payload of line(1, 2)) speak("outbound", payload);
    await flush();
    await turns(page).nth(1).filter({ hasText: /Eve.*(capital|France)/is }).waitFor({ timeout: TURN });
    assert.match(await page.locator("#state").textContent(), /1 call is heard/);
    send({ event: "stop", streamSid: "MZ1", stop: { callSid: "CA1" } });
    await flush();
    await over(page);
    await page.locator("#state").filter({ hasText: "No call now" }).waitFor();
    assert.match(await page.locator(".nosound").textContent(), /the server keeps none/);
    blameless(seen);
    await context.close();
  });
});
