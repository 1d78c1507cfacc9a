"""What the programs in Python measure, and how: as bench/latency.rs and bench/throughput.rs do."""

import asyncio
import json
import time


class Chain:
    """When the first handler of so many tasks began, and the last one ended."""

    def __init__(self, tasks=1):
        self.first = self.last = None
        self.left = tasks
        self.done = asyncio.Event()

    def began(self):
        self.first = self.first or time.perf_counter()

    def ended(self):
        self.left -= 1
        if self.left == 0:
            self.last = time.perf_counter()
            self.done.set()


async def report(rounds, submit):
    """Prints the milliseconds from submission until the handler of a task of one step begins, and until a task of four steps ends."""
    begin, end = [], []
    warm_up = 20
    for number in range(2 * (warm_up + rounds)):
        steps = 4 if number % 2 else 1
        submitted = time.perf_counter()
        chain = await submit(steps)
        await chain.done.wait()
        if number >= 2 * warm_up:
            if steps == 1:
                begin.append(1000 * (chain.first - submitted))
            else:
                end.append(1000 * (chain.last - submitted))
        await asyncio.sleep(0.05)
    print(json.dumps({"begin": begin, "end": end}))
