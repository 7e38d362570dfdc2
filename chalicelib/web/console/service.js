// The API below the path of this page, the key that it may want, and its clock.

const BASE = new URL(".", location.href);
const KEY = "timers-key";
const HEALTH = "health"; // is public: no key is sent to it
const WAIT = 30_000; // API Gateway ends what takes longer
const SLOW = 2000; // what took longer tells the time too inexactly

let ahead = 0; // milliseconds that the service's clock is ahead of this one's

export const key = {
  get: () => kept()?.getItem(KEY) ?? "",
  set: (text) => kept()?.setItem(KEY, text),
  forget: () => kept()?.removeItem(KEY),
};

function kept() {
  try {
    return sessionStorage;
  } catch {
    return undefined; // a browser may forbid it: then there is no key
  }
}

/** What the service refused, or that it could not be asked. `pointer` names the member at fault. */
export class Refusal extends Error {
  constructor(detail, { status = 0, pointer, wantsKey = false } = {}) {
    super(detail);
    Object.assign(this, { status, pointer, wantsKey });
  }
}

/** The time as the service has it, in milliseconds since 1970. */
export const now = () => Date.now() + ahead;

/** The address of something that the service has, as others have to write it. */
export const address = (path) => new URL(path, BASE).href;

/** Ask the service, with a body of JSON; return the JSON that it answers with, or throw a Refusal. */
export async function ask(method, path, { body, headers = {} } = {}) {
  const sent = { ...headers };
  if (key.get() && path !== HEALTH) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let answer, data;
  try {
    const [signal, began] = [AbortSignal.timeout(WAIT), Date.now()];
    answer = await fetch(address(path), { method, headers: sent, body, signal });
    readClock(answer.headers.get("Date"), began);
    data = await answer.json();
  } catch {
    if (!answer || answer.ok) throw new Refusal("The service does not answer.");
    data = {}; // not of ours
  }
  if (answer.ok) return data;
  throw refusal(answer, data);
}

/** Learn from an answer what time the service has: about in the middle between question and answer. */
function readClock(date, began) {
  const here = Date.now();
  if (here - began > SLOW) return;
  const difference = Date.parse(date) + 500 - (began + here) / 2; // it is cut off to whole seconds
  ahead = Math.abs(difference) > 1500 ? difference : 0;
}

function refusal(answer, data) {
  const { status } = answer;
  const isOurs = (answer.headers.get("Content-Type") ?? "").startsWith("application/problem+json");
  // API Gateway says 403 of a key that it does not know; ours is of one that may only read.
  const wantsKey = status === 401 || (status === 403 && !isOurs);
  const detail = data.detail ?? data.message ?? data.Message ?? `The service answers ${status}.`;
  return new Refusal(detail, { status, pointer: data.pointer, wantsKey });
}
