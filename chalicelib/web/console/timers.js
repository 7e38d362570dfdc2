// The list of timers: filters, pages.

import { html, useEffect, useRef } from "./preact.js";
import { Left, Loading, Moment, nextChange, State, useLoaded } from "./parts.js";
import { called, STATES } from "./words.js";

const PAGE = 25;
const MOMENTS = ["from", "to"];
const FILTERS = ["status", "label", ...MOMENTS];
const SETTLED = 1000; // milliseconds that a moment stays as it is written until it counts

/** Go to where the list begins: what leads there may be far from it, and gone with the old list. */
export function toList() {
  const heading = document.getElementById("timers");
  heading.scrollIntoView();
  heading.focus();
}

export function Timers({ query, ask }) {
  const asked = new URLSearchParams([["limit", PAGE], ...query]).toString();
  const loaded = useLoaded(
    asked,
    () => ask("GET", `timers?${asked}`),
    ({ timers }) => nextChange(timers),
  );
  return html`
    <section class="list" aria-labelledby="timers">
      <h2 id="timers" tabindex="-1">Timers</h2>
      <${Filters} query=${query} />
      <${Loading} loaded=${loaded} what="timers" />
      ${loaded.data && html`<${Page} query=${query} ...${loaded.data} />`}
    </section>`;
}

/** The address of the list with these filters; it begins with the newest again. */
const address = (entries) => `#/?${new URLSearchParams(entries.filter(([, value]) => value))}`;

function Filters({ query }) {
  const form = useRef();
  const settling = useRef();
  useEffect(() => {
    for (const name of FILTERS) {
      const [field, text] = [form.current.elements[name], asShown(name, query)];
      if (field.value !== text) field.value = text;
    }
    return () => clearTimeout(settling.current);
  }, [query.toString()]);
  const change = ({ target: { name, value } }) => {
    clearTimeout(settling.current);
    if (value === asShown(name, query)) return;
    const chosen = { ...Object.fromEntries(query), [name]: asGiven(name, value), cursor: "" };
    location.hash = address(Object.entries(chosen));
  };
  // A moment that is typed is one after each digit of its year.
  const settle = (event) => {
    clearTimeout(settling.current);
    settling.current = setTimeout(change, SETTLED, event);
  };
  const isFiltered = FILTERS.some((name) => query.has(name));
  return html`
    <form ref=${form} class="filters" role="search" aria-label="Timers"
      onSubmit=${(event) => event.preventDefault()}>
      <div><label for="status">Status</label>
        <select id="status" name="status" onChange=${change}>
          <option value="">any</option>
          ${Object.keys(STATES).map((state) => html`<option key=${state} value=${state}>${state}</option>`)}
        </select></div>
      <div><label for="label">Label</label>
        <input id="label" name="label" onChange=${change} placeholder="exactly" autocomplete="off" /></div>
      ${MOMENTS.map((name) => html`
        <div key=${name}><label for=${name}>${name === "from" ? "Created from" : "Created until"}</label>
          <input id=${name} name=${name} type="datetime-local" onChange=${settle} onBlur=${change}
            onKeyDown=${(event) => event.key === "Enter" && change(event)} /></div>`)}
      ${isFiltered && html`<a class="button" href="#/" onClick=${toList}>Show all</a>`}
    </form>`;
}

/** A filter in the address, which is as the API wants it, and in its field, where moments are local. */
const asGiven = (name, value) =>
  value && MOMENTS.includes(name) ? new Date(value).toISOString() : value;

function asShown(name, query) {
  const text = query.get(name) ?? "";
  if (!MOMENTS.includes(name)) return text;
  const at = new Date(text);
  if (Number.isNaN(at.valueOf())) return "";
  return new Date(at - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

function Page({ query, timers, next_cursor: next }) {
  const entries = [...query].filter(([name]) => name !== "cursor");
  return html`
    ${timers.length ? html`<${Table} timers=${timers} />` : html`<${Nothing} query=${query} next=${next} />`}
    <nav class="row" aria-label="Pages">
      ${query.has("cursor") && html`<a class="button" href=${address(entries)} onClick=${toList}>Newest</a>`}
      ${next && html`
        <a class="button" href=${address([...entries, ["cursor", next]])} onClick=${toList}>Older</a>`}
    </nav>`;
}

function Nothing({ query, next }) {
  if (next) return html`<p class="note">None of those that were looked at match; older ones may.</p>`;
  if ([...query].length) return html`<p class="note">No timers match.</p>`;
  return html`<p class="note">There are no timers yet. <a href="#/new">Make the first one</a>.</p>`;
}

// The roles say again what a browser forgets of a table that is laid out in another way.
const Table = ({ timers }) => html`
  <table role="table">
    <thead role="rowgroup"><tr role="row">
      ${["Status", "Timer", "Due", "Left", "Webhook", "Attempts"].map((name) => html`
        <th key=${name} role="columnheader" scope="col">${name}</th>`)}
    </tr></thead>
    <tbody role="rowgroup">${timers.map((timer) => html`<${Row} key=${timer.id} timer=${timer} />`)}</tbody>
  </table>`;

const Row = ({ timer }) => html`
  <tr role="row">
    <td role="cell"><${State} of=${timer.status} /></td>
    <th role="rowheader" scope="row"><a href="#/timers/${encodeURIComponent(timer.id)}"
      class=${called(timer) === timer.id ? "code" : undefined}>${called(timer)}</a></th>
    <td role="cell"><${Moment} at=${timer.next_attempt_at ?? timer.fire_at} /></td>
    <td role="cell">${timer.next_attempt_at && html`<${Left} until=${timer.next_attempt_at} />`}</td>
    <td role="cell" class="url">${timer.method} ${timer.url}</td>
    <td role="cell" class="number">${timer.attempts.at(-1)?.number ?? 0}</td>
  </tr>`;
