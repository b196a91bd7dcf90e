// Captions: words that stay as they came, notes of how it sounded, an overlay, files, a URL for players.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { accessible, blameless, fits, microphoneFile, openBrowser, openPage, out, questionFile, sleep, startServer, TURN, waitState } from "./support.js";

let server;
before(async () => {
  server = await startServer({ own: true });
});
after(() => server?.stop());

/** Keeps each state of the captions' solid words, oldest first. */
const watch = (page) =>
  page.addInitScript(() => {
    window.told = [];
    addEventListener("DOMContentLoaded", () => {
      const note = () => {
        const all = [...document.querySelectorAll("#lines .said, #now .said")].map((node) => node.textContent.trim()).filter(Boolean).join(" ");
        if (all !== window.told.at(-1)) window.told.push(all);
      };
      new MutationObserver(note).observe(document.querySelector(".flow"), { subtree: true, childList: true, characterData: true });
    });
  });

/** What was once solid stays: each state begins with the one before. */
function nothingErased(told) {
  for (const [i, words] of told.entries()) assert.ok(i === 0 || words.startsWith(told[i - 1]), `“${told[i - 1]}” became “${words}”`);
}

const lines = (page, n) => page.waitForFunction((n) => document.querySelectorAll("#lines .line").length >= n, n, { timeout: TURN });

