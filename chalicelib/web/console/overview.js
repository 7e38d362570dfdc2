// What the newest timers are up to.

import { html } from "./preact.js";
import { now } from "./service.js";
import { Left, Loading, nextChange, State, useLoaded } from "./parts.js";
import { toList } from "./timers.js";
import { plural, seconds, STATES, succeeded } from "./words.js";

const NEWEST = 100;
const HOUR = 3_600_000;
const BINS = 12; // of the next hour
const STEP = 60 / BINS; // minutes

const LATENESS = [
  [0.01, "10 ms"],
  [0.1, "100 ms"],
  [1, "1 s"],
  [10, "10 s"],
  [Infinity, "more", "more than 10 s"],
];

export function Overview({ ask }) {
  const loaded = useLoaded(
    "overview",
    () => ask("GET", `timers?limit=${NEWEST}`),
    ({ timers }) => nextChange(timers),
  );
  const { timers = [], next_cursor: more } = loaded.data ?? {};
  return html`
    <section aria-labelledby="overview">
      <div class="row">
        <h1 id="overview" tabindex="-1">Overview</h1>
        ${timers.length > 0 && html`<p class="quiet">${whichOnes(timers.length, more)}</p>`}
      </div>
      <${Loading} loaded=${loaded} what="the newest timers" />
      ${timers.length > 0 && html`
        <div class="cards">
          <${States} timers=${timers} /><${NextHour} timers=${timers} /><${Late} timers=${timers} />
        </div>`}
    </section>`;
}

function whichOnes(number, more) {
  if (more) return `of the newest ${number} timers`;
  return number > 1 ? `of all ${number} timers` : "of the only timer";
}

function States({ timers }) {
  const counts = Object.keys(STATES).map((state) => [
    state,
    timers.filter((timer) => timer.status === state).length,
  ]);
  return html`
    <div class="card">
      <h2>By status</h2>
      <div class="stack" aria-hidden="true">
        ${counts.map(([state, count]) => count > 0 && html`
          <span key=${state} class=${state} style=${{ flexGrow: count }}></span>`)}
      </div>
      <ul class="counts">
        ${counts.map(([state, count]) => html`
          <li key=${state}><a href="#/?status=${state}" onClick=${toList}>
            <${State} of=${state} /><b>${count}</b></a></li>`)}
      </ul>
    </div>`;
}

function NextHour({ timers }) {
  const due = timers
    .filter((timer) => timer.next_attempt_at)
    .map((timer) => Date.parse(timer.next_attempt_at))
    .filter((at) => at - now() < HOUR);
  const binOf = (at) => Math.max(0, Math.floor((at - now()) / 60_000 / STEP));
  const bins = Array.from({ length: BINS }, (_, bin) => [
    bin % 3 ? "" : `${bin * STEP} min`,
    due.filter((at) => binOf(at) === bin).length,
    `${bin * STEP} to ${(bin + 1) * STEP} min`,
  ]);
  const next = due.length ? new Date(Math.min(...due)).toISOString() : null;
  return html`
    <div class="card">
      <h2>Due in the next hour</h2>
      <${Bars} of=${bins} label=${`${due.length} due in the next hour`} />
      <p>${next ? html`<b>${due.length}</b>, the next <${Left} until=${next} word="in " />` : "Nothing"}</p>
    </div>`;
}

function Late({ timers }) {
  const late = timers
    .flatMap((timer) => timer.attempts.filter(succeeded))
    .map((attempt) => attempt.lateness)
    .sort((a, b) => a - b);
  const bins = LATENESS.map(([most, name, told], index) => {
    const least = index ? LATENESS[index - 1][0] : -Infinity;
    return [name, late.filter((it) => it > least && it <= most).length, told ?? `up to ${name}`];
  });
  return html`
    <div class="card">
      <h2>Lateness of recent deliveries</h2>
      <${Bars} of=${bins} label=${`${plural(late.length, "delivery").replace("ys", "ies")} by lateness`} />
      <p>${late.length
        ? html`median <b>${seconds(late[Math.floor((late.length - 1) / 2)])}</b>, worst
            <b> ${seconds(late.at(-1))}</b> of ${late.length}`
        : "Nothing was delivered yet"}</p>
    </div>`;
}

/** A column for each [name, number, what is told of it]. */
function Bars({ of, label }) {
  const most = Math.max(1, ...of.map(([, number]) => number));
  const told = of.map(([, number, name]) => `${name}: ${number}`).join(", ");
  return html`
    <div class="bars" role="img" aria-label="${label}. ${told}">
      ${of.map(([name, number], index) => html`
        <div key=${index}>
          <span class="number">${number || ""}</span>
          <span class="bar" style=${{ height: `${(number * 100) / most}%` }}></span>
          <span class="name">${name}</span>
        </div>`)}
    </div>`;
}
