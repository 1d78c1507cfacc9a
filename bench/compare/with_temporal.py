"""Temporal's development server, which keeps everything in memory: latency only. The steps are activities of one workflow."""

import asyncio
import os
import shutil
import sys
from datetime import timedelta

from measure import Chain, report
from temporalio import activity, workflow
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

chain = None


@activity.defn
async def noop() -> None:
    chain.began()


@workflow.defn
class Flow:
    @workflow.run
    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await workflow.execute_activity(noop, start_to_close_timeout=timedelta(seconds=30))


async def main(rounds):
    global chain
    server = os.path.join(os.path.dirname(sys.executable), "temporal")
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=server, dev_server_log_level="error") as here:
        worker = Worker(here.client, task_queue="bench", workflows=[Flow], activities=[noop], workflow_runner=UnsandboxedWorkflowRunner())
        async with worker:

            async def submit(steps):
                global chain
                chain = Chain()
                flow = await here.client.start_workflow(Flow.run, steps, id=os.urandom(8).hex(), task_queue="bench")
                await flow.result()
                chain.ended()
                return chain

            await report(rounds, submit)


asyncio.run(main(int(sys.argv[2])))
