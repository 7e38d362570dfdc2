// The console: which view is shown, and what stands around it.

import { html, render, useEffect, useRef, useState } from "./preact.js";
import { ask, key } from "./service.js";
import { Loading, NEW_KEY, useLoaded } from "./parts.js";
import { Overview } from "./overview.js";
import { Timers } from "./timers.js";
import { Timer } from "./timer.js";
import { NewTimer, Reschedule } from "./order.js";
import { Received } from "./received.js";

const SAID_FOR = 8000; // milliseconds
const OPENS_NOTHING = "This key opens nothing here.";

/** The view that the address names, as [view, its parameters]. */
function read(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const [, first, id, more] = path.split("/").map(decoded);
  if (first === "new") return [NewTimer, { title: "New timer" }];
  if (first === "received") return [Received, { title: "Received" }];
  if (id === "." || id === "..") return [Home, { title: "Timers", query: new URLSearchParams() }];
  if (first === "timers" && id && more === "reschedule") return [Reschedule, { title: `Reschedule ${id}`, id }];
  if (first === "timers" && id) return [Timer, { title: id, id }];
  return [Home, { title: "Timers", query: new URLSearchParams(query) }];
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // somebody wrote the address by hand
  }
}

const Home = ({ query, ...more }) => html`
  <${Overview} ...${more} />
  <${Timers} query=${query} ...${more} />`;

function Console() {
  const [hash, setHash] = useState(location.hash);
  const [held, hold] = useState(key.get());
  const [isRefused, setRefused] = useState(false);
  const [said, say] = useState("");
  const health = useLoaded("health", () => ask("GET", "health"));
  const { auth, receiver } = health.data ?? {};
  const isAnswered = Boolean(health.data || health.error);
  const lacksKey = auth === "keys" && !held;
  const wantsKey = lacksKey || isRefused;

  useEffect(() => {
    const changed = () => setHash(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);

  useEffect(() => {
    const clearing = setTimeout(() => say(""), SAID_FOR);
    return () => clearTimeout(clearing);
  }, [said]);

  /** Ask the service as `ask` does; once it wants a key, so does the page, in front of the view. */
  const asking = async (...request) => {
    try {
      return await ask(...request);
    } catch (error) {
      if (error.wantsKey) setRefused(true);
      throw error;
    }
  };

  const open = () => {
    hold(key.get());
    setRefused(false);
    dispatchEvent(new Event(NEW_KEY));
  };
  const forget = () => {
    key.forget();
    hold("");
    setRefused(false);
  };

  const [View, { title, ...parameters }] = read(hash);
  const started = useRef(false);
  useEffect(() => {
    document.title = title === "Timers" ? title : `${title} · Timers`;
    if (wantsKey) document.querySelector("dialog[open]")?.close(); // it would bar the way to the field
    // as if it were a new page
    if (started.current) document.querySelector(wantsKey ? "#key" : "h1")?.focus();
    started.current = true;
  }, [title, wantsKey, held]);

  return html`
    <a class="skip" href="#main" onClick=${toMain}>Skip to content</a>
    <${Header} view=${View} receiver=${receiver} onForget=${held && forget} />
    <main id="main" tabindex="-1">
      ${health.error
        ? html`<div class="note bad" role="alert"><p>All is not well: ${health.error.message}</p></div>`
        : html`<${Loading} loaded=${health} what="the console" />`}
      ${wantsKey && html`<${AskForKey} onKey=${open} />`}
      ${isAnswered && !lacksKey && html`
        <div key="view" class="view" hidden=${wantsKey}>
          <${View} key=${title} ...${parameters} ask=${asking} say=${say} receiver=${receiver} />
        </div>`}
    </main>
    <p class="said" role="status">${said}</p>`;
}

function toMain(event) {
  event.preventDefault(); // the address names the view
  document.getElementById("main").focus();
}

function Header({ view, receiver, onForget }) {
  const at = (it) => (it === view ? "page" : undefined);
  return html`
    <header>
      <a class="brand" href="#/"><${Logo} />Timers</a>
      <nav aria-label="Views">
        <a href="#/" aria-current=${at(Home)}>Overview</a>
        ${receiver && html`<a href="#/received" aria-current=${at(Received)}>Received</a>`}
        <a href="api-docs">API</a>
      </nav>
      ${onForget && html`<button class="quiet" onClick=${onForget}>Forget key</button>`}
      <a class="button main" href="#/new" aria-current=${at(NewTimer)}>New timer</a>
    </header>`;
}

const Logo = () => html`
  <svg viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" fill="none"
    stroke="currentColor" stroke-width="2.2" stroke-linecap="round">
    <circle cx="12" cy="13.5" r="8" /><path d="M12 9v4.5l3 2M9.5 2h5" />
  </svg>`;

function AskForKey({ onKey }) {
  const [text, set] = useState("");
  const [error, setError] = useState(key.get() && OPENS_NOTHING);
  const refuse = (why) => {
    setError(why);
    document.getElementById("key").focus();
  };
  const submit = async (event) => {
    event.preventDefault();
    const given = text.trim();
    if (!/^[!-~]+$/.test(given)) return refuse(OPENS_NOTHING); // no header can hold it
    key.set(given);
    if (!key.get()) return refuse("This browser lets the page keep nothing, and so no key.");
    try {
      await ask("GET", "timers?limit=1");
      onKey();
    } catch (refused) {
      if (refused.wantsKey) key.forget();
      refuse(refused.wantsKey ? OPENS_NOTHING : refused.message);
    }
  };
  return html`
    <form class="card narrow" onSubmit=${submit}>
      <h1 tabindex="-1">This service wants a key</h1>
      <p>It is kept until this tab is closed, and sent to nobody but this
        service. <code>make key</code> makes one.</p>
      <label for="key">API key</label>
      <input id="key" type="password" autocomplete="off" spellcheck="false" placeholder="tmr_…"
        value=${text} onInput=${(event) => set(event.target.value)}
        aria-describedby="key-error" aria-invalid=${error ? "true" : undefined} />
      <p id="key-error" class="error" role="alert">${error}</p>
      <button class="main" disabled=${!text.trim()}>Open</button>
    </form>`;
}

render(html`<${Console} />`, document.body);
