// The forms that create a timer and reschedule one.

import { absoluteUrl } from "./api.js";
import { LoadingState, usePolling } from "./components.js";
import { displayName, parseLines } from "./format.js";
import { html, useEffect, useRef, useState } from "./preact.js";

const METHODS = ["POST", "PUT", "PATCH", "DELETE", "GET"];
const UNITS = ["hours", "minutes", "seconds"];

/** A field cannot be parsed. Everything else is left to the service to check. */
class FieldError extends Error {
  constructor(field, detail) {
    super(detail);
    this.field = field;
  }
}

export function NewTimer({ request, notify, receiver }) {
  const url = receiver ? absoluteUrl(`.${receiver}hello`) : "";
  // The key changes with the form: resending the same form creates no second timer.
  const idempotencyKey = useRef(newIdempotencyKey());
  const renewKey = () => (idempotencyKey.current = newIdempotencyKey());
  const submit = async (fields) => {
    const headers = { "Idempotency-Key": idempotencyKey.current };
    const timer = await request("POST", "timers", { body: timerJson(fields), headers });
    notify("Timer created.");
    location.hash = `#/timers/${encodeURIComponent(timer.id)}`;
  };
  return html`
    <h1 tabindex="-1">New timer</h1>
    <${Form} onSubmit=${submit} action="Create timer" back="#/" onInput=${renewKey}>
      <${Deadline} />
      <fieldset class="card"><legend>Webhook</legend>
        <${Field} label="URL" hint="{id} is replaced by the timer's ID">
          <input type="url" name="url" key=${url} defaultValue=${url} placeholder="https://example.com/hook/{id}" /><//>
        <${Field} label="Label" hint="to find the timer in the list"><input name="label" /><//>
      </fieldset>
      <${MoreOptions} />
    <//>`;
}

const MoreOptions = () => html`
  <details class="card"><summary>More: method, headers, body, retries, metadata</summary>
    <${Field} label="Method">
      <select name="method">${METHODS.map((it) => html`<option key=${it} value=${it}>${it}</option>`)}</select><//>
    <${Field} label="Headers" hint="one “name: value” per line">
      <textarea name="headers" rows="3" spellcheck="false"></textarea><//>
    <${Field} label="Body">
      <textarea name="body" rows="4" spellcheck="false"></textarea><//>
    <label class="check"><input type="checkbox" name="json" /> The body is JSON</label>
    <${Field} label="Timeout" hint="seconds, 1 to 30">
      <input name="timeout" inputmode="numeric" placeholder="30" /><//>
    <div class="columns">
      <${Field} label="Max attempts">
        <input name="max_attempts" inputmode="numeric" placeholder="8" /><//>
      <${Field} label="First retry delay" hint="seconds">
        <input name="initial_delay" inputmode="numeric" placeholder="10" /><//>
      <${Field} label="Max retry delay" hint="seconds">
        <input name="max_delay" inputmode="numeric" placeholder="43200" /><//>
    </div>
    <${Field} label="Notify on failure" hint="URL">
      <input type="url" name="on_failure" /><//>
    <${Field} label="Metadata" hint="one “name: value” per line, not sent with the webhook">
      <textarea name="metadata" rows="2" spellcheck="false"></textarea><//>
  </details>`;

export function Reschedule({ id, request, notify }) {
  const path = `timers/${encodeURIComponent(id)}`;
  const result = usePolling(id, () => request("GET", path));
  const name = displayName(result.data ?? { id });
  const back = `#/timers/${encodeURIComponent(id)}`;
  const submit = async (fields) => {
    await request("PATCH", path, { body: JSON.stringify(deadline(fields)) });
    notify("Timer rescheduled.");
    location.hash = back;
  };
  return html`
    <div class="title">
      <h1 tabindex="-1">Reschedule ${name}</h1>
      ${name !== id && html`<p class="code muted">${id}</p>`}
    </div>
    <${LoadingState} result=${result} what="the timer" />
    ${result.data && html`
      <${Form} onSubmit=${submit} action="Reschedule" back=${back}><${Deadline} /><//>`}`;
}

function newIdempotencyKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (it) => it.toString(36)).join("");
}

/** A form with a submit button. After an error, the field at fault is marked and focused. */
function Form({ onSubmit, action, back, onInput, children }) {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const form = useRef();
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onSubmit(Object.fromEntries(new FormData(form.current)));
    } catch (failure) {
      if (!failure.needsKey) {
        const fields = failure.field ? [failure.field] : fieldsOf(failure.pointer);
        setError({ message: failure.message, fields });
      }
    }
    setBusy(false);
  };
  useEffect(() => markInvalid(form.current, error?.fields ?? []), [error]);
  return html`
    <form ref=${form} class="form" noValidate onSubmit=${submit} onInput=${onInput}>
      ${children}
      <p class="error" role="alert" id="form-error">${error?.message}</p>
      <div class="row">
        <button class="primary" disabled=${isBusy}>${action}</button><a class="button" href=${back}>Back</a>
      </div>
    </form>`;
}

