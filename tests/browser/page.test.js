// A person opens the page, talks, types, interrupts, mutes, loses the connection: in Chromium, with a microphone that
// plays a file, against a real server. What the model says is its own affair; that it arrives and is shown is tested here.

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { accessible, blameless, finishedReply, fits, microphoneFile, openBrowser, openPage, out, sleep, startServer, TURN, waitState } from "./support.js";

let server;
before(async () => {
  server = await startServer();
});
after(() => server?.stop());

function inOrder(states, wanted) {
  let at = 0;
  for (const state of states) if (state === wanted[at]) at++;
  return at === wanted.length;
}

/** Sound stops leaving the page. On a busy machine the last frames may still be on their way to the socket. */
async function silence(seen) {
  for (let tries = 0; tries < 8; tries++) {
    const before = seen.soundFrames;
    await sleep(1000);
    if (seen.soundFrames === before) return;
  }
  assert.fail(`sound is still being sent: ${seen.soundFrames} frames`);
}

/** It came to its own end: the model's, or the longest reply that the server allows. */
async function whole(reply) {
  assert.match(await reply.getAttribute("data-state"), /^(done|incomplete)$/);
}

describe("one question, spoken", () => {
  let browser;
  before(async () => {
    browser = await openBrowser({ microphone: microphoneFile("once.wav", 2, 2) });
  });
  after(() => browser?.close());

  it("is heard, thought about and answered, sent as Opus", async () => {
    const { page, context, seen, response } = await openPage(browser, server.url, { wire: "WebSocket", colorScheme: "light" });
    assert.match(response.headers()["content-security-policy"] ?? "", /default-src 'self'/);
    await waitState(page, "idle");
    await page.screenshot({ path: out("wide-light-idle.png") });
    await accessible(page, "idle, light");

    // The file is played as it is: no clean-up by the browser.
    await page.getByLabel("Clean up the sound").uncheck();
    await page.getByRole("button", { name: "Start listening" }).click();
    await waitState(page, "listening");
    await waitState(page, "hearing");
    await page.screenshot({ path: out("wide-light-hearing.png") });
    await waitState(page, "thinking", TURN);
    await page.screenshot({ path: out("wide-light-thinking.png") });

    const reply = await finishedReply(page);
    await whole(reply);
    const text = (await reply.locator(".words").textContent()).trim();
    const reasoning = (await reply.locator(".reasoning-text").textContent()).trim();
    const heard = (await page.locator("hearken-user-turn .words").first().textContent()).trim();
    console.log(`heard:     ${heard}\nreasoning: ${reasoning}\nreply:     ${text}`);
    assert.ok(text, "the reply is empty");
    assert.ok(reasoning, "the reasoning is empty");
    assert.match(heard, /capital|France/i);
    assert.equal(await page.locator("hearken-user-turn .tag").first().textContent(), "heard");
    assert.match(await reply.locator("summary").textContent(), /Thought for \d/);
    assert.equal(await reply.locator("details").getAttribute("open"), null, "the reasoning starts folded");

    await waitState(page, "listening");
    const states = await page.evaluate(() => window.states);
    assert.ok(inOrder(states, ["idle", "listening", "hearing", "thinking", "replying", "listening"]), states.join(" "));
    assert.match(await reply.locator("hearken-latency").textContent(), /Think/);
    await reply.locator("summary").click();
    await page.screenshot({ path: out("wide-light-replied.png") });
    await accessible(page, "after a turn, light");

    const announced = await page.locator("#announce").textContent();
    assert.ok(announced.includes(text) && announced.includes(heard), "finished lines are announced");
    assert.equal(await page.locator("#fact-format").textContent(), "Opus");
    assert.ok(seen.soundFrames > 50, `${seen.soundFrames} frames of sound`);

    await page.getByRole("button", { name: "Stop listening" }).click();
    await waitState(page, "idle");
    await silence(seen);
    blameless(seen);
    await context.close();
  });

  it("works on a phone, in the dark, as plain PCM", async () => {
    const { page, context, seen } = await openPage(browser, server.url, {
      wire: "WebSocket",
      viewport: { width: 390, height: 780 },
      deviceScaleFactor: 2,
      hasTouch: true,
      isMobile: true,
      colorScheme: "dark",
      reducedMotion: "reduce",
      before: (page) => page.addInitScript(() => delete window.AudioEncoder),
    });
    await waitState(page, "idle");
    await page.screenshot({ path: out("phone-dark-idle.png") });
    await accessible(page, "idle, dark");
    await page.getByRole("button", { name: "Settings" }).tap();
    await page.getByLabel("Clean up the sound").uncheck();
    await sleep(250);
    await page.screenshot({ path: out("phone-dark-settings.png") });
    await accessible(page, "settings, dark");
    await fits(page);
    await page.getByRole("button", { name: "Settings" }).tap();
    await page.locator("#mic").tap();
    await waitState(page, "hearing");
    await page.screenshot({ path: out("phone-dark-hearing.png") });
    assert.equal(await page.locator("#mute").isVisible(), true, "the row is as full as it gets");
    const [needs, has] = await page.locator("#message").evaluate((node) => {
      const style = getComputedStyle(node);
      const pen = new OffscreenCanvas(1, 1).getContext("2d");
      pen.font = style.font;
      return [pen.measureText(node.placeholder).width, node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)];
    });
    assert.ok(needs <= has, `the placeholder needs ${needs} px and has ${has}`);
    const reply = await finishedReply(page);
    assert.ok((await reply.locator(".words").textContent()).trim());
    assert.match(await page.locator("#fact-format").textContent(), /PCM/);
    await page.screenshot({ path: out("phone-dark-replied.png") });
    await accessible(page, "after a turn, dark");
    await fits(page);
    blameless(seen);
    await context.close();
  });
});

