"""Local processes for a sweep (private): an executor that outlives the death of a worker.

``ProcessPoolExecutor`` gives up as a whole when one of its processes is killed, and cannot say which task was in it.
Here every process has a pipe of its own: a death concerns one task, which is started again in a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

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

    def submit(self, fn, /, *args, **kwargs) -> Future:
        task = pickle.dumps((fn, args, kwargs))  # here, where the caller sees the error
        return self._threads.submit(self._call, task)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            for worker in self._end():
                worker.dismiss()

    def kill(self) -> None:
        """End every process at once; what they had in hand fails with BrokenExecutor."""
        for worker in self._end():
            worker.kill()  # the thread that waits for it sees the end of its pipe

    def _end(self) -> set[_Worker]:
        with self._lock:
            self._closed = True
            workers, self._all = self._all, set()
        return workers

    def _call(self, task: bytes):
        """Run a task, in a thread that does nothing but wait for its process."""
        for _ in range(self._lives):
            worker = self._take()
            try:
                answer = worker.call(task)
            except (EOFError, OSError):
                self._drop(worker)
                code = worker.code
                continue
            self._idle.put(worker)
            succeeded, value = answer
            if succeeded:
                return value
            raise value
        raise WorkerDied(
            f"the process that ran it died {self._lives} times, at last {_manner(code)}; "
            "if the system killed it for want of memory, take fewer workers or a smaller configuration"
        )

    def _take(self) -> _Worker:
        while True:
            try:
                worker = self._idle.get_nowait()
            except queue.Empty:
                return self._start()
            if worker.alive():
                return worker
            self._drop(worker)  # it was killed while it had nothing to do

    def _start(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise BrokenExecutor("the worker processes were ended")
            worker = _Worker()
            self._all.add(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.bury()
        with self._lock:
            self._all.discard(worker)
            if self._closed:
                raise BrokenExecutor("the worker processes were ended")
        if worker.stillborn:
            raise BrokenExecutor(
                f"a worker process could not start ({_manner(worker.code)}; its own words are on stderr); "
                'in a script, call sweep under `if __name__ == "__main__":`, since each worker imports the script'
            )


class _Worker:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with _interrupts_held_back():
            self._process.start()
        theirs.close()
        self._ready = False

    @property
    def stillborn(self) -> bool:
        """Whether it ended of itself before it could take a task: then the next one would, too."""
        return not self._ready and (self.code or 0) > 0

    @property
    def code(self) -> int | None:
        return self._process.exitcode

    def alive(self) -> bool:
        return self._process.is_alive()

    def call(self, task: bytes):
        if not self._ready:
            self._ready = self._pipe.recv()
        self._pipe.send_bytes(task)
        return self._pipe.recv()

    def bury(self) -> None:
        """Let it end, make sure that it has, and close the pipe: for the one thread that reads from it."""
        self._process.join(timeout=5.0)
        self.kill()
        self._pipe.close()

    def dismiss(self) -> None:
        """Close the pipe of a worker that has nothing to do, which ends it."""
        self._pipe.close()
        self._process.join(timeout=5.0)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


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


def _serve(pipe: Connection) -> None:
    """The life of a worker: take a task, answer, until the pipe closes."""
    from tqdm import tqdm

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for variable in _ONE_THREAD:
        os.environ.setdefault(variable, "1")
    threading.Thread(target=_die_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system, which a killed process leaves behind
    pipe.send(True)
    while True:
        try:
            fn, args, kwargs = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, fn(*args, **kwargs)
        except BaseException as error:
            error.add_note("in a worker process:\n" + traceback.format_exc())
            answer = False, error
        pipe.send(answer)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)  # a run in hand has its checkpoint


def _manner(code: int | None) -> str:
    if code is None:
        return "without an exit code"
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