describe("captions of a microphone", () => {
  let browser;
  before(async () => {
    browser = await openBrowser({ microphone: microphoneFile("captions.wav", 1, 4), loop: true });
  });
  after(() => browser?.close());

  it("come as they are spoken, stay as they came, and are noted, saved and served", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { path: "captions", before: watch, acceptDownloads: true });
    await waitState(page, "idle");
    await page.screenshot({ path: out("captions-idle.png") });
    await accessible(page, "captions, idle");
    await page.getByRole("button", { name: "Start" }).press("Enter");
    await waitState(page, "listening");
    await waitState(page, "hearing");
    await lines(page, 1);
    await page.waitForFunction(() => document.querySelector("#notes li")?.textContent.length > 12, null, { timeout: TURN });
    await lines(page, 2);
    await page.screenshot({ path: out("captions-lines.png") });
    await accessible(page, "captions, with lines");
    const told = await page.evaluate(() => window.told);
    nothingErased(told);
    assert.match(told.at(-1), /capital|France/i);
    const note = await page.locator("#notes li").first().textContent();
    console.log(`captions: ${told.at(-1)}\nheard: ${note}`);
    assert.doesNotMatch(note, /The words/, "the words are not told twice");

    await page.getByRole("button", { name: "Stop" }).press("Enter");
    await waitState(page, "idle");
    const address = await page.locator("#vtt-address").textContent();
    const vtt = await (await fetch(address)).text();
    assert.match(vtt, /^WEBVTT\n\n00:00:\d\d\.\d{3} --> 00:00:\d\d\.\d{3}\n/);
    assert.match(vtt, /capital|France/i);
    for (const [name, form, wanted] of [["WebVTT", "vtt", /^WEBVTT/], ["SRT", "srt", /^1\n00:/], ["JSON", "json", /"kind": "captions"/]]) {
      const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name, exact: true }).press("Enter")]);
      assert.match(download.suggestedFilename(), new RegExp(`\\.${form}$`));
      assert.match(readFileSync(await download.path(), "utf8"), wanted);
    }
    // The model's own conversation stays short, whatever is said: each turn is taken out of it.
    const gone = seen.events.filter((event) => event.type === "conversation.item.deleted").length;
    assert.ok(gone >= 1, "turns are taken out of the conversation");
    const before = await page.locator("#lines").textContent();
    await page.reload();
    await lines(page, 1);
    assert.equal(await page.locator("#lines").textContent(), before, "they are there after a reload");
    blameless(seen);
    await context.close();
  });

  it("are an overlay for OBS: the words on nothing", async () => {
    const { page, context } = await openPage(browser, server.url, { path: "captions" });
    await waitState(page, "idle");
    const known = await page.evaluate(() => sessionStorage.getItem("hearken.captions.conversation"));
    await page.getByRole("button", { name: "Begin anew" }).click();
    await page.waitForFunction((known) => sessionStorage.getItem("hearken.captions.conversation") !== known, known);
    const id = await page.evaluate(() => JSON.parse(sessionStorage.getItem("hearken.captions.conversation")));
    const overlay = await context.newPage();
    await watch(overlay);
    await overlay.goto(`${server.url}captions?overlay=1&size=3&colours=yellow&lines=2&follow=${id}`);
    await page.getByRole("button", { name: "Start" }).click();
    await lines(page, 1);
    const wanted = await page.locator("#lines .said").first().textContent();
    const shows = (view) => view.waitForFunction((wanted) => [...document.querySelectorAll("#lines .said")].some((node) => node.textContent === wanted), wanted, { timeout: TURN });
    await shows(overlay);
    nothingErased(await overlay.evaluate(() => window.told.slice(window.told.findIndex((words) => words))));
    // Without a name it follows whatever was captioned last.
    const latest = await context.newPage();
    await latest.goto(`${server.url}captions?overlay=1`);
    await shows(latest);
    const look = await overlay.evaluate(() => ({
      backgrounds: [document.documentElement, document.body].map((node) => getComputedStyle(node).backgroundColor),
      shown: [".top", ".bar", ".side", ".welcome"].filter((name) => document.querySelector(name).checkVisibility()),
      ink: getComputedStyle(document.querySelector(".said")).color,
      size: parseFloat(getComputedStyle(document.querySelector("#lines .line")).fontSize),
    }));
    assert.deepEqual(look, { backgrounds: Array(2).fill("rgba(0, 0, 0, 0)"), shown: [], ink: "rgb(255, 233, 74)", size: 48 });
    await overlay.screenshot({ path: out("captions-overlay.png"), omitBackground: true });
    await page.getByRole("button", { name: "Stop" }).click();
    // What was said before an overlay came is not put over the picture: it says that it is there, and then nothing.
    const late = await context.newPage();
    await late.addInitScript(() => {
      window.greeted = false;
      addEventListener("DOMContentLoaded", () => new MutationObserver(() => (window.greeted ||= document.querySelector("#now .greeting")?.checkVisibility() ?? false)).observe(document.getElementById("now"), { childList: true }));
    });
    await late.goto(`${server.url}captions?overlay=1&hold=3&follow=${id}`);
    await shows(late);
    const before = await late.evaluate((wanted) => [...document.querySelectorAll("#lines .line")].find((node) => node.lastElementChild.textContent === wanted).checkVisibility(), wanted);
    assert.deepEqual([before, await late.evaluate(() => window.greeted)], [false, true]);
    await late.waitForFunction(() => getComputedStyle(document.getElementById("text")).opacity === "0");
    await context.close();
  });

  it("have a size and colours that are remembered, and fit a phone", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { path: "captions", viewport: { width: 390, height: 780 }, hasTouch: true, isMobile: true, colorScheme: "dark", reducedMotion: "reduce" });
    await waitState(page, "idle");
    await page.getByLabel("Colours").selectOption("yellow");
    for (let i = 0; i < 3; i++) await page.getByRole("button", { name: "larger text" }).tap();
    await page.getByRole("button", { name: "Start" }).tap();
    await lines(page, 1);
    await page.screenshot({ path: out("captions-phone.png") });
    await accessible(page, "captions on a phone");
    await fits(page);
    const size = () => page.locator("#lines .line").first().evaluate((node) => parseFloat(getComputedStyle(node).fontSize));
    assert.equal(await size(), 40);
    await page.reload();
    await lines(page, 1);
    assert.equal(await size(), 40);
    assert.equal(await page.locator("#text").getAttribute("data-colours"), "yellow");
    blameless(seen);
    await context.close();
  });
});

describe("captions of a tab", () => {
  it("are of the sound that it plays", async () => {
    const browser = await openBrowser({ microphone: null, tab: "A talk" });
    const { page, context } = await openPage(browser, server.url, { path: "captions" });
    const talk = await context.newPage();
    const sound = `data:audio/wav;base64,${readFileSync(questionFile).toString("base64")}`;
    await talk.setContent(`<title>A talk</title><audio src="${sound}"></audio>`);
    await page.bringToFront();
    await waitState(page, "idle");
    await page.getByLabel("From").selectOption("tab");
    assert.equal(await page.locator("#device-field").isVisible(), false);
    await page.getByRole("button", { name: "Start" }).click();
    await waitState(page, "listening");
    await sleep(1000);
    await talk.evaluate(() => document.querySelector("audio").play());
    await lines(page, 1);
    assert.match(await page.locator("#lines").textContent(), /capital|France/i);
    await browser.close();
  });
});

