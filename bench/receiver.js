// Gets the webhooks: when each arrived, and its webhook-id.
// GET /count says how many came, GET /arrivals which and when; DELETE /arrivals also forgets them.
const http = require("node:http");

const SET_WITHIN = 5; // milliseconds

let count, ids, moments, epoch;

// Date.now() cuts its milliseconds off, and this process may be held up anywhere: what is closest to
// the truth is the largest of many differences.
function forget() {
  [count, ids, moments, epoch] = [0, [], [], 0];
  const end = performance.now() + SET_WITHIN;
  while (performance.now() < end) epoch = Math.max(epoch, Date.now() - performance.now());
}

function receive(request, response) {
  moments.push(epoch + performance.now());
  ids.push(request.headers["webhook-id"]);
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
const server = http.createServer((request, response) =>
  (request.method === "POST" ? receive : answer)(request, response));
server.listen(0, "127.0.0.1", 1000, () => console.log(server.address().port));
