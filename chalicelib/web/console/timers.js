// The list of timers, with filters and pages.

import { DateTime, LoadingState, nextChange, Status, TimeLeft, usePolling } from "./components.js";
import { displayName, STATUS_ICONS } from "./format.js";
import { html, useEffect, useRef } from "./preact.js";

const PAGE_SIZE = 25;
const DATE_FILTERS = ["from", "to"];
const FILTERS = ["status", "label", ...DATE_FILTERS];
const TYPING_PAUSE = 1000; // milliseconds without typing until a date filter applies

/** Scroll to the list and focus its heading: the link that was clicked may disappear. */
export function focusList() {
  const heading = document.getElementById("timers");
  heading.scrollIntoView();
  heading.focus();
}

export function Timers({ query, request }) {
  const parameters = new URLSearchParams([["limit", PAGE_SIZE], ...query]).toString();
  const result = usePolling(
    parameters,
    () => request("GET", `timers?${parameters}`),
    ({ timers }) => nextChange(timers),
  );
  return html`
    <section class="list" aria-labelledby="timers">
      <h2 id="timers" tabindex="-1">Timers</h2>
      <${Filters} query=${query} />
      <${LoadingState} result=${result} what="timers" />
      ${result.data && html`<${Page} query=${query} ...${result.data} />`}
    </section>`;
}

/** The link to the list with these parameters; empty ones are left out. */
const listUrl = (parameters) => `#/?${new URLSearchParams(parameters.filter(([, value]) => value))}`;

function Filters({ query }) {
  const form = useRef();
  const pending = useRef();
  useEffect(() => {
    for (const name of FILTERS) {
      const [field, text] = [form.current.elements[name], toFieldValue(name, query)];
      if (field.value !== text) field.value = text;
    }
    return () => clearTimeout(pending.current);
  }, [query.toString()]);
  const apply = ({ target: { name, value } }) => {
    clearTimeout(pending.current);
    if (value === toFieldValue(name, query)) return;
    const changed = { ...Object.fromEntries(query), [name]: toParameter(name, value), cursor: "" };
    location.hash = listUrl(Object.entries(changed));
  };
  // A date is already valid after each digit of its year: wait until the typing pauses.
  const applyLater = (event) => {
    clearTimeout(pending.current);
    pending.current = setTimeout(apply, TYPING_PAUSE, event);
  };
  const isFiltered = FILTERS.some((name) => query.has(name));
  return html`
    <form ref=${form} class="filters" role="search" aria-label="Timers"
      onSubmit=${(event) => event.preventDefault()}>
      <div><label for="status">Status</label>
        <select id="status" name="status" onChange=${apply}>
          <option value="">any</option>
          ${Object.keys(STATUS_ICONS).map((it) => html`<option key=${it} value=${it}>${it}</option>`)}
        </select></div>
      <div><label for="label">Label</label>
        <input id="label" name="label" onChange=${apply} placeholder="exact label" autocomplete="off" /></div>
      ${DATE_FILTERS.map((name) => html`
        <div key=${name}><label for=${name}>${name === "from" ? "Created from" : "Created before"}</label>
          <input id=${name} name=${name} type="datetime-local" onChange=${applyLater} onBlur=${apply}
            onKeyDown=${(event) => event.key === "Enter" && apply(event)} /></div>`)}
      ${isFiltered && html`<a class="button" href="#/" onClick=${focusList}>Clear filters</a>`}
    </form>`;
}

/** The query parameter of a field's value: dates become UTC. */
const toParameter = (name, value) =>
  value && DATE_FILTERS.includes(name) ? new Date(value).toISOString() : value;

/** The field's value of a query parameter: dates become local time. */
function toFieldValue(name, query) {
  const text = query.get(name) ?? "";
  if (!DATE_FILTERS.includes(name)) return text;
  const at = new Date(text);
  if (Number.isNaN(at.valueOf())) return "";
  return new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

function Page({ query, timers, next_cursor: next }) {
  const parameters = [...query].filter(([name]) => name !== "cursor");
  return html`
    ${timers.length ? html`<${Table} timers=${timers} />` : html`<${NoTimers} query=${query} next=${next} />`}
    <nav class="row" aria-label="Pages">
      ${query.has("cursor") && html`
        <a class="button" href=${listUrl(parameters)} onClick=${focusList}>Newest</a>`}
      ${next && html`
        <a class="button" href=${listUrl([...parameters, ["cursor", next]])} onClick=${focusList}>Older</a>`}
    </nav>`;
}

function NoTimers({ query, next }) {
  if (next) return html`<p class="note">No timers on this page match. Older timers may match.</p>`;
  if ([...query].length) return html`<p class="note">No timers match.</p>`;
  return html`<p class="note">No timers yet. <a href="#/new">Create your first timer</a>.</p>`;
}

// The explicit roles keep the table a table for screen readers when CSS changes its layout.
const Table = ({ timers }) => html`
  <table role="table">
    <thead role="rowgroup"><tr role="row">
      ${["Status", "Timer", "Due", "Time left", "Webhook", "Attempts"].map((name) => html`
        <th key=${name} role="columnheader" scope="col">${name}</th>`)}
    </tr></thead>
    <tbody role="rowgroup">${timers.map((timer) => html`<${Row} key=${timer.id} timer=${timer} />`)}</tbody>
  </table>`;

const Row = ({ timer }) => html`
  <tr role="row">
    <td role="cell"><${Status} of=${timer.status} /></td>
    <th role="rowheader" scope="row"><a href="#/timers/${encodeURIComponent(timer.id)}"
      class=${displayName(timer) === timer.id ? "code" : undefined}>${displayName(timer)}</a></th>
    <td role="cell"><${DateTime} at=${timer.next_attempt_at ?? timer.fire_at} /></td>
    <td role="cell">${timer.next_attempt_at && html`<${TimeLeft} until=${timer.next_attempt_at} />`}</td>
    <td role="cell" class="url">${timer.method} ${timer.url}</td>
    <td role="cell" class="number">${timer.attempts.at(-1)?.number ?? 0}</td>
  </tr>`;
