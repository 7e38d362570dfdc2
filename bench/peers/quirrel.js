// Quirrel's own server, as its Docker image runs it: one process with the HTTP API and the worker.
// Its start script has no setting for its rate limit of 10,000 requests a minute, so this one raises that.
const { runQuirrel } = require("quirrel/dist/cjs/src/api");
const { createRedisFactory } = require("quirrel/dist/cjs/src/api/shared/create-redis");

const [redisPort, port] = process.argv.slice(2);

runQuirrel({
  host: "127.0.0.1",
  port: Number(port),
  redisFactory: createRedisFactory(`redis://127.0.0.1:${redisPort}`),
  rateLimiter: { max: 1_000_000_000 },
  disableTelemetry: true,
  logger: "structured",
});