describe("captions of a stream", () => {
  /** In a page of its own, as studio software would: the microphone is sent by WHIP. */
  async function send() {
    const peer = (window.sender = new RTCPeerConnection());
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
    peer.addTransceiver(stream.getAudioTracks()[0], { direction: "sendonly" });
    await peer.setLocalDescription();
    const answer = await fetch("/v1/whip?kind=captions", { method: "POST", body: peer.localDescription.sdp, headers: { "content-type": "application/sdp" } });
    window.place = answer.headers.get("location");
    await peer.setRemoteDescription({ type: "answer", sdp: await answer.text() });
  }

  it("are shown as they are sent, on the page and over OBS, and saved", async () => {
    const browser = await openBrowser({ microphone: microphoneFile("stream.wav", 1, 3), loop: true });
    const { page, context, seen } = await openPage(browser, server.url, { path: "captions", before: watch, acceptDownloads: true });
    await waitState(page, "idle");
    await page.getByLabel("From").selectOption("whip");
    await page.getByRole("button", { name: "Start" }).press("Enter");
    await page.getByText("Waiting for a stream. Let OBS").waitFor();
    assert.match(await page.locator("#whip-address").textContent(), /\/v1\/whip\?kind=captions$/);
    await page.screenshot({ path: out("captions-waiting.png") });
    await accessible(page, "captions, waiting for a stream");
    const overlay = await context.newPage();
    await overlay.goto(`${server.url}captions?overlay=1&whip=1`);
    const studio = await context.newPage();
    await studio.goto(`${server.url}health`);
    await studio.evaluate(send);
    await page.bringToFront();
    await lines(page, 1);
    assert.match(await page.locator("#lines").textContent(), /capital|France/i);
    assert.equal(await page.locator("#notice").isVisible(), false);
    await lines(overlay, 1);
    nothingErased(await page.evaluate(() => window.told));
    // How it sounded is noted beside it, though its sender asks for nothing.
    const noted = () => page.waitForFunction(() => document.querySelector("#notes li")?.textContent.length > 12, null, { timeout: TURN });
    await noted();
    assert.doesNotMatch(await page.locator("#notes li").first().textContent(), /The words/);
    await page.screenshot({ path: out("captions-stream.png") });
    await accessible(page, "captions of a stream");
    assert.equal(await overlay.locator("#notes").isVisible(), false);
    // After a reload all of it is there again, and goes on by itself.
    const before = await page.locator("#lines .said").allTextContents();
    await page.reload();
    await lines(page, before.length + 1);
    assert.deepEqual((await page.locator("#lines .said").allTextContents()).slice(0, before.length), before);
    await noted();
    assert.match(await page.locator("#state").textContent(), /On the stream|Hearing speech/);
    nothingErased(await page.evaluate(() => window.told));
    const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "WebVTT" }).press("Enter")]);
    assert.match(readFileSync(await download.path(), "utf8"), /^WEBVTT[^]*(capital|France)/i);
    // The stream ends, and the page waits for another.
    await studio.evaluate(() => fetch(window.place, { method: "DELETE" }));
    await page.getByText("Waiting for a stream. Let OBS").waitFor();
    await page.getByRole("button", { name: "Stop" }).press("Enter");
    await waitState(page, "idle");
    assert.equal(await page.locator("#notice").isVisible(), false);
    // Stopped, it stays so; the words stay too.
    const last = await page.locator("#lines").textContent();
    await page.setViewportSize({ width: 390, height: 780 });
    await page.reload();
    await lines(page, before.length);
    await waitState(page, "idle");
    assert.equal(await page.locator("#lines").textContent(), last);
    await page.screenshot({ path: out("captions-stream-phone.png"), fullPage: true });
    await accessible(page, "captions of a stream on a phone");
    await fits(page);
    blameless(seen);
    await browser.close();
  });
});

describe("captions that are refused the sound", () => {
  it("say what to do", async () => {
    const browser = await openBrowser({ microphone: null });
    const { page, seen } = await openPage(browser, server.url, { path: "captions" });
    await waitState(page, "idle");
    await page.getByRole("button", { name: "Start" }).click();
    await page.getByRole("alert").filter({ hasText: "The microphone is blocked for this page" }).waitFor();
    await waitState(page, "idle");
    await accessible(page, "captions, help");
    blameless(seen);
    await browser.close();
  });
});