describe("typing", () => {
  let browser;
  before(async () => {
    browser = await openBrowser({ microphone: null });
  });
  after(() => browser?.close());

  it("works by keyboard alone, and can be stopped", async () => {
    const { page, context, seen } = await openPage(browser, server.url);
    await waitState(page, "idle");
    await page.keyboard.press("/");
    await page.keyboard.type("Say hello to the visitor.");
    await page.keyboard.press("Enter");
    assert.equal(await page.locator("hearken-user-turn .tag").first().textContent(), "typed");
    assert.equal(await page.locator("#message").inputValue(), "");
    await waitState(page, "thinking");
    const first = await finishedReply(page);
    await whole(first);
    assert.ok((await first.locator(".words").textContent()).trim());

    await page.keyboard.type("Count slowly from one to fifty, in words, one number on each line.");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelectorAll("hearken-agent-turn")[1]?.querySelector(".reasoning-text").textContent.length > 0, null, { timeout: TURN });
    await page.screenshot({ path: out("wide-light-typed.png") });
    await page.keyboard.press("Escape");
    const second = await finishedReply(page, 1);
    assert.equal(await second.getAttribute("data-state"), "cancelled");
    assert.match(await second.locator(".note").textContent(), /You stopped it|Stopped here/);
    await waitState(page, "idle");

    // Sending while a reply is under way stops that one and answers this one.
    await page.keyboard.type("Count slowly from one to ninety, in words, one number on each line.");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelectorAll("hearken-agent-turn")[2]?.querySelector(".reasoning-text").textContent.length > 0, null, { timeout: TURN });
    // At once, not letter by letter: a reply may be short.
    await page.locator("#message").fill("No, just say good evening.");
    await page.keyboard.press("Enter");
    const fourth = await finishedReply(page, 3);
    await whole(fourth);
    assert.equal(await page.locator("hearken-agent-turn").nth(2).getAttribute("data-state"), "cancelled");
    assert.equal(await page.locator("#notice").isVisible(), false, await page.locator("#notice").textContent());
    await page.setViewportSize({ width: 320, height: 480 });
    await fits(page);
    blameless(seen);
    await context.close();
  });

  it("asks for the effort that was chosen, and answers without thinking when it is off", async () => {
    const { page, context, seen } = await openPage(browser, server.url);
    await waitState(page, "idle");
    await page.getByRole("radio", { name: "Off" }).check();
    await page.locator("#message").fill("Good morning!");
    await page.keyboard.press("Enter");
    const reply = await finishedReply(page);
    assert.ok((await reply.locator(".words").textContent()).trim());
    assert.equal(await reply.locator("details").isVisible(), false, "no reasoning to unfold");
    assert.equal(seen.sent.findLast((event) => event.session?.reasoning)?.session.reasoning.effort, "none");
    await page.reload();
    await waitState(page, "idle");
    assert.equal(await page.getByRole("radio", { name: "Off" }).isChecked(), true, "the choice is remembered");
    blameless(seen);
    await context.close();
  });

  it("says what to do when the microphone is refused", async () => {
    const { page, context, seen } = await openPage(browser, server.url);
    await waitState(page, "idle");
    await page.getByRole("button", { name: "Start listening" }).click();
    const help = page.getByRole("alert").filter({ hasText: "The microphone is blocked for this page" });
    await help.waitFor();
    assert.match(await help.textContent(), /choose Allow/);
    assert.ok(await help.getByRole("button", { name: "Try again" }).isVisible());
    await waitState(page, "idle");
    await page.screenshot({ path: out("wide-light-denied.png") });
    await accessible(page, "help");
    blameless(seen);
    await context.close();
  });

  it("comes back by itself after the connection was cut", async () => {
    const sockets = [];
    const { page, context } = await openPage(browser, server.url, {
      wire: "WebSocket",
      colorScheme: "dark",
      before: (page) =>
        page.routeWebSocket(/\/v1\/realtime/, (socket) => {
          sockets.push(socket);
          // Cut after a while, then refused twice, then let through.
          if (sockets.length === 2 || sockets.length === 3) return void socket.close({ code: 1012 });
          socket.connectToServer();
        }),
    });
    await waitState(page, "idle");
    await page.locator("#message").fill("Say yes.");
    await page.keyboard.press("Enter");
    await finishedReply(page);
    await sockets[0].close({ code: 1012 });
    await page.getByText("The server is restarting.").waitFor();
    await waitState(page, "lost");
    await page.locator("#message").fill("Say maybe.");
    await page.keyboard.press("Enter"); // Typed while there is no connection.
    assert.match(await page.locator("#notice").textContent(), /as soon as/);
    await page.screenshot({ path: out("wide-dark-lost.png") });
    await accessible(page, "connection lost");
    await finishedReply(page, 1);
    assert.equal(await page.locator("#banner").isVisible(), false);
    assert.equal(await page.locator("hearken-user-turn").count(), 2, "what was said is still there");
    assert.equal(await page.locator(".divider").count(), 0, "it is the same conversation");
    await page.locator("#message").fill("Say no.");
    await page.keyboard.press("Enter");
    assert.ok((await (await finishedReply(page, 2)).locator(".words").textContent()).trim());
    await context.close();
  });
});

