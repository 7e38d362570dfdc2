// Moments, lengths of time and states as people read them.

const two = (number) => String(number).padStart(2, "0");

/** A moment in the reader's own zone: 2027-01-31 09:00:00. */
export function moment(text) {
  const at = new Date(text);
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

/** What is left of so many milliseconds, rounded up: 3 d 04:05:06, 04:05:06, 05:06. */
export function countdown(milliseconds) {
  const left = Math.max(0, Math.ceil(milliseconds / 1000));
  const [days, hours] = [Math.floor(left / 86400), Math.floor(left / 3600) % 24];
  const rest = `${two(Math.floor(left / 60) % 60)}:${two(left % 60)}`;
  if (days) return `${days} d ${two(hours)}:${rest}`;
  return hours ? `${two(hours)}:${rest}` : rest;
}

/** A number of seconds: 4 ms, 1.3 s, 30 s, 2 min 5 s, 12 h. */
export function seconds(number) {
  const size = Math.abs(number);
  if (size < 0.9995) return `${Math.round(number * 1000)} ms`;
  if (size < 59.95) return `${Number(number.toFixed(1))} s`;
  const whole = Math.round(size);
  if (whole < 3600) return `${Math.floor(whole / 60)} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
  const minutes = Math.floor(whole / 60) % 60;
  return `${Math.floor(whole / 3600)} h${minutes ? ` ${minutes} min` : ""}`;
}

export const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** All states, in the order of a timer's life, with their sign. */
export const STATES = {
  scheduled: "◷",
  delivering: "➤",
  retrying: "↻",
  delivered: "✓",
  failed: "✕",
  cancelled: "–",
};

/** What a timer is called: its label, or its id where nothing of that is to be seen. */
export const called = ({ label, id }) => (/[^\p{C}\p{Z}]/u.test(label ?? "") ? label : id);

/** What came of an attempt: HTTP 503, connect: Connection refused. */
export function result(attempt) {
  if (!attempt.error) return `HTTP ${attempt.status}`;
  return attempt.detail ? `${attempt.error}: ${attempt.detail}` : attempt.error;
}

export const succeeded = (attempt) => attempt.status >= 200 && attempt.status < 300;

/** The lines of an object's members, `name: value`. */
export const lines = (members) =>
  Object.entries(members).map(([name, value]) => `${name}: ${value}`).join("\n");

/** What such lines say; names are the same if `spelled` makes them so. */
export function members(text, spelled = (name) => name) {
  const written = text.split("\n").filter((line) => line.trim()).map(member);
  const names = written.map(([name]) => spelled(name));
  const twice = written.find((_, index) => names.indexOf(names[index]) < index);
  if (twice) throw new SyntaxError(`“${twice[0]}” is given twice.`);
  return Object.fromEntries(written);
}

function member(line) {
  const [, name, value] = line.match(/^\s*([^:]*?)\s*:\s*(.*?)\s*$/) ?? [];
  if (!name) throw new SyntaxError(`Write “name: value”, not “${line.trim()}”.`);
  return [name, value];
}
