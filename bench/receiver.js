// Records the webhook-id (Quirrel has its own header for it) and the arrival time of each webhook.
// GET /count returns their number, and GET /arrivals also the ids and times. DELETE /arrivals then forgets them.
const http = require("node:http");

let count, ids, moments;
let epoch = 0;

function forget() {
  [count, ids, moments] = [0, [], []];
}

// The time in fractions of a millisecond. Date.now() cuts them off, so the greatest difference is the true one.
function now() {
  epoch = Math.max(epoch, Date.now() - performance.now());
  return epoch + performance.now();
}

function receive(request, response) {
  moments.push(now());
  ids.push(request.headers["webhook-id"] ?? JSON.parse(request.headers["x-quirrel-meta"] ?? "{}").id);
  request.resume();
  request.on("end", () => response.end());
  count++;
}

function answer(request, response) {
  const arrivals = request.url === "/arrivals" ? { ids, moments } : {};
  response.end(JSON.stringify({ count, ...arrivals }));
  if (request.method === "DELETE") forget();
}

forget();
for (const start = performance.now(); performance.now() < start + 10; ) now();
const server = http.createServer((request, response) =>
  (request.method === "POST" ? receive : answer)(request, response));
server.listen(0, "127.0.0.1", 1000, () => console.log(server.address().port));
