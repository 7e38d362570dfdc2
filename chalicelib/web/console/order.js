// The forms that say what is wanted: a new timer, another moment.

import { html, useEffect, useRef, useState } from "./preact.js";
import { Loading, useLoaded } from "./parts.js";
import { address } from "./service.js";
import { called, members } from "./words.js";

const METHODS = ["POST", "PUT", "PATCH", "DELETE", "GET"];
const PARTS = ["hours", "minutes", "seconds"];

/** What was written in a field can't be understood. */
class Misread extends Error {
  constructor(field, detail) {
    super(detail);
    this.field = field;
  }
}

export function NewTimer({ ask, say, receiver }) {
  const url = receiver ? address(`.${receiver}hello`) : "";
  const once = useRef(newKey()); // a second press makes no second timer
  const send = async (fields) => {
    const headers = { "Idempotency-Key": once.current };
    const timer = await ask("POST", "timers", { body: order(fields), headers });
    say("The timer is set.");
    location.hash = `#/timers/${encodeURIComponent(timer.id)}`;
  };
  return html`
    <h1 tabindex="-1">New timer</h1>
    <${Form} send=${send} act="Set timer" back="#/" onInput=${() => (once.current = newKey())}>
      <${When} />
      <fieldset class="card"><legend>Webhook</legend>
        <${Field} label="URL" hint="{id} in it stands for the timer's id">
          <input type="url" name="url" key=${url} defaultValue=${url} placeholder="https://example.com/hook/{id}" /><//>
        <${Field} label="Label" hint="to find timers by"><input name="label" /><//>
      </fieldset>
      <details class="card"><summary>Method, headers, body, retries …</summary>
        <${Field} label="Method">
          <select name="method">${METHODS.map((it) => html`<option key=${it} value=${it}>${it}</option>`)}</select><//>
        <${Field} label="Headers" hint="name: value, one a line">
          <textarea name="headers" rows="3" spellcheck="false"></textarea><//>
        <${Field} label="Body">
          <textarea name="body" rows="4" spellcheck="false"></textarea><//>
        <label class="check"><input type="checkbox" name="json" /> The body is JSON</label>
        <${Field} label="Timeout" hint="seconds, 1 to 30">
          <input name="timeout" inputmode="numeric" placeholder="30" /><//>
        <div class="columns">
          <${Field} label="Attempts">
            <input name="max_attempts" inputmode="numeric" placeholder="8" /><//>
          <${Field} label="First wait, seconds">
            <input name="initial_delay" inputmode="numeric" placeholder="10" /><//>
          <${Field} label="Longest wait, seconds">
            <input name="max_delay" inputmode="numeric" placeholder="43200" /><//>
        </div>
        <${Field} label="If it fails, tell" hint="a URL">
          <input type="url" name="on_failure" /><//>
        <${Field} label="Metadata" hint="name: value, one a line; it is not sent">
          <textarea name="metadata" rows="2" spellcheck="false"></textarea><//>
      </details>
    <//>`;
}

export function Reschedule({ id, ask, say }) {
  const path = `timers/${encodeURIComponent(id)}`;
  const loaded = useLoaded(id, () => ask("GET", path));
  const name = called(loaded.data ?? { id });
  const back = `#/timers/${encodeURIComponent(id)}`;
  const send = async (fields) => {
    await ask("PATCH", path, { body: JSON.stringify(when(fields)) });
    say("The timer has a new deadline.");
    location.hash = back;
  };
  return html`
    <div class="title">
      <h1 tabindex="-1">Reschedule ${name}</h1>
      ${name !== id && html`<p class="code quiet">${id}</p>`}
    </div>
    <${Loading} loaded=${loaded} what="the timer" />
    ${loaded.data && html`
      <${Form} send=${send} act="Reschedule" back=${back}><${When} /><//>`}`;
}

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (it) => it.toString(36)).join("");
}

/** A form: what the service says of a field stands beside it, and has the focus. */
function Form({ send, act, back, onInput, children }) {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const form = useRef();
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await send(Object.fromEntries(new FormData(form.current)));
    } catch (refused) {
      if (!refused.wantsKey) {
        setError({ text: refused.message, field: refused.field ?? fieldOf(refused.pointer) });
      }
    }
    setBusy(false);
  };
  useEffect(() => mark(form.current, error), [error]);
  return html`
    <form ref=${form} class="order" noValidate onSubmit=${submit} onInput=${onInput}>
      ${children}
      <p class="error" role="alert" id="refusal">${error?.text}</p>
      <div class="row">
        <button class="main" disabled=${busy}>${act}</button><a class="button" href=${back}>Back</a>
      </div>
    </form>`;
}

