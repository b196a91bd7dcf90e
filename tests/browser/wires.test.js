// The chat page by WebRTC and by WebSocket: the same conversation by either, chosen by itself, and from one to the other when it must be.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { blameless, finishedReply, microphoneFile, openBrowser, openPage, out, packetsSent, questionFile, sleep, startServer, TURN, waitState } from "./support.js";

let server;
before(async () => {
  server = await startServer({ own: true });
});
after(() => server?.stop());

const wired = (page, wire) => page.locator("#wire").filter({ hasText: new RegExp(`^${wire}$`) }).waitFor();
const conversation = (page) => page.evaluate(() => sessionStorage.getItem("hearken.conversation"));
const story = async (page) => (await fetch(`${server.url}v1/conversations/${await conversation(page)}`)).json();
const begun = (page, n) => page.waitForFunction((n) => document.querySelectorAll("hearken-agent-turn")[n]?.querySelector(".reasoning-text").textContent.length > 10, n, { timeout: TURN });

async function say(page, words) {
  await page.locator("#message").fill(words);
  await page.keyboard.press("Enter");
}

/** What is on the page is what the server has kept. */
async function whole(page, n) {
  const turn = (await story(page)).turns.filter((turn) => turn.who === "agent")[n];
  const reply = page.locator("hearken-agent-turn").nth(n);
  assert.match(turn.status, /completed|incomplete/);
  assert.equal((await reply.locator(".words").textContent()).trim(), turn.words, "the reply");
  assert.equal((await reply.locator(".reasoning-text").textContent()).trim(), turn.reasoning, "the reasoning");
}

for (const wire of ["WebRTC", "WebSocket"]) {
  describe(`by ${wire}`, () => {
    let browser;
    let loop;
    before(async () => {
      browser = await openBrowser({ microphone: microphoneFile(`wires-${wire}.wav`, 2, 2) });
      loop = await openBrowser({ microphone: microphoneFile("wires-loop.wav", 0, 0.1), loop: true });
    });
    after(async () => {
      await browser?.close();
      await loop?.close();
    });

    it("a question is heard and answered", async () => {
      const { page, context, seen } = await openPage(browser, server.url, { wire });
      await waitState(page, "idle");
      await wired(page, wire);
      await page.getByLabel("Clean up the sound").uncheck();
      await page.getByRole("button", { name: "Start listening" }).click();
      await waitState(page, "hearing");
      const reply = await finishedReply(page);
      assert.ok((await reply.locator(".words").textContent()).trim());
      assert.match(await page.locator("hearken-user-turn .words").first().textContent(), /capital|France/i);
      const frames = wire === "WebRTC" ? await packetsSent(page) : seen.soundFrames;
      assert.ok(frames > 50, `${frames} packets of sound`);
      assert.equal(wire === "WebRTC" ? seen.soundFrames : await packetsSent(page), 0, "and none by the other wire");
      assert.equal(await page.locator("#fact-format").textContent(), wire === "WebRTC" ? "Opus, by WebRTC" : "Opus");
      await page.screenshot({ path: out(`wide-${wire}.png`) });
      await page.getByRole("button", { name: "Stop listening" }).click();
      await waitState(page, "idle");
      blameless(seen);
      await context.close();
    });

    it("speech interrupts a reply, a mute ends a turn", async () => {
      const { page, context, seen } = await openPage(loop, server.url, { wire });
      await waitState(page, "idle");
      await page.getByLabel("Clean up the sound").uncheck();
      await say(page, "Write a Python program with twenty functions.");
      await page.waitForFunction(() => document.querySelector("hearken-agent-turn .words")?.textContent.length > 10, null, { timeout: TURN });
      const shown = (await page.locator("hearken-agent-turn .words").first().textContent()).trim();
      await page.getByRole("button", { name: "Start listening" }).click();
      const interrupted = await finishedReply(page);
      assert.equal(await interrupted.getAttribute("data-state"), "cancelled");
      assert.ok((await interrupted.locator(".words").textContent()).trim().startsWith(shown), "what was shown stays");
      await waitState(page, "hearing");
      // It never stops talking: the mute button ends the turn as silence does.
      await page.waitForFunction(() => document.querySelectorAll("hearken-user-turn")[1]?.querySelector(".said").textContent.length > 1, null, { timeout: TURN });
      await page.evaluate(() => document.activeElement.blur());
      await page.keyboard.press("m");
      await finishedReply(page, 1);
      await waitState(page, "muted");
      blameless(seen);
      await context.close();
    });

    it("a reload in the middle of a reply, and a killed server, lose nothing", async () => {
      const { page, context } = await openPage(browser, server.url, { wire });
      await waitState(page, "idle");
      await say(page, "Count from one to thirty, in words.");
      await begun(page, 0);
      await page.reload();
      await finishedReply(page);
      await wired(page, wire);
      await whole(page, 0);
      const id = await conversation(page);
      await say(page, "Count slowly from one to forty, in words.");
      await begun(page, 1);
      await server.kill();
      await waitState(page, "lost");
      server = await startServer({ own: true, port: server.port });
      const cut = await finishedReply(page, 1);
      assert.equal(await cut.getAttribute("data-state"), "failed");
      await finishedReply(page, 2);
      await whole(page, 2);
      await wired(page, wire);
      assert.equal(await conversation(page), id, "it is the same conversation");
      await context.close();
    });
  });
}

