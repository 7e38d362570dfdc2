// Components and hooks that several views share.

import { now } from "./api.js";
import { countdown, dateTime, STATUS_ICONS } from "./format.js";
import { html, useEffect, useRef, useState } from "./preact.js";

// All in milliseconds.
const TICK = 250;
const MIN_POLL_DELAY = 1000;
const MAX_POLL_DELAY = 10_000;
const RECORDING_TIME = 400; // from a timer's deadline until its attempt is usually stored

/** The event that a new API key was accepted. */
export const SIGNED_IN = "signed-in";

/** Render the component again several times a second. */
export function useTick() {
  const [, setTime] = useState(0);
  useEffect(() => {
    const interval = setInterval(() => document.hidden || setTime(now()), TICK);
    return () => clearInterval(interval);
  }, []);
}

/**
 * Load data, and poll for changes while the page is visible and the API key is valid.
 *
 * `key` identifies what is loaded. `nextChangeAt(data)` estimates when it will change, in
 * milliseconds since 1970. Returns { data, error, reload }; after a failed reload `data` is the
 * last that was loaded.
 */
export function usePolling(key, load, nextChangeAt = () => Infinity) {
  const [result, setResult] = useState({});
  const reload = useRef(() => {});
  useEffect(() => {
    let timeout, stopped = false, data, latest = 0;
    const poll = async () => {
      const current = ++latest;
      clearTimeout(timeout);
      if (!document.hidden || data === undefined) {
        const loaded = await load().then((it) => ({ data: it }), (error) => ({ data, error }));
        if (stopped || current !== latest) return; // a later request has newer data
        data = loaded.data;
        setResult({ key, ...loaded });
        if (loaded.error?.needsKey) return;
      }
      const delay = (data === undefined ? Infinity : nextChangeAt(data)) - now() + RECORDING_TIME;
      if (!stopped) timeout = setTimeout(poll, Math.max(MIN_POLL_DELAY, Math.min(MAX_POLL_DELAY, delay)));
    };
    const onVisibilityChange = () => document.hidden || poll();
    document.addEventListener("visibilitychange", onVisibilityChange);
    addEventListener(SIGNED_IN, poll);
    reload.current = poll;
    poll();
    return () => {
      stopped = true;
      clearTimeout(timeout);
      document.removeEventListener("visibilitychange", onVisibilityChange);
      removeEventListener(SIGNED_IN, poll);
    };
  }, [key]);
  return { ...(result.key === key ? result : {}), reload: () => reload.current() };
}

/** When the first of these timers will change. Long overdue ones are ignored: they may stay so. */
export function nextChange(timers) {
  const times = timers.map((timer) => {
    if (timer.status === "delivering") return now();
    return timer.next_attempt_at ? Date.parse(timer.next_attempt_at) : Infinity;
  });
  return Math.min(...times.filter((time) => time > now() - MAX_POLL_DELAY), Infinity);
}

export const Status = ({ of }) => html`
  <span class="status ${of}"><span aria-hidden="true">${STATUS_ICONS[of]}</span> ${of}</span>`;

export const DateTime = ({ at }) => html`<time datetime=${at}>${dateTime(at)}</time>`;

/** A live countdown after a `prefix`, or "due". */
export function TimeLeft({ until, prefix = "" }) {
  useTick();
  const left = Date.parse(until) - now();
  return html`<span class="time-left" role="timer">${left > 0 ? prefix + countdown(left) : "due"}</span>`;
}

/** The state of a `usePolling` result: a loading message, an error, or nothing. */
export function LoadingState({ result: { data, error, reload }, what }) {
  if (error && !error.needsKey) {
    return html`<div class="note error-note" role="alert">
      <p>${data ? `${error.message} This data may be out of date.` : error.message}</p>
      <button onClick=${reload}>Try again</button>
    </div>`;
  }
  return data ? null : html`<p class="note" role="status">Loading ${what}…</p>`;
}

/** Names and values. A value of null is left out; an empty one is shown as "empty". */
export const Properties = ({ of }) => html`
  <dl class="properties">
    ${Object.entries(of).map(([name, value]) => value !== null && html`
      <div key=${name}><dt>${name}</dt><dd>${value || html`<span class="muted">empty</span>`}</dd></div>`)}
  </dl>`;
