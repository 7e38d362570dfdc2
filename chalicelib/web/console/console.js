// The console: routing between views, page header, API key form, notifications.

import { apiKey, request } from "./api.js";
import { LoadingState, SIGNED_IN, usePolling } from "./components.js";
import { NewTimer, Reschedule } from "./forms.js";
import { Overview } from "./overview.js";
import { html, render, useEffect, useRef, useState } from "./preact.js";
import { Received } from "./received.js";
import { Timer } from "./timer.js";
import { Timers } from "./timers.js";

const NOTIFICATION_TIME = 8000; // milliseconds
const INVALID_KEY = "This API key is not valid.";

/** The view of a URL's fragment, and its properties. */
function route(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const [, first, id, action] = path.split("/").map(decode);
  if (first === "new") return [NewTimer, { title: "New timer" }];
  if (first === "received") return [Received, { title: "Received webhooks" }];
  if (id === "." || id === "..") return [Home, { title: "Timers", query: new URLSearchParams() }];
  if (first === "timers" && id && action === "reschedule") {
    return [Reschedule, { title: `Reschedule ${id}`, id }];
  }
  if (first === "timers" && id) return [Timer, { title: id, id }];
  return [Home, { title: "Timers", query: new URLSearchParams(query) }];
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // a malformed escape, as in a link that was cut off
  }
}

const Home = ({ query, ...properties }) => html`
  <${Overview} ...${properties} />
  <${Timers} query=${query} ...${properties} />`;

function Console() {
  const [hash, setHash] = useState(location.hash);
  const [currentKey, setCurrentKey] = useState(apiKey.get());
  const [isRejected, setRejected] = useState(false);
  const [message, notify] = useState("");
  const health = usePolling("health", () => request("GET", "health"));
  const { auth, receiver } = health.data ?? {};
  const isReady = Boolean(health.data || health.error);
  const isSignedOut = auth === "keys" && !currentKey;
  const needsKey = isSignedOut || isRejected;

  useEffect(() => {
    const onHashChange = () => setHash(location.hash);
    addEventListener("hashchange", onHashChange);
    return () => removeEventListener("hashchange", onHashChange);
  }, []);

  useEffect(() => {
    const timeout = setTimeout(() => notify(""), NOTIFICATION_TIME);
    return () => clearTimeout(timeout);
  }, [message]);

  /** Like `request`, but shows the API key form in front of the view when the key is rejected. */
  const viewRequest = async (...parameters) => {
    try {
      return await request(...parameters);
    } catch (error) {
      if (error.needsKey) setRejected(true);
      throw error;
    }
  };

  const signedIn = () => {
    setCurrentKey(apiKey.get());
    setRejected(false);
    dispatchEvent(new Event(SIGNED_IN));
  };
  const signOut = () => {
    apiKey.clear();
    setCurrentKey("");
    setRejected(false);
  };

  const [View, { title, ...properties }] = route(hash);
  const hasStarted = useRef(false);
  useEffect(() => {
    document.title = title === "Timers" ? title : `${title} · Timers`;
    if (needsKey) document.querySelector("dialog[open]")?.close(); // it would block the form
    // Move the focus as a page load would.
    if (hasStarted.current) document.querySelector(needsKey ? "#key" : "h1")?.focus();
    hasStarted.current = true;
  }, [title, needsKey, currentKey]);

  return html`
    <a class="skip" href="#main" onClick=${focusMain}>Skip to content</a>
    <${Header} view=${View} receiver=${receiver} onSignOut=${currentKey && signOut} />
    <main id="main" tabindex="-1">
      ${health.error
        ? html`<div class="note error-note" role="alert"><p>Health check failed: ${health.error.message}</p></div>`
        : html`<${LoadingState} result=${health} what="the console" />`}
      ${needsKey && html`<${ApiKeyForm} onSignIn=${signedIn} />`}
      ${isReady && !isSignedOut && html`
        <div key="view" class="view" hidden=${needsKey}>
          <${View} key=${title} ...${properties} request=${viewRequest} notify=${notify} receiver=${receiver} />
        </div>`}
    </main>
    <p class="notification" role="status">${message}</p>`;
}

function focusMain(event) {
  event.preventDefault(); // the fragment selects the view
  document.getElementById("main").focus();
}

function Header({ view, receiver, onSignOut }) {
  const current = (it) => (it === view ? "page" : undefined);
  return html`
    <header>
      <a class="brand" href="#/"><${Logo} />Timers</a>
      <nav aria-label="Main">
        <a href="#/" aria-current=${current(Home)}>Overview</a>
        ${receiver && html`<a href="#/received" aria-current=${current(Received)}>Received</a>`}
        <a href="api-docs">API docs</a>
      </nav>
      ${onSignOut && html`<button class="muted" onClick=${onSignOut}>Sign out</button>`}
      <a class="button primary" href="#/new" aria-current=${current(NewTimer)}>New timer</a>
    </header>`;
}

const Logo = () => html`
  <svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" fill="none"
    stroke="currentColor" stroke-width="2.2" stroke-linecap="round">
    <circle cx="12" cy="13.5" r="8" /><path d="M12 9v4.5l3 2M9.5 2h5" />
  </svg>`;

function ApiKeyForm({ onSignIn }) {
  const [text, setText] = useState("");
  const [error, setError] = useState(apiKey.get() && INVALID_KEY);
  const reject = (reason) => {
    setError(reason);
    document.getElementById("key").focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    const key = text.trim();
    if (!/^[!-~]+$/.test(key)) return reject(INVALID_KEY); // not valid in a header
    apiKey.set(key);
    if (!apiKey.get()) return reject("This browser blocks session storage. Allow it to use an API key.");
    try {
      await request("GET", "timers?limit=1");
      onSignIn();
    } catch (failure) {
      if (failure.needsKey) apiKey.clear();
      reject(failure.needsKey ? INVALID_KEY : failure.message);
    }
  };
  return html`
    <form class="card narrow" onSubmit=${submit}>
      <h1 tabindex="-1">This service requires an API key</h1>
      <p>The key is kept until you close this tab, and is sent only to this service.
        Create one with <code>make key</code>.</p>
      <label for="key">API key</label>
      <input id="key" type="password" autocomplete="off" spellcheck="false" placeholder="tmr_…"
        value=${text} onInput=${(event) => setText(event.target.value)}
        aria-describedby="key-error" aria-invalid=${error ? "true" : undefined} />
      <p id="key-error" class="error" role="alert">${error}</p>
      <button class="primary" disabled=${!text.trim()}>Sign in</button>
    </form>`;
}

render(html`<${Console} />`, document.body);
