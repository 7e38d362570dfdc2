// One timer: its state, its webhook, its attempts, and what can be done with it.

import { html, useRef, useState } from "./preact.js";
import { Facts, Left, Loading, Moment, nextChange, State, useLoaded, useTick } from "./parts.js";
import { now } from "./service.js";
import { called, lines, plural, result, seconds, succeeded } from "./words.js";

const WAITING = ["scheduled", "retrying"];

export function Timer({ id, ask, say }) {
  const path = `timers/${encodeURIComponent(id)}`;
  const loaded = useLoaded(id, () => ask("GET", path), (timer) => nextChange([timer]));
  const timer = loaded.data;
  const name = called(timer ?? { id });
  return html`
    <div class="title">
      <p><a href="#/">← All timers</a></p>
      <h1 tabindex="-1">${name}</h1>
      ${name !== id && html`<p class="code quiet">${id}</p>`}
    </div>
    <${Loading} loaded=${loaded} what="the timer" />
    ${timer && html`
      <${Now} timer=${timer} />
      <${Actions} timer=${timer} path=${path} ask=${ask} say=${say} again=${loaded.again} />
      <div class="two">
        <${Attempts} timer=${timer} />
        <div><${Webhook} timer=${timer} /><${More} timer=${timer} /></div>
      </div>`}`;
}

function Now({ timer }) {
  useTick();
  return html`
    <div class="card now">
      <${State} of=${timer.status} />
      ${timer.next_attempt_at && html`<div class="big"><${Left} until=${timer.next_attempt_at} /></div>`}
      <p>${story(timer)}</p>
    </div>`;
}

function story(timer) {
  const last = timer.attempts.at(-1);
  const next = timer.next_attempt_at;
  const isDue = Date.parse(next) <= now();
  switch (timer.status) {
    case "scheduled":
      return html`Its webhook ${isDue ? "was due" : "is sent"} at <${Moment} at=${next} />.`;
    case "retrying":
      return html`${result(last)}. The next attempt ${isDue ? "was" : "is"} due at <${Moment} at=${next} />.`;
    case "delivering":
      return "Its webhook is being sent.";
    case "delivered":
      return `Delivered ${seconds(last.lateness)} late, ${result(last)}.`;
    case "failed":
      return `Given up after ${plural(last.number, "attempt")}: ${timer.failure}.`;
    default:
      return "Nothing is sent.";
  }
}

/** What the status allows. Cancelling, which can't be undone, is asked once more. */
function Actions({ timer, path, ask, say, again }) {
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const dialog = useRef();
  const run = async (method, where, done) => {
    setBusy(true);
    setError("");
    try {
      await ask(method, where);
      say(done);
    } catch (refused) {
      if (!refused.wantsKey) setError(refused.message);
    }
    document.querySelector("h1").focus(); // what was pressed may be gone with the old status
    await again();
    setBusy(false);
  };
  const cancel = () => {
    dialog.current.close();
    run("DELETE", path, "The timer is cancelled.");
  };
  const waits = WAITING.includes(timer.status);
  return html`
    <div class="row actions">
      ${waits && html`
        <button disabled=${busy}
          onClick=${() => run("POST", `${path}/fire`, "The webhook is on its way.")}>Fire now</button>
        <a class="button" href="#/timers/${encodeURIComponent(timer.id)}/reschedule">Reschedule</a>
        <button class="bad" disabled=${busy} onClick=${() => dialog.current.showModal()}>Cancel timer</button>`}
      ${timer.status === "failed" && html`
        <button class="main" disabled=${busy}
          onClick=${() => run("POST", `${path}/retry`, "The webhook is on its way again.")}>Retry</button>`}
    </div>
    <p class="error" role="alert">${error}</p>
    <dialog ref=${dialog} aria-labelledby="sure">
      <h2 id="sure">Cancel this timer?</h2>
      <p>Its webhook will never be sent.</p>
      <div class="row">
        <button class="bad" onClick=${cancel}>Cancel timer</button>
        <button autofocus onClick=${() => dialog.current.close()}>Keep it</button>
      </div>
    </dialog>`;
}

const Attempts = ({ timer }) => html`
  <section class="card" aria-labelledby="attempts">
    <h2 id="attempts">Attempts</h2>
    ${timer.attempts[0]?.number > 1 && html`<p class="quiet">Earlier ones are not kept.</p>`}
    <ol class="timeline">
      ${timer.attempts.map((attempt) => html`<${Attempt} key=${attempt.number} attempt=${attempt} />`)}
      ${timer.next_attempt_at && html`
        <li class="next"><p><b>Next</b> <${Moment} at=${timer.next_attempt_at} /></p>
          <p><${Left} until=${timer.next_attempt_at} word="in " /></p></li>`}
    </ol>
    ${!timer.attempts.length && !timer.next_attempt_at && html`<p>There was none.</p>`}
  </section>`;

const Attempt = ({ attempt }) => html`
  <li class=${succeeded(attempt) ? "good" : "bad"}>
    <p><b>${attempt.number}.</b> <${Moment} at=${attempt.at} /></p>
    <p><b>${result(attempt)}</b> in ${seconds(attempt.duration)}, ${seconds(attempt.lateness)} late</p>
    ${attempt.answer && html`<pre tabindex="0" aria-label="Answer of attempt ${attempt.number}">${attempt.answer}</pre>`}
  </li>`;

const Webhook = ({ timer }) => html`
  <section class="card" aria-labelledby="webhook">
    <h2 id="webhook">Webhook</h2>
    <p class="code url">${timer.method} ${timer.url}</p>
    ${Object.keys(timer.headers).length > 0 && html`
      <h3>Headers</h3><pre tabindex="0" aria-label="Headers">${lines(timer.headers)}</pre>`}
    ${timer.body && html`<h3>Body</h3><pre tabindex="0" aria-label="Body">${timer.body}</pre>`}
    <${Facts} of=${{
      Timeout: seconds(timer.timeout),
      Retries: `${plural(timer.retry.max_attempts, "attempt")}, waits of up to
        ${seconds(timer.retry.initial_delay)} at first, ${seconds(timer.retry.max_delay)} at most`,
      "If it fails": timer.on_failure && html`<span class="code url">${timer.on_failure}</span>`,
    }} />
  </section>`;

const More = ({ timer }) => html`
  <section class="card" aria-labelledby="more">
    <h2 id="more">Timer</h2>
    <${Facts} of=${{
      Deadline: html`<${Moment} at=${timer.fire_at} />`,
      Created: html`<${Moment} at=${timer.created_at} />`,
      Label: timer.label,
    }} />
    ${Object.keys(timer.metadata).length > 0 && html`
      <h3>Metadata</h3><${Facts} of=${timer.metadata} />`}
  </section>`;
