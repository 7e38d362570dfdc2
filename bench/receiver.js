// Records the webhook-id (Quirrel has its own header for it) and the arrival time of each webhook.
// GET /count returns their number, and GET /arrivals also the ids and times. DELETE /arrivals then forgets them.
// It shares the machine with the engines, so it reads no more of HTTP than they use: Node's own parser takes twice the time.
const net = require("node:net");

let ids, moments;
let epoch = 0;

function forget() {
  [ids, moments] = [[], []];
}

// The time in fractions of a millisecond. Date.now() cuts them off, so the greatest difference is the true one.
function now() {
  epoch = Math.max(epoch, Date.now() - performance.now());
  return epoch + performance.now();
}

function header(head, name) {
  return head.match(new RegExp(`\r\n${name}: *(.*)`, "i"))?.[1];
}

function record(head) {
  moments.push(now());
  ids.push(header(head, "webhook-id") ?? JSON.parse(header(head, "x-quirrel-meta") ?? "{}").id);
  return "";
}

function answer(head) {
  const [method, path] = head.split(" ", 2);
  const arrivals = path === "/arrivals" ? { ids, moments } : {};
  const content = JSON.stringify({ count: ids.length, ...arrivals });
  if (method === "DELETE") forget();
  return content;
}

// Each connection sends one request at a time, with a Content-Length if it has a body.
function serve(socket) {
  let received = "";
  socket.on("data", (piece) => {
    received += piece;
    const end = received.indexOf("\r\n\r\n");
    if (end < 0) return;
    const head = received.slice(0, end);
    if (received.length < end + 4 + Number(header(head, "content-length") ?? 0)) return;
    received = "";
    const content = head.startsWith("POST") ? record(head) : answer(head);
    const connection = header(head, "connection") === "close" ? "close" : "keep-alive";
    socket.write(`HTTP/1.1 200 OK\r\nConnection: ${connection}\r\nContent-Length: ${content.length}\r\n\r\n${content}`);
    if (connection === "close") socket.end();
  });
  socket.on("error", () => {}); // an engine was killed
}

forget();
for (const start = performance.now(); performance.now() < start + 10; ) now();
const server = net.createServer({ noDelay: true }, (socket) => serve(socket.setEncoding("latin1")));
server.listen(0, "127.0.0.1", 1000, () => console.log(server.address().port));
