// The HTTP client: requests to the API, the API key, and the service's clock.

const BASE_URL = new URL(".", location.href);
const STORAGE_KEY = "timers-key";
const HEALTH = "health"; // public: sent without the API key
const REQUEST_TIMEOUT = 30_000; // milliseconds; API Gateway's own limit
const MAX_ROUND_TRIP = 2000; // milliseconds; a slower response is too imprecise to read the clock from

let clockOffset = 0; // milliseconds that the service's clock is ahead of the browser's

/** The API key, kept in session storage. */
export const apiKey = {
  get: () => storage()?.getItem(STORAGE_KEY) ?? "",
  set: (key) => storage()?.setItem(STORAGE_KEY, key),
  clear: () => storage()?.removeItem(STORAGE_KEY),
};

function storage() {
  try {
    return sessionStorage;
  } catch {
    return undefined; // the browser may block it
  }
}

/**
 * An error response, or no response at all (status 0).
 * `pointer` is a JSON pointer to the field at fault; `needsKey` says that a valid API key is missing.
 */
export class ApiError extends Error {
  constructor(detail, { status = 0, pointer, needsKey = false } = {}) {
    super(detail);
    Object.assign(this, { status, pointer, needsKey });
  }
}

/** The service's time, in milliseconds since 1970. */
export const now = () => Date.now() + clockOffset;

/** The absolute URL of a path of the service. */
export const absoluteUrl = (path) => new URL(path, BASE_URL).href;

/** Send a request, with `body` as JSON text. Return the parsed response, or throw an ApiError. */
export async function request(method, path, { body, headers: extraHeaders = {} } = {}) {
  const headers = { ...extraHeaders };
  if (apiKey.get() && path !== HEALTH) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, data;
  try {
    const [signal, sentAt] = [AbortSignal.timeout(REQUEST_TIMEOUT), Date.now()];
    response = await fetch(absoluteUrl(path), { method, headers, body, signal });
    readClock(response.headers.get("Date"), sentAt);
    data = await response.json();
  } catch {
    if (!response || response.ok) throw new ApiError("The service did not respond.");
    data = {}; // an error page of a proxy, for example
  }
  if (response.ok) return data;
  throw toError(response, data);
}

/** Estimate the service's clock: its Date header is about the middle of the round trip. */
function readClock(date, sentAt) {
  const receivedAt = Date.now();
  if (receivedAt - sentAt > MAX_ROUND_TRIP) return;
  const offset = Date.parse(date) + 500 - (sentAt + receivedAt) / 2; // Date is cut to whole seconds
  clockOffset = Math.abs(offset) > 1500 ? offset : 0;
}

function toError(response, data) {
  const { status } = response;
  const isOurs = (response.headers.get("Content-Type") ?? "").startsWith("application/problem+json");
  // API Gateway responds with 403 to an unknown key. Our own 403 means that the key is read-only.
  const needsKey = status === 401 || (status === 403 && !isOurs);
  const detail = data.detail ?? data.message ?? data.Message ?? `The service responded with HTTP ${status}.`;
  return new ApiError(detail, { status, pointer: data.pointer, needsKey });
}
