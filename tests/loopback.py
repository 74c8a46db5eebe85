"""A dask scheduler with two workers, as processes of their own on loopback."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager


@contextmanager
def loopback(folder):
    """Give the file in which the scheduler says where it is, with both workers there."""
    file = folder / "scheduler.json"
    own = ("--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file))
    processes = [started("distributed.cli.dask_scheduler", *own, folder=folder)]
    until = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < until, (folder / "log").read_text()
        time.sleep(0.1)
    address = json.loads(file.read_text())["address"]
    many = ("--nworkers", "2", "--nthreads", "1", "--no-dashboard", "--local-directory")
    processes.append(
        started("distributed.cli.dask_worker", address, *many, str(folder), folder=folder)
    )
    wait_for_workers(address, 2)
    yield file
    for process in reversed(processes):
        process.terminate()
        process.wait(30)


def started(*arguments, folder):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "False",
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], env=environment, cwd=folder, stdout=log, stderr=log
        )


def wait_for_workers(address, count):
    from distributed import Client

    client = Client(address, timeout=60, set_as_default=False)
    client.wait_for_workers(count, timeout=120)
    client.close()
