// The view of requests that the built-in receiver of the standalone server got.

import { now } from "./api.js";
import { DateTime, LoadingState, usePolling } from "./components.js";
import { duration, toLines } from "./format.js";
import { html } from "./preact.js";

const MAX_BODY = 2048; // bytes of a body that the service returns
const SIGNATURES = { valid: "signature valid", invalid: "signature invalid", missing: "not signed" };

export function Received({ request, receiver }) {
  const result = usePolling("received", () => request("GET", "_receiver"), () => now() + 1000);
  const arrivals = result.data?.arrivals;
  return html`
    <h1 tabindex="-1">Received webhooks</h1>
    <p class="muted">The last 100 requests to <span class="code">${receiver}…</span>, kept until the server
      stops.</p>
    <${LoadingState} result=${result} what="requests" />
    ${arrivals?.length === 0 && html`
      <p class="note">No requests yet. <a href="#/new">Create a timer</a> with a delay of a few seconds to see
        one.</p>`}
    <ol class="arrivals">
      ${arrivals?.map((arrival) => html`<${Arrival} key=${arrival.at + arrival.path} arrival=${arrival} />`)}
    </ol>`;
}

const Arrival = ({ arrival }) => html`
  <li class="card">
    <details>
      <summary>
        <${DateTime} at=${arrival.at} />
        <span class="code url">${arrival.method} ${arrival.path}</span>
        <span class="status ${arrival.signature}">${SIGNATURES[arrival.signature]}</span>
        ${arrival.lateness !== null && html`<span>${duration(arrival.lateness)} after the deadline</span>`}
      </summary>
      ${arrival.headers["webhook-id"] && html`
        <p><a href="#/timers/${encodeURIComponent(arrival.headers["webhook-id"])}">View timer</a></p>`}
      <h2>Headers</h2><pre tabindex="0" aria-label="Headers">${toLines(arrival.headers)}</pre>
      <h2>Body</h2><${Body} arrival=${arrival} />
    </details>
  </li>`;

function Body({ arrival: { body, size } }) {
  if (!body) return html`<p>${size ? `${size} bytes, too large to keep.` : "Empty"}</p>`;
  return html`
    ${size > MAX_BODY && html`<p class="muted">The first ${MAX_BODY} of ${size} bytes:</p>`}
    <pre tabindex="0" aria-label="Body">${body}</pre>`;
}
