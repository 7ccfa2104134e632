"""Local processes for a sweep: an executor that outlives the death of a worker.

A ``ProcessPoolExecutor`` gives up as a whole when one of its processes is killed, and cannot say which task was in it.
Here every process has such an executor to itself: a death concerns one task, which is started again in a new one.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

LIVES = 3  # processes that one task may cost

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class WorkerDied(RuntimeError):
    """The process in which a task ran was killed, each time that it was tried."""


class Workers(Executor):
    """``count`` local processes, one thread each, the first started at once, all replaced when they die.

    They are spawned, never forked, so a script that uses them needs ``if __name__ == "__main__":``. They leave
    interrupts to the process that started them, and end with it, even if it is killed.

    Args:
        count: how many, at least 1.
        lives: how many processes one task may cost before it fails with :class:`WorkerDied`.
    """

    def __init__(self, count: int, lives: int = LIVES) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"a sweep needs at least 1 worker process, got {count!r}; give their number, as in 2")
        self._lives = lives
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()  # of _all and _closed
        self._closed = False
        # now, in the caller's thread: where processes cannot be started, the caller is told
        self._idle.put(self._start())
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="nlcompanion-worker")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self._threads.submit(self._call, fn, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            for worker in self._end():
                worker.dismiss()

    def kill(self) -> None:
        """End every process at once; what they had in hand fails with BrokenExecutor."""
        for worker in self._end():
            worker.kill()

    def _end(self) -> set[_Worker]:
        with self._lock:
            self._closed = True
            workers, self._all = self._all, set()
        return workers

    def _call(self, fn: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """Run a task, in a thread that does nothing but wait for its process."""
        for life in range(self._lives):
            worker = self._take()
            try:
                value = worker.call(fn, args, kwargs)
            except BrokenExecutor:
                self._drop(worker, last=life == self._lives - 1)
            except BaseException:  # the task's own; its process is well
                self._idle.put(worker)
                raise
            else:
                self._idle.put(worker)
                return value
        raise WorkerDied(
            f"the process that ran it died {self._lives} times, at last {worker.manner}; "
            "if the system killed it for want of memory, take fewer workers or a smaller configuration"
        )

    def _take(self) -> _Worker:
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return self._start()
            if worker.alive:
                return worker
            self._drop(worker, last=False)  # it was killed while it had nothing to do

    def _start(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise BrokenExecutor("the worker processes were ended")
            worker = _Worker()
            self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker, *, last: bool) -> None:
        worker.dismiss()
        with self._lock:
            self._all.discard(worker)
            if self._closed:
                raise BrokenExecutor("the worker processes were ended")
        if last and worker.process is None:
            raise BrokenExecutor(
                "a worker process could not start (its own words are on stderr); "
                'in a script, call sweep under `if __name__ == "__main__":`, since each worker imports the script'
            )


class _Worker:
    """An executor of one process, and that process once it is ready to work."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        self.process: BaseProcess | None = None
        with _interrupts_held_back():
            self._greeting = self._executor.submit(os.getpid)  # starts the process, and the threads that serve it

    @property
    def alive(self) -> bool:
        return self.process is None or self.process.is_alive()

    @property
    def manner(self) -> str:
        """How it ended."""
        code = None if self.process is None else self.process.exitcode
        if code is None or code >= 0:
            return f"with exit code {code}"
        try:
            return f"by {signal.Signals(-code).name}"
        except ValueError:
            return f"by signal {-code}"

    def call(self, fn: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        if self.process is None:
            pid = self._greeting.result()
            self.process = next((child for child in multiprocessing.active_children() if child.pid == pid), None)
        return self._executor.submit(fn, *args, **kwargs).result()

    def dismiss(self) -> None:
        """End it once it has nothing to do."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """What starts here is deaf to Ctrl-C from its first instant, not only once it has imported all it needs."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else started on the way, and it would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """The first thing that a worker does."""
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for variable in _ONE_THREAD:
        os.environ.setdefault(variable, "1")
    threading.Thread(target=_die_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # a run in hand has its checkpoint
