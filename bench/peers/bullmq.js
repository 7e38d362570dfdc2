// Timers built with BullMQ, as its users would: `front` creates them over HTTP, `worker` fires them.
const http = require("node:http");
const { Queue, Worker } = require("bullmq");

const [role, redisPort, port] = process.argv.slice(2);
const connection = { host: "127.0.0.1", port: Number(redisPort), maxRetriesPerRequest: null };

async function fire(job) {
  const headers = { "webhook-id": job.id };
  const response = await fetch(job.data.url, { method: "POST", headers });
  await response.arrayBuffer();
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
}

const options = {
  attempts: 8,
  backoff: { type: "exponential", delay: 10_000 },
  removeOnComplete: true,
};

async function create(queue, request, response) {
  let body = "";
  for await (const chunk of request) body += chunk;
  if (request.method !== "POST") return response.end("{}");
  const { url, fire_at } = JSON.parse(body);
  const delay = Math.max(0, Date.parse(fire_at) - Date.now());
  const job = await queue.add("timer", { url }, { ...options, delay });
  response.statusCode = 201;
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ id: job.id }));
}

if (role === "worker") {
  new Worker("timers", fire, { connection, concurrency: 64 });
} else {
  const queue = new Queue("timers", { connection });
  http.createServer((request, response) => create(queue, request, response)).listen(port, "127.0.0.1");
}
