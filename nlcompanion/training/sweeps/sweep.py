"""Sweeps: many runs, one file each, whatever happens meanwhile."""

from __future__ import annotations

import threading
import time
import traceback
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlcompanion._arguments import a_path, described, flag, function, integer
from nlcompanion._extras import progress_bar
from nlcompanion._storage import set_aside
from nlcompanion.training.config import TrainConfig
from nlcompanion.training.sweeps import records
from nlcompanion.training.sweeps import store as files
from nlcompanion.training.sweeps.records import Record, Sweep
from nlcompanion.training.sweeps.store import SweepError
from nlcompanion.training.sweeps.workers import Workers

_TURN = threading.Lock()  # torch's number of threads and its treatment of denormals are not one run's own
_MOST_WORKERS = 10_000
_PATIENCE = 10.0  # seconds until a network's file system shows what another machine has written


def sweep(
    configs: Iterable[TrainConfig | Mapping[str, Any]],
    folder: Path | str,
    executor: Executor | int | None = None,
    *,
    run: bool = True,
    retry_failed: bool = True,
    progress: bool | Callable[[Record], object] = False,
) -> Sweep:
    """Train every configuration and keep each run in a file of its own; what is there already is not done again.

    The file ``folder/KEY.json`` is named by the configuration's hash, ``config.key``, and holds the configuration, the
    run or the traceback of its failure, the provenance, and a checksum. It appears in one move. Whatever ends a sweep
    (an interrupt, SIGKILL, a power cut), the next call with the same folder goes on: finished and diverged runs are
    kept, a run that was cut off resumes from the checkpoint of its last epoch, and the results have the same bits as
    those of an undisturbed sweep. Every run computes on one thread, so they do not depend on the executor either.

    Two sweeps may work on one folder at once. A run belongs to the process that holds its lock; the others take up
    other runs and come back to it. A killed process holds no lock.

    Args:
        configs: :class:`TrainConfig`, or mappings of their settings. Equal ones are one run.
        folder: where the files go; made if need be. Workers on other machines must see it under the same path.
        executor: None for this process; a number of local processes, of which one that is killed is replaced, and its
            run resumed; or any ``concurrent.futures.Executor``: a ``ProcessPoolExecutor``, or a Dask cluster through
            ``client.get_executor()``. The threads of one process take turns. In a script, local processes need
            ``if __name__ == "__main__":``.
        run: with False nothing is run or written, and runs that are not there have the status ``"missing"``.
        retry_failed: whether to try runs again whose file records a failure.
        progress: True shows a bar; a function is called with the :class:`Record` of every run that this call ends.

    Returns:
        One record per configuration, in order: a :class:`Sweep`. A failed run is a record with its traceback, a
        diverged one a record with its run up to there; neither stops the others.

    Raises:
        ValueError: a configuration is impossible; nothing was run.
        SweepError: the folder cannot be used, or a pool of processes broke down. What was finished is stored.

    Warns:
        UserWarning: a results file or a checkpoint was damaged. It is renamed to ``....corrupt``, and the run is done
            again.

    Example:
        >>> import tempfile
        >>> from nlcompanion import TrainConfig, sweep
        >>> configs = [TrainConfig(lr=lr, epochs=1, subset=256, width=0.5) for lr in (0.01, 0.1)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = sweep(configs, folder)
        ...     again = sweep(configs, folder)  # reads the files
        >>> dict(again.status), result[0].run.accuracy == again[0].run.accuracy
        ({'finished': 2}, True)
        >>> sorted(again.table())
        ['lr', 'status', 'steps', 'test_accuracy', 'test_accuracy_recalibrated', 'train_loss']
    """
    folder = absolute(a_path("folder", folder))
    flag("run", run)
    flag("retry_failed", retry_failed)
    if callable(progress):
        function("progress", progress, "progress(record), or True, or False", 1)
    else:
        flag("progress", progress)
    _check_executor(executor)
    wanted = _unique(configs)
    ended: dict[str, Record] = {}
    if run:
        job = _Task(_made(folder), retry_failed, shown=progress is True and executor is None)
        with _reporter(progress, len(wanted)) as report, closing(job.bring_to_end(wanted, executor)) as endings:
            for record, new in endings:
                ended[record.key] = record
                report(record, new)
    return Sweep(folder, tuple(ended.get(config.key) or records.read(config, folder) for config in wanted))


