"""Runs kosoku, which drives the case files of the Autobahn TestSuite, in one of three roles; results are JSON, a line for each case.

    drive.py client URL CASE...   is the client; CASE is a glob such as 5.*
    drive.py server CASE...       is the server; prints its port first, ends when the client under test is done
    drive.py echo                 is no suite: a server that echoes, with permessage-deflate (RFC 7692); prints its port, runs until its input ends
"""

import asyncio
import json
import sys


def show(results):
    for result in results:
        verdict = {
            "case": result.case_id,
            "behavior": result.behavior.value,
            "close": result.behavior_close.value,
            "passed": result.passed,
            "why": f"{result.result} {result.result_close}",
        }
        print(json.dumps(verdict), flush=True)


async def client(url, cases):
    from kosoku import FailureError, run_fuzzingclient

    try:
        show(await run_fuzzingclient(url, cases, concurrency=8))
    except FailureError as failure:
        show(failure.results)


async def server(cases):
    from kosoku import FailureError, run_fuzzingserver

    try:
        async with run_fuzzingserver(cases, host="127.0.0.1", port=0) as running:
            print(running.port, flush=True)
            show(await running.get_result())
    except FailureError as failure:
        show(failure.results)


async def echo():
    from websockets.asyncio.server import serve

    async def again(socket):
        async for message in socket:
            await socket.send(message)

    async with serve(again, "127.0.0.1", 0, max_size=1 << 26, ping_interval=None) as running:
        print(running.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


role, *rest = sys.argv[1:]
if role == "client":
    asyncio.run(client(rest[0], rest[1:]))
elif role == "server":
    asyncio.run(server(rest))
else:
    asyncio.run(echo())