/** The candidates for the field that a JSON pointer means, best first. */
function fieldsOf(pointer = "") {
  const [, first, second] = pointer.split("/");
  return first === "retry" && second ? [second, first] : [first];
}

function markInvalid(form, fields) {
  for (const marked of form.querySelectorAll("[aria-invalid]")) {
    marked.removeAttribute("aria-invalid");
    marked.removeAttribute("aria-errormessage");
  }
  const field = fields
    .map((name) => form.elements.namedItem(name))
    .find((it) => it instanceof HTMLElement);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "form-error");
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}

const Field = ({ label, hint, children }) => html`
  <label class="field"><span>${label}${hint && html` <small>${hint}</small>`}</span>${children}</label>`;

/** Three ways to enter a deadline. Only the selected one is shown and sent. */
function Deadline() {
  const [selected, select] = useState("units");
  const modes = { units: "Hours, minutes, seconds", delay: "Duration", fire_at: "Date and time" };
  return html`
    <fieldset class="card"><legend>Deadline</legend>
      <div class="choices">${Object.entries(modes).map(([mode, name]) => html`
        <label key=${mode}><input type="radio" name="mode" value=${mode} checked=${selected === mode}
          onChange=${() => select(mode)} /> ${name}</label>`)}
      </div>
      <div class="columns" hidden=${selected !== "units"}>
        ${UNITS.map((name) => html`
          <${Field} key=${name} label=${name[0].toUpperCase() + name.slice(1)}>
            <input name=${name} inputmode="numeric" placeholder="0" /><//>`)}
      </div>
      <div hidden=${selected !== "delay"}>
        <${Field} label="Delay" hint="in seconds, or like 1d2h30m or PT1H30M">
          <input name="delay" placeholder="1h30m" /><//>
      </div>
      <div hidden=${selected !== "fire_at"}>
        <${Field} label="Fire at" hint="in your time zone">
          <input name="fire_at" type="datetime-local" step="1" /><//>
      </div>
    </fieldset>`;
}

/** The request fields for the deadline. */
function deadline(fields) {
  if (fields.mode === "delay") return { delay: toNumber(fields.delay) };
  if (fields.mode === "fire_at") {
    if (!fields.fire_at) throw new FieldError("fire_at", "Enter a date and time.");
    return { fire_at: new Date(fields.fire_at).toISOString() };
  }
  if (!UNITS.some((name) => fields[name].trim())) throw new FieldError(UNITS[0], "Enter a delay.");
  return toNumbers(fields, UNITS);
}

/** The request as JSON. A JSON body is inserted verbatim, which keeps its numbers exact. */
function timerJson(fields) {
  const json = JSON.stringify({ ...deadline(fields), ...webhook(fields) });
  if (!fields.body || !fields.json) return json;
  parseField("body", () => checkJson(fields.body));
  return `${json.slice(0, -1)},"body":${fields.body}}`;
}

/** The request fields for the webhook, without those left empty. */
function webhook(fields) {
  const timer = { url: fields.url.trim(), method: fields.method, ...toNumbers(fields, ["timeout"]) };
  for (const name of ["label", "on_failure"]) {
    if (fields[name].trim()) timer[name] = fields[name].trim();
  }
  if (fields.headers.trim()) {
    timer.headers = parseField("headers", () => parseLines(fields.headers, (name) => name.toLowerCase()));
  }
  if (fields.metadata.trim()) timer.metadata = parseField("metadata", () => parseLines(fields.metadata));
  if (fields.body && !fields.json) timer.body = fields.body;
  const retry = toNumbers(fields, ["max_attempts", "initial_delay", "max_delay"]);
  return Object.keys(retry).length ? { ...timer, retry } : timer;
}

/** An integer as a number; other text unchanged, for the service to reject. */
const toNumber = (text) => (/^\s*-?\d{1,15}\s*$/.test(text) ? Number(text) : text.trim());

const toNumbers = (fields, names) =>
  Object.fromEntries(names.filter((it) => fields[it].trim()).map((it) => [it, toNumber(fields[it])]));

function checkJson(text) {
  try {
    JSON.parse(text);
  } catch {
    throw new SyntaxError("The body is not valid JSON.");
  }
}

function parseField(field, parse) {
  try {
    return parse();
  } catch (error) {
    throw new FieldError(field, error.message);
  }
}
