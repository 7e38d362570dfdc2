// Text for people: dates, durations, statuses, and `name: value` lines.

const pad = (number) => String(number).padStart(2, "0");

/** A date and time in the browser's time zone: 2027-01-31 09:00:00. */
export function dateTime(text) {
  const at = new Date(text);
  const date = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  return `${date} ${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
}

/** Milliseconds as a countdown, rounded up to seconds: 3 d 04:05:06, 04:05:06, 05:06. */
export function countdown(milliseconds) {
  const left = Math.max(0, Math.ceil(milliseconds / 1000));
  const [days, hours] = [Math.floor(left / 86400), Math.floor(left / 3600) % 24];
  const rest = `${pad(Math.floor(left / 60) % 60)}:${pad(left % 60)}`;
  if (days) return `${days} d ${pad(hours)}:${rest}`;
  return hours ? `${pad(hours)}:${rest}` : rest;
}

/** A duration, given in seconds: 4 ms, 1.3 s, 30 s, 2 min 5 s, 12 h. */
export function duration(seconds) {
  const size = Math.abs(seconds);
  if (size < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (size < 59.95) return `${Number(seconds.toFixed(1))} s`;
  const whole = Math.round(size);
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  const minutes = Math.floor(whole / 60) % 60;
  return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
}

/** A count and its noun: 1 timer, 2 timers. */
export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

/** The icon of each status, in the order of a timer's life. */
export const STATUS_ICONS = {
  scheduled: "◷",
  delivering: "➤",
  retrying: "↻",
  delivered: "✓",
  failed: "✕",
  cancelled: "–",
};

/** A timer's label, or its ID if the label is empty or invisible. */
export const displayName = ({ label, id }) => (/[^\p{C}\p{Z}]/u.test(label ?? "") ? label : id);

/** The outcome of an attempt: HTTP 503, connect: Connection refused. */
export function outcome(attempt) {
  if (!attempt.error) return `HTTP ${attempt.status}`;
  return attempt.detail ? `${attempt.error}: ${attempt.detail}` : attempt.error;
}

export const succeeded = (attempt) => attempt.status >= 200 && attempt.status < 300;

/** An object as `name: value` lines. */
export const toLines = (object) =>
  Object.entries(object).map(([name, value]) => `${name}: ${value}`).join("\n");

/** Parse `name: value` lines. Names must differ after `normalize`; throws a SyntaxError. */
export function parseLines(text, normalize = (name) => name) {
  const entries = text.split("\n").filter((line) => line.trim()).map(parseLine);
  const names = entries.map(([name]) => normalize(name));
  const repeated = entries.find((_, index) => names.indexOf(names[index]) < index);
  if (repeated) throw new SyntaxError(`“${repeated[0]}” appears twice.`);
  return Object.fromEntries(entries);
}

function parseLine(line) {
  const [, name, value] = line.match(/^\s*([^:]*?)\s*:\s*(.*?)\s*$/) ?? [];
  if (!name) throw new SyntaxError(`Write “name: value” instead of “${line.trim()}”.`);
  return [name, value];
}
