// What is said stays: after a reload, a lost network, a killed server; and what is made of it: history, files, saving, voices.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { accessible, blameless, finishedReply, fits, microphoneFile, openBrowser, openPage, out, questionFile, sleep, startServer, TURN, waitState } from "./support.js";

let server;
let browser;
before(async () => {
  server = await startServer({ own: true });
  browser = await openBrowser({ microphone: null });
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

async function say(page, words) {
  await page.locator("#message").fill(words);
  await page.keyboard.press("Enter");
}

/** All that the page shows as said, thought and answered. */
const shown = (page) =>
  page.evaluate(() => [...document.querySelectorAll(".turn")].map((turn) => [...turn.querySelectorAll(".words, .reasoning-text")].map((node) => node.textContent.trim())));

const conversation = (page) => page.evaluate(() => sessionStorage.getItem("hearken.conversation"));
const story = async (page) => (await fetch(`${server.url}v1/conversations/${await conversation(page)}`)).json();

describe("a conversation", () => {
  it("goes on after a reload with all that was said", async () => {
    const { page, context, seen } = await openPage(browser, server.url);
    await waitState(page, "idle");
    await say(page, "Say yes.");
    await finishedReply(page);
    await sleep(300);
    const before = await shown(page);
    const id = await conversation(page);
    await page.reload();
    await waitState(page, "idle");
    assert.deepEqual(await shown(page), before);
    assert.equal(await page.locator("#welcome").isVisible(), false);
    assert.equal(await page.locator("hearken-agent-turn details").getAttribute("open"), null);
    await say(page, "Say no.");
    await finishedReply(page, 1);
    assert.equal(await conversation(page), id);
    assert.equal((await story(page)).turns.length, 4);
    blameless(seen);
    await context.close();
  });

  it("loses nothing of a reply during which the network was away or the page was reloaded", async () => {
    const sockets = [];
    const { page, context, seen } = await openPage(browser, server.url, {
      wire: "WebSocket",
      before: (page) =>
        page.routeWebSocket(/\/v1\/realtime/, (socket) => {
          sockets.push(socket);
          if (sockets.length === 2) return void socket.close({ code: 1012 });
          const wire = socket.connectToServer();
          socket.cut = () => (wire.close({ code: 1001 }), socket.close({ code: 1012 }));
        }),
    });
    await waitState(page, "idle");
    const begun = (n) => page.waitForFunction((n) => document.querySelectorAll("hearken-agent-turn")[n]?.querySelector(".reasoning-text").textContent.length > 10, n, { timeout: TURN });
    const whole = async (n) => {
      const turn = (await story(page)).turns.filter((turn) => turn.who === "agent")[n];
      const reply = page.locator("hearken-agent-turn").nth(n);
      assert.match(turn.status, /completed|incomplete/);
      assert.equal((await reply.locator(".words").textContent()).trim(), turn.words, "the reply");
      assert.equal((await reply.locator(".reasoning-text").textContent()).trim(), turn.reasoning, "the reasoning");
    };
    await say(page, "Count from one to thirty, in words.");
    await begun(0);
    await sockets[0].cut();
    await waitState(page, "lost");
    await finishedReply(page);
    await whole(0);
    assert.equal(sockets.length, 3);
    await say(page, "Count from one to twenty, in words.");
    await begun(1);
    await page.reload();
    await finishedReply(page, 1);
    await whole(1);
    assert.equal(await page.locator(".turn").count(), 4);
    blameless({ ...seen, complaints: [] }); // Chromium complains of the sockets that were cut.
    await context.close();
  });

  it("goes on after the server was killed in the middle of a reply", async () => {
    const { page, context } = await openPage(browser, server.url);
    await waitState(page, "idle");
    await say(page, "My name is Ada. Remember it.");
    await finishedReply(page);
    await say(page, "Count slowly from one to forty, in words.");
    await page.waitForFunction(() => document.querySelectorAll("hearken-agent-turn")[1]?.querySelector(".reasoning-text").textContent.length > 10, null, { timeout: TURN });
    const before = await page.locator("hearken-agent-turn").nth(1).locator(".reasoning-text").textContent();
    await server.kill();
    await waitState(page, "lost");
    server = await startServer({ own: true, port: server.port });
    // What was cut off says so and stays; the question is answered without being asked again.
    const cut = await finishedReply(page, 1);
    assert.equal(await cut.getAttribute("data-state"), "failed");
    assert.ok((await cut.locator(".reasoning-text").textContent()).startsWith(before.trim()));
    assert.match(await cut.locator(".note").textContent(), /server/i);
    await page.screenshot({ path: out("wide-light-restarted.png") });
    await finishedReply(page, 2);
    assert.equal(await page.locator("hearken-user-turn").count(), 2);
    await context.close();
  });

  it("is found, opened, saved and deleted, by keyboard alone", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { acceptDownloads: true });
    await waitState(page, "idle");
    await say(page, "Tell me about the colour mauve.");
    await finishedReply(page);
    const before = await shown(page);
    const first = await conversation(page);

    await page.getByRole("button", { name: "History" }).focus();
    await page.keyboard.press("Enter");
    await page.getByText("Tell me about the colour mauve.").first().waitFor();
    await sleep(250);
    await page.screenshot({ path: out("wide-light-history.png") });
    await accessible(page, "history");
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Search what was said");

    for (const [name, form, wanted] of [["Text", "txt", /You: Tell me about/], ["JSON", "json", /"words": "Tell me/], ["WebVTT", "vtt", /^WEBVTT\n\n00:00/], ["SRT", "srt", /^1\n00:00:\d\d,\d{3} -->/]]) {
      const button = page.getByRole("group", { name: "Save this conversation" }).getByRole("button", { name });
      const [download] = await Promise.all([page.waitForEvent("download"), button.press("Enter")]);
      assert.equal(download.suggestedFilename(), `hearken-${first}.${form}`);
      assert.match(readFileSync(await download.path(), "utf8"), wanted);
    }

    await page.getByRole("button", { name: "New conversation" }).press("Enter");
    await page.waitForFunction((id) => ![id, ""].includes(sessionStorage.getItem("hearken.conversation")), first);
    await waitState(page, "idle");
    assert.equal(await page.locator(".turn").count(), 0);
    assert.ok(await page.locator("#welcome").isVisible());
    await say(page, "Something else.");
    await finishedReply(page);

    await page.getByRole("button", { name: "History" }).press("Enter");
    await page.keyboard.type("COLOUR mau");
    await page.waitForFunction(() => document.querySelectorAll(".past-list li").length === 1);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.waitForFunction((id) => sessionStorage.getItem("hearken.conversation") === id, first);
    assert.deepEqual(await shown(page), before);
    await waitState(page, "idle");
    await say(page, "And the colour teal?");
    await finishedReply(page, 1);

    // The list comes late: what is deleted before must not come back with it, nor the word of it go.
    await page.route("**/v1/conversations?*", async (route) => {
      const answer = await route.fetch();
      await sleep(1000);
      await route.fulfill({ response: answer });
    }, { times: 1 });
    page.once("dialog", (dialog) => dialog.accept());
    await page.getByRole("button", { name: "History" }).press("Enter");
    await page.getByRole("button", { name: "Delete Tell me about the colour mauve." }).press("Enter");
    await page.getByText("Deleted.").waitFor();
    await sleep(1500);
    assert.ok(await page.getByText("Deleted.").isVisible());
    assert.equal(await page.getByRole("button", { name: "Delete Tell me about the colour mauve." }).count(), 0);
    assert.equal((await fetch(`${server.url}v1/conversations/${first}`)).status, 404);
    assert.equal(await page.locator(".turn").count(), 0, "what was deleted is not shown either");
    await page.keyboard.press("Escape");
    await page.locator("#history").waitFor({ state: "hidden" });
    await waitState(page, "idle");
    blameless(seen);
    await context.close();
  });

  it("has its history on a phone, too", async () => {
    const { page, context } = await openPage(browser, server.url, { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, colorScheme: "dark", reducedMotion: "reduce" });
    await waitState(page, "idle");
    await page.getByRole("button", { name: "History" }).tap();
    await page.locator(".past").first().waitFor();
    await page.screenshot({ path: out("phone-dark-history.png") });
    await accessible(page, "history on a phone");
    await fits(page);
    await page.locator(".past").first().tap();
    await page.locator(".turn").first().waitFor();
    await fits(page);
    await context.close();
  });
});

describe("a sound file", () => {
  it("is heard, whether it is chosen or dropped", async () => {
    const { page, context, seen } = await openPage(browser, server.url);
    await waitState(page, "idle");
    const chooser = page.waitForEvent("filechooser");
    await page.getByRole("button", { name: "Send a sound file" }).press("Enter");
    await (await chooser).setFiles(questionFile);
    const reply = await finishedReply(page);
    assert.ok((await reply.locator(".words").textContent()).trim());
    assert.match(await page.locator("hearken-user-turn .words").textContent(), /capital|France/i);
    assert.equal(await page.locator("hearken-user-turn .tag").textContent(), "sound file");

    const bytes = readFileSync(questionFile).toString("base64");
    const drop = async (name, base64, type) => {
      const data = await page.evaluateHandle(({ name, base64, type }) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name, { type }));
        return transfer;
      }, { name, base64, type });
      await page.dispatchEvent("body", "dragover", { dataTransfer: data });
      assert.ok(await page.locator("#drop").isVisible());
      await page.screenshot({ path: out("wide-light-drop.png") });
      await page.dispatchEvent("body", "drop", { dataTransfer: data });
      assert.equal(await page.locator("#drop").isVisible(), false);
    };
    await drop("question.wav", bytes, "audio/wav");
    await finishedReply(page, 1);
    assert.equal(await page.locator("hearken-user-turn").count(), 2);
    await drop("letter.txt", btoa("no sound at all"), "text/plain");
    await page.getByText("letter.txt was not sent.").waitFor();
    assert.match(await page.locator("#notice").textContent(), /WAV, MP3/);
    blameless(seen);
    await context.close();
  });
});

