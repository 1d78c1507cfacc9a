// What the programs in JavaScript measure, and how: as bench/latency.rs and bench/throughput.rs do.
import { setTimeout as sleep } from "node:timers/promises";

const now = () => performance.now();

// When the first handler of a task began, and the last one ended.
export function chain() {
  const times = {};
  times.done = new Promise((resolve) => {
    times.began = () => (times.first ??= now());
    times.ended = () => resolve((times.last = now()));
  });
  return times;
}

// Seconds from the first handler's beginning until nothing is open any more.
export async function drained(times, open) {
  while (times.first === undefined || (await open())) await sleep(50);
  return (now() - times.first) / 1000;
}

// Prints the milliseconds from submission until the handler of a task of one step begins, and until a task of four steps ends.
export async function report(rounds, submit) {
  const begin = [];
  const end = [];
  const warmUp = 20;
  for (let round = 0; round < 2 * (warmUp + rounds); round++) {
    const steps = round % 2 ? 4 : 1;
    const submitted = now();
    const times = await submit(steps);
    await times.done;
    if (round >= 2 * warmUp) (steps === 1 ? begin : end).push((steps === 1 ? times.first : times.last) - submitted);
    await sleep(50);
  }
  console.log(JSON.stringify({ begin, end }));
}
