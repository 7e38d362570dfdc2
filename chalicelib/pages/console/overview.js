// What the newest timers are up to.

import { html } from "./preact.js";
import { now } from "./service.js";
import { Left, Loading, nextChange, State, useLoaded } from "./parts.js";
import { toList } from "./timers.js";
import { plural, seconds, STATES, succeeded } from "./words.js";

const NEWEST = 100;
const BINS = 12; // of the next hour
const HOUR = 3_600_000;

const LATENESS = [
  [0.01, "10 ms"],
  [0.1, "100 ms"],
  [1, "1 s"],
  [10, "10 s"],
  [Infinity, "more"],
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
        ${timers.length > 0 && html`<p class="quiet">of
          ${more ? ` the newest ${timers.length} timers` : ` all ${plural(timers.length, "timer")}`}</p>`}
      </div>
      <${Loading} loaded=${loaded} what="the newest timers" />
      ${timers.length > 0 && html`
        <div class="cards">
          <${States} timers=${timers} /><${NextHour} timers=${timers} /><${Late} timers=${timers} />
        </div>`}
    </section>`;
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
  const left = timers
    .filter((timer) => timer.next_attempt_at)
    .map((timer) => Math.max(0, Date.parse(timer.next_attempt_at) - now()))
    .filter((time) => time < HOUR);
  const bins = Array.from({ length: BINS }, (_, bin) => [
    bin % 3 ? "" : `${(bin * 60) / BINS} min`,
    left.filter((time) => Math.floor((time * BINS) / HOUR) === bin).length,
  ]);
  const next = left.length ? new Date(now() + Math.min(...left)).toISOString() : null;
  return html`
    <div class="card">
      <h2>Due in the next hour</h2>
      <${Bars} of=${bins} label=${`${left.length} due in the next hour, in steps of 5 minutes`} />
      <p>${left.length ? html`<b>${left.length}</b>, the next in <${Left} until=${next} />` : "Nothing"}</p>
    </div>`;
}

function Late({ timers }) {
  const late = timers
    .flatMap((timer) => timer.attempts.filter(succeeded))
    .map((attempt) => attempt.lateness)
    .sort((a, b) => a - b);
  const bins = LATENESS.map(([most, name], index) => {
    const least = index ? LATENESS[index - 1][0] : -Infinity;
    return [name, late.filter((it) => it > least && it <= most).length];
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

/** A column for each [name, number]. */
function Bars({ of, label }) {
  const most = Math.max(1, ...of.map(([, number]) => number));
  const told = of.map(([name, number]) => `${name || "…"}: ${number}`).join(", ");
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
