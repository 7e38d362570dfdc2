// The page of one timer: status, actions, attempts, webhook.

import { now } from "./api.js";
import {
  DateTime, LoadingState, nextChange, Properties, Status, TimeLeft, usePolling, useTick,
} from "./components.js";
import { count, displayName, duration, outcome, succeeded, toLines } from "./format.js";
import { html, useRef, useState } from "./preact.js";

const WAITING = ["scheduled", "retrying"];

export function Timer({ id, request, notify }) {
  const path = `timers/${encodeURIComponent(id)}`;
  const result = usePolling(id, () => request("GET", path), (timer) => nextChange([timer]));
  const timer = result.data;
  const name = displayName(timer ?? { id });
  return html`
    <div class="title">
      <p><a href="#/">← All timers</a></p>
      <h1 tabindex="-1">${name}</h1>
      ${name !== id && html`<p class="code muted">${id}</p>`}
    </div>
    <${LoadingState} result=${result} what="the timer" />
    ${timer && html`
      <${Summary} timer=${timer} />
      <${Actions} timer=${timer} path=${path} request=${request} notify=${notify} reload=${result.reload} />
      <div class="two-columns">
        <${Attempts} timer=${timer} />
        <div><${Webhook} timer=${timer} /><${Details} timer=${timer} /></div>
      </div>`}`;
}

function Summary({ timer }) {
  useTick();
  return html`
    <div class="card summary">
      <${Status} of=${timer.status} />
      ${timer.next_attempt_at && html`<div class="big"><${TimeLeft} until=${timer.next_attempt_at} /></div>`}
      <p>${describe(timer)}</p>
    </div>`;
}

function describe(timer) {
  const last = timer.attempts.at(-1);
  const next = timer.next_attempt_at;
  const isDue = Date.parse(next) <= now();
  switch (timer.status) {
    case "scheduled":
      return html`The webhook ${isDue ? "was due" : "will be sent"} at <${DateTime} at=${next} />.`;
    case "retrying":
      return html`${outcome(last)}. The next attempt ${isDue ? "was" : "is"} due at <${DateTime} at=${next} />.`;
    case "delivering":
      return "The webhook is being sent.";
    case "delivered":
      return `Delivered ${duration(last.lateness)} late (${outcome(last)}).`;
    case "failed":
      return `Failed after ${count(last.number, "attempt")}: ${timer.failure}.`;
    default:
      return "The webhook will not be sent.";
  }
}

/** The buttons that the timer's status allows. Cancelling asks for confirmation. */
function Actions({ timer, path, request, notify, reload }) {
  const [error, setError] = useState("");
  const [isBusy, setBusy] = useState(false);
  const dialog = useRef();
  const run = async (method, actionPath, message) => {
    setBusy(true);
    setError("");
    try {
      await request(method, actionPath);
      notify(message);
    } catch (failure) {
      if (!failure.needsKey) setError(failure.message);
    }
    document.querySelector("h1").focus(); // the new status may have no such button
    await reload();
    setBusy(false);
  };
  const cancel = () => {
    dialog.current.close();
    run("DELETE", path, "Timer cancelled.");
  };
  return html`
    <div class="row actions">
      ${WAITING.includes(timer.status) && html`
        <button disabled=${isBusy}
          onClick=${() => run("POST", `${path}/fire`, "Timer fired.")}>Fire now</button>
        <a class="button" href="#/timers/${encodeURIComponent(timer.id)}/reschedule">Reschedule</a>
        <button class="danger" disabled=${isBusy} onClick=${() => dialog.current.showModal()}>Cancel timer</button>`}
      ${timer.status === "failed" && html`
        <button class="primary" disabled=${isBusy}
          onClick=${() => run("POST", `${path}/retry`, "Retry started.")}>Retry</button>`}
    </div>
    <p class="error" role="alert">${error}</p>
    <dialog ref=${dialog} aria-labelledby="confirm">
      <h2 id="confirm">Cancel this timer?</h2>
      <p>Its webhook will not be sent. You cannot undo this.</p>
      <div class="row">
        <button class="danger" onClick=${cancel}>Cancel timer</button>
        <button autofocus onClick=${() => dialog.current.close()}>Keep timer</button>
      </div>
    </dialog>`;
}

const Attempts = ({ timer: { attempts, next_attempt_at: next } }) => html`
  <section class="card" aria-labelledby="attempts">
    <h2 id="attempts">Attempts</h2>
    ${attempts[0]?.number > 1 && html`<p class="muted">Earlier attempts are not kept.</p>`}
    <ol class="timeline">
      ${attempts.map((attempt) => html`<${Attempt} key=${attempt.number} attempt=${attempt} />`)}
      ${next && html`
        <li><p><b>Next</b> <${DateTime} at=${next} /></p>
          <p><${TimeLeft} until=${next} prefix="in " /></p></li>`}
    </ol>
    ${!attempts.length && !next && html`<p>No attempts yet.</p>`}
  </section>`;

const Attempt = ({ attempt }) => html`
  <li class=${succeeded(attempt) ? "delivered" : "failed"}>
    <p><b>${attempt.number}.</b> <${DateTime} at=${attempt.at} /></p>
    <p><b>${outcome(attempt)}</b> in ${duration(attempt.duration)}, ${duration(attempt.lateness)} late</p>
    ${attempt.location && html`<p>The receiver redirects to <span class="code url">${attempt.location}</span>. Redirects are not followed.</p>`}
    ${attempt.answer && html`
      <pre tabindex="0" aria-label="Response to attempt ${attempt.number}">${attempt.answer}</pre>`}
  </li>`;

const Webhook = ({ timer }) => html`
  <section class="card" aria-labelledby="webhook">
    <h2 id="webhook">Webhook</h2>
    <p class="code url">${timer.method} ${timer.url}</p>
    ${Object.keys(timer.headers).length > 0 && html`
      <h3>Headers</h3><pre tabindex="0" aria-label="Headers">${toLines(timer.headers)}</pre>`}
    ${timer.body && html`<h3>Body</h3><pre tabindex="0" aria-label="Body">${timer.body}</pre>`}
    <${Properties} of=${{
      Timeout: duration(timer.timeout),
      "Max attempts": String(timer.retry.max_attempts),
      "Retry delay": `up to ${duration(timer.retry.initial_delay)}, growing to ${duration(timer.retry.max_delay)}`,
      "Notify on failure": timer.on_failure && html`<span class="code url">${timer.on_failure}</span>`,
    }} />
  </section>`;

const Details = ({ timer }) => html`
  <section class="card" aria-labelledby="details">
    <h2 id="details">Details</h2>
    <${Properties} of=${{
      Deadline: html`<${DateTime} at=${timer.fire_at} />`,
      Created: html`<${DateTime} at=${timer.created_at} />`,
      Label: timer.label,
    }} />
    ${Object.keys(timer.metadata).length > 0 && html`
      <h3>Metadata</h3><${Properties} of=${timer.metadata} />`}
  </section>`;
