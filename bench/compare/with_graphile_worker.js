// graphile-worker, with the settings of its own documentation's performance page. A chain is made as its users make one: each job adds the next.
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";
import { chain, drained, report } from "./measure.js";

const [workload, count] = [process.argv[2], Number(process.argv[3])];
const connectionString = process.env.DATABASE_URL;
const logger = new Logger(() => () => {});
const preset = {
  worker: {
    connectionString,
    concurrentJobs: 24,
    maxPoolSize: 25,
    // Batches cost latency: its documentation says so, too.
    ...(workload === "latency" ? {} : { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 }),
    logger,
  },
};

const utils = await makeWorkerUtils({ connectionString, logger });
await utils.migrate();
const pool = new pg.Pool({ connectionString, max: 1 });
let times = chain();

const taskList = {
  step: async ({ left }, helpers) => {
    times.began();
    if (left > 1) await helpers.addJob("step", { left: left - 1 });
    else times.ended();
  },
};
const add = (tasks, left) => utils.addJobs(Array.from({ length: tasks }, () => ({ identifier: "step", payload: { left } })));

if (workload === "latency") {
  const runner = await run({ preset, taskList });
  await report(count, async (left) => {
    times = chain();
    await utils.addJob("step", { left });
    return times;
  });
  await runner.stop();
} else {
  const left = workload === "linear" ? 4 : 1;
  for (let added = 0; added < count; added += 1000) await add(Math.min(1000, count - added), left);
  await pool.query("CHECKPOINT");
  await pool.query("ANALYZE");
  const runner = await run({ preset, taskList });
  const open = async () => (await pool.query("SELECT EXISTS (SELECT FROM (SELECT FROM graphile_worker._private_jobs ORDER BY id DESC LIMIT 1) AS newest) AS open")).rows[0].open;
  console.log(JSON.stringify((left * count) / (await drained(times, open))));
  await runner.stop();
}
await pool.end();
await utils.release();
