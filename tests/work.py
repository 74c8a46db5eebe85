"""Work that the engine's tests hand to other processes: they import it by this name."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rankscope.analysis.engine import Study, Task
from rankscope.analysis.rank import rank_study
from rankscope.errors import UpdateError
from rankscope.results import Result


class Squares(Result):
    schema = "rankscope.squares/1"


def finish(rows, failures, about):
    return Squares(pd.DataFrame(rows), about["provenance"], failures=tuple(failures))


def square(item, number):
    return [{"module": item, "value": number**2, "grid": np.full((2, 2), number / 3)}]


def refuse(item):
    raise UpdateError("no", where=item, expected="yes", got="no", fix="none")


def stumble(item):
    raise ZeroDivisionError("by zero")


def fill(item, error):
    raise error("CUDA out of memory.\n  Tried to allocate 9 GiB")


def fit(item, size, *, device):
    if size > (15 if device.startswith("cuda") else 50):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return [{"module": item, "device": device}]


def die_once(item, marker):
    """Kill the process the first time, and work the second."""
    path = Path(marker)
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item, 7)


def die(item):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(item, marker):
    while not Path(marker).exists():
        time.sleep(0.01)
    return square(item, 1)


def log_and_square(item, number, folder):
    with (Path(folder) / "done").open("a") as file:
        file.write(f"{item}\n")
    return square(item, number)


def study(tasks, *, inputs=(), options=None):
    about = {"provenance": {"inputs": {"source": list(inputs)}, "options": options or {}}}
    return Study("squares", tasks, about, finish)


def squares(count=12):
    return [Task(f"m.{i}", square, (i,), work=float(count - i)) for i in range(count)]


def process_of(item):
    return [{"module": item, "value": os.getpid()}]


def with_a_killer(*arguments, **options):
    """Return the study of `rank` whose second module kills the process that measures it."""
    true = rank_study(*arguments, **options)
    tasks = list(true.tasks)
    tasks[1] = replace(tasks[1], function=die, arguments=(), device=None)
    return replace(true, tasks=tasks)