describe("a microphone that never stops talking", () => {
  let browser;
  before(async () => {
    browser = await openBrowser({ microphone: microphoneFile("loop.wav", 0, 0.1), loop: true });
  });
  after(() => browser?.close());

  it("can be muted", async () => {
    const { page, context, seen } = await openPage(browser, server.url, { wire: "WebSocket" });
    await waitState(page, "idle");
    await page.getByLabel("Clean up the sound").uncheck();
    await page.getByRole("button", { name: "Start listening" }).click();
    await waitState(page, "hearing");
    await page.keyboard.press("m");
    assert.equal(await page.getByRole("button", { name: "Mute" }).getAttribute("aria-pressed"), "true");
    await silence(seen);
    const muted = seen.soundFrames;
    await finishedReply(page); // Being cut off by the mute button ends a turn as silence does.
    await waitState(page, "muted");
    await page.screenshot({ path: out("wide-light-muted.png") });
    await page.getByRole("button", { name: "Mute" }).click();
    await waitState(page, ["listening", "hearing"]);
    for (let i = 0; i < 50 && seen.soundFrames <= muted + 10; i++) await sleep(100);
    assert.ok(seen.soundFrames > muted + 10, "frames after unmuting");
    blameless(seen);
    await context.close();
  });

  it("is heard while the button or space is held, and interrupts the reply", async () => {
    const { page, context, seen } = await openPage(browser, server.url);
    await waitState(page, "idle");
    await page.getByLabel("Clean up the sound").uncheck();
    await page.getByRole("radio", { name: "Hold to talk" }).check();
    await page.locator("#message").fill("Write a Python program with twenty functions.");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("hearken-agent-turn .words")?.textContent.length > 10, null, { timeout: TURN });
    const shown = (await page.locator("hearken-agent-turn .words").first().textContent()).trim();
    await page.getByRole("button", { name: "Hold to talk" }).hover();
    await page.mouse.down();
    await waitState(page, "hearing");
    const interrupted = await finishedReply(page);
    assert.equal(await interrupted.getAttribute("data-state"), "cancelled");
    assert.ok((await interrupted.locator(".words").textContent()).trim().startsWith(shown), "what was shown stays");
    assert.ok(await interrupted.locator(".note").textContent());
    await sleep(2200);
    await page.mouse.up();
    assert.ok((await (await finishedReply(page, 1)).locator(".words").textContent()).trim());
    // The second time with the space bar.
    await page.evaluate(() => document.activeElement.blur());
    await page.keyboard.down("Space");
    await waitState(page, "hearing");
    await sleep(2200);
    await page.keyboard.up("Space");
    assert.ok((await (await finishedReply(page, 2)).locator(".words").textContent()).trim());
    await waitState(page, "holding");
    await page.screenshot({ path: out("wide-light-interrupted.png") });
    blameless(seen);
    await context.close();
  });
});