def _unique(configs: Iterable[TrainConfig | Mapping[str, Any]]) -> list[TrainConfig]:
    if isinstance(configs, TrainConfig | Mapping):
        raise ValueError("configs is a list of configurations, got a single one; write [config]")
    if isinstance(configs, str | bytes) or hasattr(configs, "ndim") or not isinstance(configs, Iterable):
        raise TypeError(f"configs must be configurations in a list, got {described(configs)}; write [TrainConfig(...)]")
    made = [config if isinstance(config, TrainConfig) else TrainConfig.from_dict(config) for config in configs]
    if any(config.dataset == "custom" for config in made):
        raise ValueError(
            'a sweep finds a run again by its configuration, and dataset="custom" does not say which data; '
            "take a named data set, or call train(config, data=...) and store its runs yourself"
        )
    return list({config.key: config for config in made}.values())


def absolute(folder: Path | str) -> Path:
    """The folder's whole name, which is the same in every process.

    Raises:
        SweepError: it is relative to a folder that is no more.
    """
    try:
        return Path(folder).absolute()
    except OSError as error:
        raise SweepError(
            f"runs cannot be kept in {folder}, since the present folder was removed ({error}); nothing was run; change "
            "to another one, or give the folder's whole name"
        ) from None


def _made(folder: Path) -> Path:
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / ".locks").mkdir(exist_ok=True)
    except OSError as error:
        raise SweepError(f"runs cannot be kept in {folder} ({error}); nothing was run; choose another folder") from None
    return folder


@contextmanager
def _reporter(progress: bool | Callable[[Record], object], total: int) -> Iterator[Callable[[Record, bool], object]]:
    """A function that is told of every run's end, and whether it was this call that ended it."""
    if callable(progress):
        yield lambda record, new: progress(record) if new else None
        return
    with progress_bar(shown=bool(progress) and total > 1, total=total, unit="run") as bar:
        states: Counter[str] = Counter()

        def report(record: Record, new: bool) -> None:
            states[record.status] += 1
            bar.set_postfix(states, refresh=False)
            bar.update()

        yield report


def _check_executor(executor: Executor | int | None) -> None:
    if executor is None or isinstance(executor, Executor):
        return
    if hasattr(executor, "get_executor"):
        raise TypeError(
            "executor is a Dask client, which is no concurrent.futures.Executor; pass client.get_executor()"
        )
    if isinstance(executor, bool) or not isinstance(executor, int):
        raise TypeError(
            "executor is None, a number of local processes or a concurrent.futures.Executor, "
            f"got {type(executor).__name__}"
        )
    integer("executor", executor, 1, _MOST_WORKERS)


@contextmanager
def _pool(executor: Executor | int | None) -> Iterator[Executor | None]:
    if executor is None or isinstance(executor, Executor):
        yield executor  # not ours to shut down
        return
    with Workers(executor) as workers:
        try:
            yield workers
        except BaseException:
            workers.kill()
            raise


# --- the process that was called ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What every run of a sweep has in common; it travels to the workers."""

    folder: Path
    retry_failed: bool
    shown: bool  # whether a run in this process shows a bar of its steps

    def bring_to_end(
        self, configs: Sequence[TrainConfig], executor: Executor | int | None
    ) -> Generator[tuple[Record, bool], None, None]:
        """The record of each run as it ends, and whether it was this call that ended it."""
        todo = []
        for config in configs:
            record = records.read(config, self.folder)
            untidy = files.checkpoint_path(self.folder, config.key).exists()  # killed just before it was removed
            if (record.run and not untidy) or (record.status == "failed" and not self.retry_failed):
                yield record, False
            else:
                todo.append(config)
        if not todo:
            return
        with _pool(executor) as pool:
            for wait in (False, True):  # first what nobody works on, then wait for what others had in hand
                with closing(_answers(pool, self, todo, wait)) as answers:
                    todo = []
                    for config, answer in answers:
                        if isinstance(answer, Exception):
                            answer = self.lost(config, answer)
                        if answer["status"] == "busy":
                            todo.append(config)
                        else:
                            yield self.seen(config), answer["new"]
                        for note in answer["notes"]:
                            warnings.warn(note, stacklevel=4)

    def lost(self, config: TrainConfig, error: Exception) -> dict:
        """Record a run that came to nothing outside itself: its worker died each time, or could not be reached."""
        if isinstance(error, SweepError):
            raise error
        if isinstance(error, OSError):
            raise SweepError(
                f"the sweep stopped at the run {config.key}: {error}; finished runs are in {self.folder}; "
                "make room or mend the permissions there, then call sweep again to go on"
            ) from error
        text = "".join(traceback.format_exception(error))
        with files.run_lock(self.folder, config.key, wait=True):
            if (record := records.read(config, self.folder)).run:  # another sweep has done it meanwhile
                return {"status": record.status, "new": False, "notes": []}
            files.store(self.folder, records.content_of_failure(config, text, 0.0))
        return {"status": "failed", "new": True, "notes": []}

    def seen(self, config: TrainConfig) -> Record:
        """The record of a run that its worker says to have stored."""
        late = time.monotonic() + _PATIENCE
        while (record := records.read(config, self.folder)).status == "missing":
            if time.monotonic() > late:
                raise SweepError(
                    f"a worker has stored the run {config.key}, but there is no {record.path} here; workers on other "
                    "machines must see the folder under the same path, so take one on a file system that all share"
                )
            time.sleep(0.2)
        return record