describe("replies", () => {
  it("are read aloud when that is wished", async () => {
    const { page, context } = await openPage(browser, server.url, {
      before: (page) =>
        page.addInitScript(() => {
          // What is given to the browser's voices; a machine without a sound card has none.
          window.spoken = [];
          const speak = speechSynthesis.speak.bind(speechSynthesis);
          speechSynthesis.speak = (utterance) => (window.spoken.push(utterance.text), speak(utterance));
        }),
    });
    await waitState(page, "idle");
    await say(page, "Say hello.");
    await finishedReply(page);
    assert.deepEqual(await page.evaluate(() => window.spoken), [], "not unless it is wished");
    await page.getByLabel("Read them aloud").check();
    await say(page, "Name three colours, each in a sentence of its own.");
    const reply = await finishedReply(page, 1);
    const words = (text) => text.replace(/\s+/g, " ").trim();
    assert.equal(words((await page.evaluate(() => window.spoken)).join(" ")), words(await reply.locator(".words").textContent()));
    await context.close();
  });
});

describe("words", () => {
  it("come while they are spoken, and stay as they came", async () => {
    const speaker = await openBrowser({ microphone: microphoneFile("kept-once.wav", 2, 2) });
    const { page, context, seen } = await openPage(speaker, server.url, {
      before: (page) =>
        page.addInitScript(() => {
          window.told = [];
          addEventListener("DOMContentLoaded", () => {
            const note = () => {
              const turn = document.querySelector("hearken-user-turn");
              if (!turn) return;
              const said = [turn.querySelector(".said").textContent, turn.querySelector(".tentative").textContent, turn.dataset.state];
              if (JSON.stringify(said) !== JSON.stringify(window.told.at(-1))) window.told.push(said);
            };
            new MutationObserver(note).observe(document.getElementById("log"), { subtree: true, childList: true, characterData: true, attributes: true });
          });
        }),
    });
    await waitState(page, "idle");
    await page.getByLabel("Clean up the sound").uncheck();
    await page.getByRole("button", { name: "Start listening" }).click();
    const reply = await finishedReply(page);
    const told = await page.evaluate(() => window.told);
    const solid = told.map(([said]) => said).filter((said) => said !== "…" && said);
    for (const [i, said] of solid.entries()) assert.ok(i === 0 || said.trimStart().startsWith(solid[i - 1].trim()), `${solid[i - 1]} became ${said}`);
    const tentative = seen.events.filter((event) => event.type === "hearken.input_audio_transcription.tentative" && event.text);
    if (tentative.length) assert.ok(told.some(([, dim]) => dim), "what is not sure yet is shown dimmed");
    console.log(`words on the page: ${JSON.stringify(told)}`);
    assert.match(solid.at(-1), /capital|France/i);
    assert.match(await reply.locator("hearken-latency").textContent(), /Silence.*Encode.*Think/);
    blameless(seen);
    await context.close();
    await speaker.close();
  });
});

describe("the pages", () => {
  it("weigh less than 150 kB each, and ask nobody else", async () => {
    for (const path of ["", "captions", "calls"]) {
      const { page, context, seen } = await openPage(browser, server.url, { path });
      await page.waitForLoadState("networkidle");
      const files = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")].map((entry) => [entry.name, entry.decodedBodySize]));
      const weight = files.reduce((sum, [, size]) => sum + size, 0);
      const [paint] = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint").map((entry) => entry.startTime));
      console.log(`/${path}: ${files.length} files, ${(weight / 1000).toFixed(1)} kB, first contentful paint ${paint?.toFixed(0)} ms`);
      assert.ok(weight > 10_000 && weight < 150_000, `${weight} bytes: ${files}`);
      blameless(seen);
      await context.close();
    }
  });
});
