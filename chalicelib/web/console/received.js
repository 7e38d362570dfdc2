// What arrived at the receiver that the embedded server has for trying things out.

import { html } from "./preact.js";
import { now } from "./service.js";
import { Loading, Moment, useLoaded } from "./parts.js";
import { lines, seconds } from "./words.js";

const SHOWN = 2048; // bytes of a body that the service shows
const SIGNED = { valid: "signature valid", invalid: "signature invalid", missing: "not signed" };

export function Received({ ask, receiver }) {
  const loaded = useLoaded("received", () => ask("GET", "_receiver"), () => now() + 1000);
  const arrivals = loaded.data?.arrivals;
  return html`
    <h1 tabindex="-1">Received</h1>
    <p class="quiet">What came to <span class="code">${receiver}…</span>, the latest 100, until the server is
      stopped.</p>
    <${Loading} loaded=${loaded} what="what arrived" />
    ${arrivals?.length === 0 && html`
      <p class="note">Nothing yet. <a href="#/new">Set a timer</a> of a few seconds, and watch it arrive.</p>`}
    <ol class="arrivals">
      ${arrivals?.map((arrival) => html`<${Arrival} key=${arrival.at + arrival.path} arrival=${arrival} />`)}
    </ol>`;
}

const Arrival = ({ arrival }) => html`
  <li class="card">
    <details>
      <summary>
        <${Moment} at=${arrival.at} />
        <span class="code url">${arrival.method} ${arrival.path}</span>
        <span class="state ${arrival.signature}">${SIGNED[arrival.signature]}</span>
        ${arrival.lateness !== null && html`<span>${seconds(arrival.lateness)} after the deadline</span>`}
      </summary>
      ${arrival.headers["webhook-id"] && html`
        <p><a href="#/timers/${encodeURIComponent(arrival.headers["webhook-id"])}">The timer</a></p>`}
      <h2>Headers</h2><pre tabindex="0" aria-label="Headers">${lines(arrival.headers)}</pre>
      <h2>Body</h2>
      ${arrival.body
        ? html`
          ${arrival.size > SHOWN && html`<p class="quiet">It begins so, and has ${arrival.size} bytes.</p>`}
          <pre tabindex="0" aria-label="Body">${arrival.body}</pre>`
        : html`<p>${arrival.size ? `${arrival.size} bytes, too many to keep.` : "Empty."}</p>`}
    </details>
  </li>`;