def _answers(
    pool: Executor | None, job: _Task, configs: Sequence[TrainConfig], wait: bool
) -> Generator[tuple[TrainConfig, dict | Exception], None, None]:
    """What became of each run, as they end."""
    if pool is None:
        for config in configs:
            answer: dict | Exception
            try:
                answer = _work(job, config, wait)
            except Exception as error:
                answer = error
            yield config, answer
        return
    futures: dict[Future, TrainConfig] = {}
    try:
        for config in configs:
            # the ticket: Dask takes calls with equal arguments for one
            futures[pool.submit(_work, job, config, wait, uuid.uuid4().hex)] = config
        for future in as_completed(futures):
            failure = future.exception()
            if failure is None:
                yield futures[future], future.result()
            elif isinstance(failure, BrokenExecutor) or not isinstance(failure, Exception):
                raise failure
            else:
                yield futures[future], failure
    except (BrokenExecutor, CancelledError) as error:
        there = sum(files.result_path(job.folder, config.key).exists() for config in configs)
        raise SweepError(
            f"the executor gave up ({str(error) or type(error).__name__}) with {there} of its {len(configs)} runs "
            f"stored in {job.folder}; the others keep their checkpoints; call sweep again with a new executor to go on "
            "(executor=2, a number, replaces a process that dies)"
        ) from error
    finally:
        for future in futures:
            future.cancel()  # on the way out of an error or an interrupt; those that are done do not mind


# --- the process that trains ----------------------------------------------------------------------------------------


def _work(job: _Task, config: TrainConfig, wait: bool, ticket: str = "") -> dict:
    """Bring one run to its end, in whatever process or thread this is."""
    folder, key = job.folder, config.key
    with _TURN, files.run_lock(folder, key, wait=wait) as mine:
        if not mine:
            return {"status": "busy", "new": False, "notes": []}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            content, new = _sound(config, folder), False
            if content is None or (content["status"] == "failed" and job.retry_failed):
                content, new = _trained(config, folder, job.shown), True
                files.store(folder, content)
            files.tidy(folder, key, checkpoint=content["status"] != "failed")
    return {"status": content["status"], "new": new, "notes": [str(warning.message) for warning in caught]}


def _sound(config: TrainConfig, folder: Path) -> dict | None:
    """What is stored of a run, if its file is what it should be; another file is set aside."""
    try:
        content = files.stored(folder, config.key)
        if content is not None:
            records.interpret(content, files.result_path(folder, config.key))
        return content
    except ValueError as error:
        path = files.result_path(folder, config.key)
        aside = set_aside(path)
        warnings.warn(
            f"{path} is damaged: {error}; it was renamed to {aside.name}, and the run is done again", stacklevel=2
        )
        return None


def _trained(config: TrainConfig, folder: Path, shown: bool) -> dict:
    """Train, from the checkpoint if there is one: the content of the run's file."""
    begin = time.perf_counter()
    try:
        from nlcompanion.training.loop import train

        path = files.checkpoint_path(folder, config.key)
        with _as_everywhere():
            return records.content_of(train(config, checkpoint=path, progress=None if shown else False))
    except Exception:
        return records.content_of_failure(config, traceback.format_exc(), time.perf_counter() - begin)


@contextmanager
def _as_everywhere() -> Iterator[None]:
    """One thread, and denormal numbers flushed to zero: the same bits in every process, and no sudden crawl."""
    import torch

    threads, tiny = torch.get_num_threads(), 5e-324
    flushed = tiny * threads == 0.0  # torch does not tell
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