/** The fields that a JSON pointer may be about; what is in `retry` has one of its own. */
function fieldOf(pointer = "") {
  const [, first, second] = pointer.split("/");
  return first === "retry" ? [first, second ?? first] : [first];
}

function mark(form, error) {
  for (const marked of form.querySelectorAll("[aria-invalid]")) {
    marked.removeAttribute("aria-invalid");
    marked.removeAttribute("aria-errormessage");
  }
  const named = [error?.field ?? []].flat().toReversed().map((name) => form.elements.namedItem(name));
  const field = named.find((it) => it instanceof HTMLElement);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "refusal");
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}

const Field = ({ label, hint, children }) => html`
  <label class="field"><span>${label}${hint && html` <small>${hint}</small>`}</span>${children}</label>`;

/** The three ways to say when, of which one is shown and counts. */
function When() {
  const [way, setWay] = useState("parts");
  const ways = { parts: "Hours, minutes, seconds", delay: "A duration", at: "A moment" };
  return html`
    <fieldset class="card"><legend>When</legend>
      <div class="ways">${Object.entries(ways).map(([name, word]) => html`
        <label key=${name}><input type="radio" name="way" value=${name} checked=${way === name}
          onChange=${() => setWay(name)} /> ${word}</label>`)}
      </div>
      <div class="columns" hidden=${way !== "parts"}>
        ${PARTS.map((name) => html`
          <${Field} key=${name} label=${name}>
            <input name=${name} inputmode="numeric" placeholder="0" /><//>`)}
      </div>
      <div hidden=${way !== "delay"}>
        <${Field} label="Delay" hint="seconds, or as in 1d2h30m or PT1H30M">
          <input name="delay" placeholder="1h30m" /><//>
      </div>
      <div hidden=${way !== "at"}>
        <${Field} label="Moment" hint="in this browser's time zone">
          <input name="fire_at" type="datetime-local" step="1" /><//>
      </div>
    </fieldset>`;
}

// What the service checks is not checked here: it knows better, and says it better.

function when(fields) {
  if (fields.way === "delay") return { delay: number(fields.delay) };
  if (fields.way === "at") {
    if (!fields.fire_at) throw new Misread("fire_at", "Say at which moment.");
    return { fire_at: new Date(fields.fire_at).toISOString() };
  }
  if (!PARTS.some((name) => fields[name].trim())) throw new Misread(PARTS[0], "Say in how long.");
  return numbers(fields, PARTS);
}

/** What is asked for, as JSON; a body that is JSON itself is in it as it was written. */
function order(fields) {
  const wanted = JSON.stringify({ ...when(fields), ...webhook(fields) });
  if (!fields.body || !fields.json) return wanted;
  read("body", () => json(fields.body));
  return `${wanted.slice(0, -1)},"body":${fields.body}}`;
}

function webhook(fields) {
  const wanted = { url: fields.url.trim(), method: fields.method, ...numbers(fields, ["timeout"]) };
  for (const name of ["label", "on_failure"]) {
    if (fields[name].trim()) wanted[name] = fields[name].trim();
  }
  if (fields.headers.trim()) wanted.headers = read("headers", () => members(fields.headers, lower));
  if (fields.metadata.trim()) wanted.metadata = read("metadata", () => members(fields.metadata));
  if (fields.body && !fields.json) wanted.body = fields.body;
  const retry = numbers(fields, ["max_attempts", "initial_delay", "max_delay"]);
  return Object.keys(retry).length ? { ...wanted, retry } : wanted;
}

const lower = (name) => name.toLowerCase();

const number = (text) => (/^\s*-?\d{1,15}\s*$/.test(text) ? Number(text) : text.trim());

const numbers = (fields, names) =>
  Object.fromEntries(names.filter((it) => fields[it].trim()).map((it) => [it, number(fields[it])]));

function json(text) {
  try {
    JSON.parse(text);
  } catch {
    throw new SyntaxError("The body is no JSON.");
  }
}

function read(field, parse) {
  try {
    return parse();
  } catch (error) {
    throw new Misread(field, error.message);
  }
}