describe("the wire", () => {
  let browser;
  before(async () => {
    browser = await openBrowser({ microphone: null });
  });
  after(() => browser?.close());

  it("is a WebSocket where no path is found", async () => {
    const { page, context } = await openPage(browser, server.url, {
      before: (page) =>
        page.route("**/v1/realtime/calls?*", async (route) => {
          const answer = await route.fetch();
          // Nobody is at the port that the answer names.
          const body = (await answer.text()).replace(/^(a=candidate:.* )\d+( typ host)/gm, "$19$2");
          await route.fulfill({ response: answer, body });
        }),
    });
    const begin = Date.now();
    await wired(page, "WebSocket");
    console.log(`from no path to a WebSocket: ${((Date.now() - begin) / 1000).toFixed(1)} s`);
    await waitState(page, "idle");
    await say(page, "Say yes.");
    assert.ok((await (await finishedReply(page)).locator(".words").textContent()).trim());
    assert.equal(await page.locator("#banner").isVisible(), false);
    await context.close();
  });

  it("is a WebSocket where the server has no WebRTC", async () => {
    const other = await startServer({ own: true, options: ["--set", "webrtc.enabled=false"] });
    const { page, context } = await openPage(browser, other.url);
    await wired(page, "WebSocket");
    await waitState(page, "idle");
    await say(page, "Say yes.");
    await finishedReply(page);
    await context.close();
    await other.stop();
  });

  it("is WebRTC by TCP where no UDP passes, and knows the servers that lead to ours", async () => {
    const turn = { urls: ["turn:127.0.0.1:9?transport=tcp"], username: "u", credential: 'p"w' };
    const servers = `webrtc.ice_servers=[{ urls = ["${turn.urls}"], username = "u", credential = 'p"w' }]`;
    const other = await startServer({ own: true, options: ["--set", "webrtc.listen_tcp=127.0.0.1:0", "--set", servers] });
    const { page, context } = await openPage(browser, other.url, {
      before: (page) =>
        page.route("**/v1/realtime/calls?*", async (route) => {
          const answer = await route.fetch();
          const body = (await answer.text()).replace(/^a=candidate:.* udp .*\r\n/gm, "");
          await route.fulfill({ response: answer, body });
        }),
    });
    await wired(page, "WebRTC");
    await waitState(page, "idle");
    await say(page, "Say yes.");
    await finishedReply(page);
    const [configured, pair] = await page.evaluate(async () => {
      const all = await window.peer.getStats();
      const pair = [...all.values()].find((entry) => entry.type === "candidate-pair" && entry.nominated);
      return [window.peer.getConfiguration().iceServers, [all.get(pair.localCandidateId), all.get(pair.remoteCandidateId)]];
    });
    assert.deepEqual(pair.map(({ protocol }) => protocol), ["tcp", "tcp"]);
    assert.deepEqual(configured, [turn]);
    await context.close();
    await other.stop();
  });

  it("changes for a file that is too large for a channel, and the conversation goes on", async () => {
    const { page, context } = await openPage(browser, server.url);
    await wired(page, "WebRTC");
    await say(page, "Say yes.");
    await finishedReply(page);
    const id = await conversation(page);
    // The question, and then silence: 12 s.
    const wav = readFileSync(questionFile);
    const start = wav.indexOf("data", 12, "latin1") + 8;
    const long = Buffer.concat([wav, Buffer.alloc(12 * 32_000 - (wav.length - start))]);
    long.writeUInt32LE(long.length - 8, 4);
    long.writeUInt32LE(long.length - start, start - 4);
    const chooser = page.waitForEvent("filechooser");
    await page.getByRole("button", { name: "Send a sound file" }).press("Enter");
    await (await chooser).setFiles({ name: "long.wav", mimeType: "audio/wav", buffer: long });
    await finishedReply(page, 1);
    await wired(page, "WebSocket");
    assert.match(await page.locator("hearken-user-turn .words").nth(1).textContent(), /capital|France/i);
    assert.match(await page.locator("hearken-agent-turn .reasoning-text").nth(1).textContent(), /\w/);
    assert.equal(await conversation(page), id);
    await page.reload();
    await wired(page, "WebRTC");
    assert.equal(await page.locator(".turn").count(), 4);
    await context.close();
  });

  it("leaves a conversation for good, and begins another", async () => {
    const places = [];
    const { page, context } = await openPage(browser, server.url, {
      before: (page) => page.on("response", (answer) => answer.request().method() === "POST" && places.push(answer.headers().location)),
    });
    await wired(page, "WebRTC");
    await say(page, "Say yes.");
    await finishedReply(page);
    const id = await conversation(page);
    await page.getByRole("button", { name: "History" }).press("Enter");
    await page.getByRole("button", { name: "New conversation" }).press("Enter");
    await page.waitForFunction((id) => ![id, ""].includes(sessionStorage.getItem("hearken.conversation")), id);
    await wired(page, "WebRTC");
    const gone = async (place) => {
      for (let tries = 0; tries < 100; tries++) {
        const { data } = await (await fetch(`${server.url}v1/realtime/calls`)).json();
        if (!data.some((call) => call.location === place)) return;
        await sleep(100);
      }
      assert.fail(`${place} is still there`);
    };
    await gone(places[0]);
    // Nor is the place of a page that is closed.
    await page.close({ runBeforeUnload: false });
    await gone(places[1]);
    await context.close();
  });
});
