"""awa, in Python: a job queue. A chain is made as its users make one: each job adds the next."""

import asyncio
import os
import sys
from dataclasses import dataclass

import awa
from measure import Chain, report


@dataclass
class Step:
    left: int


async def main(workload, count):
    client = awa.AsyncClient(os.environ["DATABASE_URL"], max_connections=20)
    await client.migrate()
    chain = Chain(count)

    @client.task(Step, queue="bench")
    async def step(job):
        chain.began()
        if job.args.left > 1:
            await client.insert(Step(left=job.args.left - 1), queue="bench")
        else:
            chain.ended()

    queue = {"name": "bench", "max_workers": 256, "claimers": 2, "claim_batch_size": 512}
    if workload == "latency":
        await client.start([queue], poll_interval_ms=10)

        async def submit(steps):
            nonlocal chain
            chain = Chain()
            await client.insert(Step(left=steps), queue="bench")
            return chain

        await report(count, submit)
    else:
        steps = 4 if workload == "linear" else 1
        for start in range(0, count, 1000):
            await client.insert_many_copy([Step(left=steps)] * min(1000, count - start), queue="bench")
        await client.start([queue], poll_interval_ms=10)
        await chain.done.wait()
        print(steps * count / (chain.last - chain.first))
    await client.shutdown()


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
