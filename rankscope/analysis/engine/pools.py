"""Where tasks run: in this process, in processes of its own, or on somebody's executor.

Each way yields outcomes as they come; closing the iterator stops the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from contextlib import contextmanager
from queue import SimpleQueue

import torch

from rankscope.analysis.engine.task import Outcome, Task, WorkerLostError, lost, perform
from rankscope.errors import SourceError, UpdateError

__all__ = ["Outcomes", "in_process", "in_processes", "on_executor"]

Outcomes = Generator[Outcome, None, None]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def in_process(tasks: Sequence[Task], threads: int) -> Outcomes:
    """Do the tasks one after the other, in a thread: LAPACK does not hear an interrupt."""
    done: SimpleQueue[Outcome] = SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        before = torch.get_num_threads()
        for task in tasks:
            if stopped.is_set():
                break
            done.put(perform(task, threads))
        torch.set_num_threads(before)

    threading.Thread(target=work, name="rankscope", daemon=True).start()
    try:
        for _ in tasks:
            yield done.get()
    finally:
        stopped.set()


def in_processes(tasks: Iterable[Task], jobs: int, threads: int, memory: int | None) -> Outcomes:
    """Do the tasks in `jobs` spawned processes that together hold at most `memory` bytes.

    A process that dies takes nothing with it: the pool is made anew, what was under way is
    done again one by one, and a task that kills its process a second time is given up.
    """
    pending = deque(tasks)
    while pending:
        for task in (yield from _until_broken(pending, jobs, threads, memory)):
            outcome = None
            alone = deque([task])
            for outcome in _until_broken(alone, 1, threads, None):
                yield outcome
            if outcome is None:
                yield lost(task, "no result and no message: killed, or out of memory")


def on_executor(tasks: Iterable[Task], executor: Executor, threads: int) -> Outcomes:
    """Do the tasks on an executor of the caller's, which starts dead workers again itself.

    What was lost with a worker may have done nothing but wait beside the task that killed it:
    it is done again alone, and given up when it is lost once more.
    """
    suspects: list[Task] = []
    for task, outcome in _on_executor(tasks, executor, threads):
        if outcome.error is None or not isinstance(outcome.error, WorkerLostError):
            yield outcome
        else:
            suspects.append(task)
    for suspect in suspects:
        yield from (outcome for _, outcome in _on_executor([suspect], executor, threads))


def _on_executor(
    tasks: Iterable[Task], executor: Executor, threads: int
) -> Generator[tuple[Task, Outcome], None, None]:
    flying: dict[Future[Outcome], Task] = {}
    try:
        for task in tasks:
            flying[_submitted(executor, task, threads)] = task
        for future in as_completed(flying):
            yield flying[future], _landed(future, flying[future])
    finally:
        for future in flying:
            future.cancel()


def _submitted(executor: Executor, task: Task, threads: int) -> Future[Outcome]:
    try:
        return executor.submit(perform, task, threads)
    except BrokenExecutor as error:
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future
    except Exception as error:  # whatever its pickling raises
        raise _stuck(task, error) from error


def _landed(future: Future[Outcome], task: Task) -> Outcome:
    """Return the outcome of a task that has ended, or of the loss of its worker."""
    try:
        return future.result()
    except CancelledError as error:
        raise SourceError(
            "the executor has dropped the work",
            where=task.item,
            expected="a result",
            got="a task that was cancelled: the scheduler or the executor has ended",
            fix="start it again; with --journal and --resume what is done is kept",
        ) from error
    except Exception as error:
        # dask's KilledWorker is known by name: distributed need not be installed.
        if isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker":
            text = " ".join(str(error).split())[:200]
            return lost(task, f"{type(error).__name__}: {text}")
        raise _stuck(task, error) from error


def _until_broken(
    pending: deque[Task], jobs: int, threads: int, memory: int | None
) -> Generator[Outcome, None, list[Task]]:
    """Yield outcomes until all is done or a process dies; return what was under way then."""
    flying: dict[Future[Outcome], Task] = {}
    with _processes(jobs, threads) as pool:
        _check_alive(pool)
        while pending or flying:
            broken = not _submit(pool, pending, flying, jobs, threads, memory)
            done, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                error = future.exception()
                if isinstance(error, BrokenExecutor):
                    broken = True
                    continue
                task = flying.pop(future)
                if error is not None:  # a task catches its own: this one did not travel
                    raise _stuck(task, error) from error
                yield future.result()
            if broken:
                break
    return list(flying.values())


def _check_alive(pool: Executor) -> None:
    try:
        pool.submit(os.getpid).result()
    except BrokenExecutor as error:
        raise UpdateError(
            "no other process can be started",
            where="--jobs",
            expected="Python processes that can import this program",
            got=" ".join(str(error).split())[:200],
            fix='in a script, put the call under if __name__ == "__main__":; or use one job',
        ) from error


def _submit(
    pool: Executor,
    pending: deque[Task],
    flying: dict[Future[Outcome], Task],
    jobs: int,
    threads: int,
    memory: int | None,
) -> bool:
    """Hand out tasks while there is room; say whether the pool still takes them."""
    while pending and len(flying) < 2 * jobs:
        held = sum(task.memory for task in flying.values())
        if flying and memory is not None and held + pending[0].memory > memory:
            break
        try:
            future = pool.submit(perform, pending[0], threads)
        except BrokenExecutor:
            return False
        flying[future] = pending.popleft()
    return True


def _stuck(task: Task, error: BaseException) -> UpdateError:
    return UpdateError(
        "this source cannot be handed to another process",
        where=task.item,
        expected="sources that are files, or in memory and picklable",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        fix="save it and name the file, or use one job",
    )


@contextmanager
def _processes(jobs: int, threads: int) -> Iterator[Executor]:
    """Give a pool of spawned processes, which are killed if the work is given up."""
    before = set(multiprocessing.active_children())
    with _few_threads(threads):
        pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare,
        )
        try:
            yield pool
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


@contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    """Let processes that start now give BLAS so many threads, which wait without spinning."""
    wanted = dict.fromkeys(_THREADS, str(threads)) | {"OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _prepare() -> None:
    """Leave interrupts to the parent process, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
