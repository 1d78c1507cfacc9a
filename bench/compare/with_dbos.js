// DBOS Transact: a workflow with so many steps. For throughput they come from a queue, that is polled as fast as it helps; for latency they are
// started directly, in the process that submits, which is the fastest that DBOS has.
import { DBOS, DBOSClient } from "@dbos-inc/dbos-sdk";
import pg from "pg";
import { chain, drained, report } from "./measure.js";

const [workload, count] = [process.argv[2], Number(process.argv[3])];
const systemDatabaseUrl = process.env.DATABASE_URL;
let times = chain();

async function noop() {
  times.began();
  return Date.now() / 1000;
}

const flow = DBOS.registerWorkflow(
  async (steps) => {
    for (let step = 0; step < steps; step++) await DBOS.runStep(noop, { name: `s${step}` });
    times.ended();
  },
  { name: "flow" },
);

DBOS.setConfig({ name: "bench", systemDatabaseUrl, systemDatabasePoolSize: 20, logLevel: "error", runAdminServer: false, listenQueues: [] });

if (workload === "latency") {
  await DBOS.launch();
  await report(count, async (steps) => {
    times = chain();
    await DBOS.startWorkflow(flow)(steps);
    return times;
  });
} else {
  const steps = workload === "linear" ? 4 : 1;
  await DBOS.launch();
  await DBOS.shutdown();
  const pool = new pg.Pool({ connectionString: systemDatabaseUrl, max: 1 });
  const client = await DBOSClient.create({ systemDatabaseUrl, systemDatabasePoolSize: 20 });
  const options = { queueName: "queue", workflowName: "flow" };
  for (let added = 0; added < count; added += 100) {
    await Promise.all(Array.from({ length: Math.min(100, count - added) }, () => client.enqueue(options, steps)));
  }
  await client.destroy();
  await pool.query("CHECKPOINT");
  await pool.query("ANALYZE");
  DBOS.setConfig({ name: "bench", systemDatabaseUrl, systemDatabasePoolSize: 20, logLevel: "error", runAdminServer: false });
  await DBOS.launch();
  await DBOS.registerQueue("queue", { workerConcurrency: 200, minPollingIntervalMs: 10 });
  const open = async () =>
    (await pool.query("SELECT EXISTS (SELECT FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')) AS open")).rows[0].open;
  console.log(JSON.stringify((steps * count) / (await drained(times, open))));
  await pool.end();
}
await DBOS.shutdown();
