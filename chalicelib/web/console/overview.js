// The overview: charts of the newest timers.

import { now } from "./api.js";
import { LoadingState, nextChange, Status, TimeLeft, usePolling } from "./components.js";
import { count, duration, STATUS_ICONS, succeeded } from "./format.js";
import { html } from "./preact.js";
import { focusList } from "./timers.js";

const MAX_TIMERS = 100;
const HOUR = 3_600_000; // milliseconds
const BINS_PER_HOUR = 12;
const MINUTES_PER_BIN = 60 / BINS_PER_HOUR;

/** The bins of the lateness chart: upper bound in seconds, axis label, description. */
const LATENESS_BINS = [
  [0.01, "10 ms", "up to 10 ms"],
  [0.1, "100 ms", "up to 100 ms"],
  [1, "1 s", "up to 1 s"],
  [10, "10 s", "up to 10 s"],
  [Infinity, "> 10 s", "more than 10 s"],
];

export function Overview({ request }) {
  const result = usePolling(
    "overview",
    () => request("GET", `timers?limit=${MAX_TIMERS}`),
    ({ timers }) => nextChange(timers),
  );
  const { timers = [], next_cursor: hasMore } = result.data ?? {};
  return html`
    <section aria-labelledby="overview">
      <div class="row">
        <h1 id="overview" tabindex="-1">Overview</h1>
        ${timers.length > 0 && html`
          <p class="muted">${hasMore ? `Newest ${timers.length} timers only` : count(timers.length, "timer")}</p>`}
      </div>
      <${LoadingState} result=${result} what="the overview" />
      ${timers.length > 0 && html`
        <div class="cards">
          <${StatusCounts} timers=${timers} /><${NextHour} timers=${timers} /><${Lateness} timers=${timers} />
        </div>`}
    </section>`;
}

function StatusCounts({ timers }) {
  const counts = Object.keys(STATUS_ICONS).map((status) => [
    status,
    timers.filter((timer) => timer.status === status).length,
  ]);
  return html`
    <div class="card">
      <h2>By status</h2>
      <div class="stack" aria-hidden="true">
        ${counts.map(([status, number]) => number > 0 && html`
          <span key=${status} class=${status} style=${{ flexGrow: number }}></span>`)}
      </div>
      <ul class="counts">
        ${counts.map(([status, number]) => html`
          <li key=${status}><a href="#/?status=${status}" onClick=${focusList}>
            <${Status} of=${status} /><b>${number}</b></a></li>`)}
      </ul>
    </div>`;
}

function NextHour({ timers }) {
  const due = timers
    .filter((timer) => timer.next_attempt_at)
    .map((timer) => Date.parse(timer.next_attempt_at))
    .filter((time) => time - now() < HOUR);
  const binOf = (time) => Math.max(0, Math.floor((time - now()) / 60_000 / MINUTES_PER_BIN));
  const bins = Array.from({ length: BINS_PER_HOUR }, (_, bin) => [
    bin % 3 ? "" : `${bin * MINUTES_PER_BIN} min`,
    due.filter((time) => binOf(time) === bin).length,
    `${bin * MINUTES_PER_BIN} to ${(bin + 1) * MINUTES_PER_BIN} min`,
  ]);
  const next = due.length ? new Date(Math.min(...due)).toISOString() : null;
  return html`
    <div class="card">
      <h2>Due in the next hour</h2>
      <${BarChart} bins=${bins} label=${`${due.length} due in the next hour`} />
      <p>${next
        ? html`<b>${due.length}</b> due, next <${TimeLeft} until=${next} prefix="in " />`
        : "None due"}</p>
    </div>`;
}

function Lateness({ timers }) {
  const values = timers
    .flatMap((timer) => timer.attempts.filter(succeeded))
    .map((attempt) => attempt.lateness)
    .sort((a, b) => a - b);
  const bins = LATENESS_BINS.map(([max, name, description], index) => {
    const min = index ? LATENESS_BINS[index - 1][0] : -Infinity;
    return [name, values.filter((it) => it > min && it <= max).length, description];
  });
  const total = count(values.length, "delivery", "deliveries");
  return html`
    <div class="card">
      <h2>Lateness of recent deliveries</h2>
      <${BarChart} bins=${bins} label=${`${total} by lateness`} />
      <p>${values.length
        ? html`Median <b>${duration(values[Math.floor((values.length - 1) / 2)])}</b>, max
            <b> ${duration(values.at(-1))}</b> (of ${values.length})`
        : "No deliveries yet"}</p>
    </div>`;
}

/** A bar for each bin: [axis label, number, description for screen readers]. */
function BarChart({ bins, label }) {
  const max = Math.max(1, ...bins.map(([, number]) => number));
  const description = bins.map(([, number, name]) => `${name}: ${number}`).join(", ");
  return html`
    <div class="bars" role="img" aria-label="${label}. ${description}">
      ${bins.map(([name, number], index) => html`
        <div key=${index}>
          <span class="number">${number || ""}</span>
          <span class="bar" style=${{ height: `${(number * 100) / max}%` }}></span>
          <span class="name">${name}</span>
        </div>`)}
    </div>`;
}
