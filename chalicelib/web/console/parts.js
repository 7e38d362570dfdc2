// What several views are made of.

import { html, useEffect, useRef, useState } from "./preact.js";
import { now } from "./service.js";
import { countdown, moment, STATES } from "./words.js";

const TICK = 250;
const LONGEST = 10_000;
const SHORTEST = 1000;
const AFTER = 400; // what fell due takes a moment to be recorded

/** The event that a key was given in place of one that opened nothing. */
export const NEW_KEY = "newkey";

/** Run again as time goes by. */
export function useTick() {
  const [, set] = useState(0);
  useEffect(() => {
    const ticking = setInterval(() => document.hidden || set(now()), TICK);
    return () => clearInterval(ticking);
  }, []);
}

/**
 * Load something, and again and again while somebody looks and the key counts; `what` names it.
 * `soon(data)` is when, in milliseconds since 1970, it is expected to change.
 * Return { data, error, again }: both, if the latest try failed.
 */
export function useLoaded(what, load, soon = () => Infinity) {
  const [found, set] = useState({});
  const again = useRef(() => {});
  useEffect(() => {
    let timer, ended = false, data, latest = 0;
    const run = async () => {
      const mine = ++latest;
      clearTimeout(timer);
      if (!document.hidden || data === undefined) {
        const found = await load().then((it) => ({ data: it }), (error) => ({ data, error }));
        if (ended || mine !== latest) return; // a later look has seen more
        data = found.data;
        set({ what, ...found });
        if (found.error?.wantsKey) return;
      }
      const wait = (data === undefined ? Infinity : soon(data)) - now() + AFTER;
      if (!ended) timer = setTimeout(run, Math.max(SHORTEST, Math.min(LONGEST, wait)));
    };
    const shown = () => document.hidden || run();
    document.addEventListener("visibilitychange", shown);
    addEventListener(NEW_KEY, run);
    again.current = run;
    run();
    return () => {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
      removeEventListener(NEW_KEY, run);
    };
  }, [what]);
  return { ...(found.what === what ? found : {}), again: () => again.current() };
}

/** When one of the timers is expected to change next; what is long overdue may stay so for long. */
export function nextChange(timers) {
  const moments = timers.map((timer) => {
    if (timer.status === "delivering") return now();
    return timer.next_attempt_at ? Date.parse(timer.next_attempt_at) : Infinity;
  });
  return Math.min(...moments.filter((moment) => moment > now() - LONGEST), Infinity);
}

export const State = ({ of }) => html`
  <span class="state ${of}"><span aria-hidden="true">${STATES[of]}</span> ${of}</span>`;

export const Moment = ({ at }) => html`<time datetime=${at}>${moment(at)}</time>`;

/** What is left until a moment, after a word before it, ticking; or that it is due. */
export function Left({ until, word = "" }) {
  useTick();
  const left = Date.parse(until) - now();
  return html`<span class="left" role="timer">${left > 0 ? word + countdown(left) : "due"}</span>`;
}

/** What a view shows of `loaded` besides its data: that it is on its way, or can't be had. */
export function Loading({ loaded, what }) {
  if (loaded.error && !loaded.error.wantsKey) {
    return html`<div class="note bad" role="alert">
      <p>${loaded.data ? `${loaded.error.message} What stands here may be old.` : loaded.error.message}</p>
      <button onClick=${loaded.again}>Try again</button>
    </div>`;
  }
  return loaded.data ? null : html`<p class="note" role="status">Loading ${what} …</p>`;
}

/** Members with a name each, those that there are not left out. */
export const Facts = ({ of }) => html`
  <dl class="facts">
    ${Object.entries(of).map(([name, value]) => value !== null && html`
      <div key=${name}><dt>${name}</dt><dd>${value || html`<span class="quiet">empty</span>`}</dd></div>`)}
  </dl>`;
