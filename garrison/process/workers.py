"""Several workers: processes for the request path, which the control process starts, watches and asks.

Each is told over a socket pair what it is to be, so that one that is started again later serves by the
settings that the others serve by, whatever the file says by then.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from garrison.documents import Diagnostic, Position
from garrison.errors import ConfigError, DependencyError
from garrison.process.embedded import EmbeddedValkey
from garrison.process.keeping import describe_exit, keep_running
from garrison.process.link import Message, frame, read_frame
from garrison.process.settings import Settings, parse_settings
from garrison.process.settings.rate_limits import RateLimitSettings
from garrison.redis_address import RedisAddress
from garrison.telemetry.merging import Totals
from garrison.transport.address import Address

log = structlog.get_logger()

CONFIG_ERROR = 2
# How long a scrape waits for the metrics of a worker, and a reset until it has forgotten a counter.
_ANSWER_SECONDS = 1.0
# How long a worker may take beyond its drain before it is killed.
_OVERTIME_SECONDS = 2.0
# What an ended worker said last is still in its socket.
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is to be: `settings` as plain data, where to listen, and where counts are.

    `bundles` are the trust bundles of federation that are in force when it starts.
    """

    number: int
    settings: Mapping[str, Any]
    listen: Sequence[Address]
    store: str
    bundles: Message = field(default_factory=dict)

    def as_message(self) -> Message:
        """Return the first frame that a worker gets."""
        return {
            "number": self.number,
            "settings": self.settings,
            "listen": [str(address) for address in self.listen],
            "store": self.store,
            "bundles": self.bundles,
        }

    @classmethod
    def of(cls, message: Message) -> Assignment:
        """Return what `as_message` returned."""
        listen = [Address.parse(text) for text in message["listen"]]
        return cls(message["number"], message["settings"], listen, message["store"], message["bundles"])

    def parse_settings(self) -> Settings:
        """Return the settings that the worker serves by: as of a whole process, with its own addresses.

        Nothing that a process writes to is shared with another one.
        """
        settings = parse_settings(self.settings)
        keys, distribution, folder = settings.keys, settings.distribution, f"worker-{self.number}"
        if keys.cache is not None:
            keys = keys.model_copy(update={"cache": keys.cache / folder})
        if distribution.cache is not None:
            distribution = distribution.model_copy(update={"cache": distribution.cache / folder})
        if distribution.replica:
            name = f"{distribution.replica}.{self.number}"
            distribution = distribution.model_copy(update={"replica": name})
        return settings.model_copy(
            update={
                "workers": 1,
                "request": settings.request.model_copy(update={"listen": list(self.listen)}),
                "rate_limit": shared_counts(settings, self.store),
                "keys": keys,
                "distribution": distribution,
            }
        )


def shared_counts(settings: Settings, store: str) -> RateLimitSettings:
    """Return the settings of rate limits for one of several processes.

    `store` is the URL of the embedded store, if there is one.
    """
    rate_limit = settings.rate_limit
    update: dict[str, Any] = {"replicas": rate_limit.replicas * settings.workers}
    if store:
        update["redis"] = [RedisAddress.parse(store)]
    return rate_limit.model_copy(update=update)


def control_settings(settings: Settings, store: str) -> Settings:
    """Return the settings of the control process: it follows no policies and remembers no keys."""
    return settings.model_copy(
        update={
            "rate_limit": shared_counts(settings, store),
            "keys": settings.keys.model_copy(update={"cache": None}),
            "distribution": settings.distribution.model_copy(update={"redis": None}),
        }
    )


@dataclass(eq=False, slots=True)
class Worker:
    """What is known of one worker; `life` counts its processes."""

    number: int
    listen: list[Address]
    life: int = 0
    process: asyncio.subprocess.Process | None = None
    is_listening: bool = False
    is_ready: bool = False
    silent: int = 0
    requests: int = 0
    writer: asyncio.StreamWriter | None = None
    asked: dict[int, asyncio.Future[Message]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its metrics are kept under."""
        return str(self.number)

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return max(self.life - 1, 0)

    def describe(self) -> str:
        """Return how it is, for people."""
        state = "ready" if self.is_ready else "not ready" if self.is_listening else "starting"
        pid = self.process.pid if self.process is not None else "none"
        return f"{state} (pid {pid}, restarts {self.restarts})"


class Workers:
    """The request path in several processes, from `start` to `drain`."""

    def __init__(
        self,
        settings: Settings,
        data: Mapping[str, Any],
        store: str,
        *,
        command: Sequence[str] = (sys.executable, "-P", "-m", "garrison.process.worker"),
    ) -> None:
        """Prepare; `data` is what workers get as their settings, `store` the embedded store's URL, if any.

        A worker is started as `command` with the descriptor of its end of the link as last argument.
        """
        self._data = data
        self._store = store
        self._bundles: Message = {}
        self._command = command
        self._workers = [
            Worker(number, [address.of_worker(number) for address in settings.request.listen])
            for number in range(settings.workers)
        ]
        self.totals = Totals()
        self.changed: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._started = False
        self._failure: Exception | None = None
        self._news = asyncio.Event()
        self._keeping: list[asyncio.Task[None]] = []

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where workers listen."""
        return tuple(address for worker in self._workers for address in worker.listen)

    @property
    def any_ready(self) -> bool:
        """Whether a call finds somebody who decides it."""
        return any(worker.is_ready for worker in self._workers)

    def describe(self) -> dict[str, str]:
        """Return a line about each worker."""
        return {f"worker {worker.number}": worker.describe() for worker in self._workers}

    def ready(self) -> dict[int, bool]:
        """Return which workers take calls."""
        return {worker.number: worker.is_ready for worker in self._workers}

    def restarts(self) -> dict[int, int]:
        """Return how often each worker was started again."""
        return {worker.number: worker.restarts for worker in self._workers}

    def silent(self) -> dict[int, int]:
        """Return how many scrapes each worker did not answer."""
        return {worker.number: worker.silent for worker in self._workers}

    async def start(self) -> None:
        """Start the workers; return when all of them listen. From now on, those that end are started again.

        Raises:
            ConfigError: a worker ended before that because of its settings; it has said why.
            DependencyError: a worker ended before that.

        """
        self._loop = asyncio.get_running_loop()
        self._keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        while not all(worker.is_listening for worker in self._workers):
            self._news.clear()
            await self._news.wait()
            if self._failure is not None:
                await self.drain(0)
                raise self._failure
        self._started = True

    async def drain(self, grace_seconds: float) -> None:
        """Have every worker drain, within `grace_seconds`."""
        self._stop.set()
        for worker in self._workers:
            if worker.process is not None and worker.process.returncode is None:
                worker.process.terminate()
        if self._keeping:
            _, late = await asyncio.wait(self._keeping, timeout=grace_seconds + _OVERTIME_SECONDS)
            for worker in self._workers if late else ():
                if worker.process is not None and worker.process.returncode is None:
                    log.warning("worker_killed", worker=worker.number)
                    worker.process.kill()
            await asyncio.gather(*self._keeping, return_exceptions=True)

    def metrics(self) -> set[str]:
        """Have `totals` know what workers have counted by now; return the names of those that answered.

        For any thread but the event loop's.
        """
        if self._loop is None or self._loop.is_closed():
            return set()
        asking = asyncio.run_coroutine_threadsafe(self._ask_all(), self._loop)
        try:
            pages = asking.result(2 * _ANSWER_SECONDS)
        except TimeoutError:
            asking.cancel()
            return set()
        answered = set()
        for worker, life, page in pages:
            if page is not None and self._record(worker, life, page):
                answered.add(worker.name)
            else:
                worker.silent += 1
        return answered

    async def forget(self, keys: Sequence[str]) -> None:
        """Have every worker that serves forget what it knows of the buckets `keys`.

        Raises:
            DependencyError: one of them did not answer.

        """
        listening = [worker for worker in self._workers if worker.is_listening]
        lives = [worker.life for worker in listening]
        answers = await asyncio.gather(*(self._ask(worker, forget=list(keys)) for worker in listening))
        for worker, life, answer in zip(listening, lives, answers, strict=True):
            # One that has ended meanwhile knows nothing any more.
            if answer is None and worker.is_listening and worker.life == life:
                raise DependencyError(f"worker {worker.number} does not answer; nothing was reset")

    def tell_bundles(self, bundles: Message) -> None:
        """Have every worker, also one that starts later, verify peers with these bundles of federation."""
        self._bundles = bundles
        for worker in self._workers:
            if worker.writer is not None:
                worker.writer.write(frame({"bundles": bundles}))

    def _record(self, worker: Worker, life: int, page: str) -> bool:
        """Note a page of metrics; return whether it could be read."""
        try:
            self.totals.record(worker.name, life, page)
        except ValueError:
            log.exception("metrics_unreadable", worker=worker.number)
            return False
        return True

    async def _ask_all(self) -> list[tuple[Worker, int, str | None]]:
        listening = [worker for worker in self._workers if worker.is_listening]
        lives = [worker.life for worker in listening]
        answers = await asyncio.gather(*map(self._ask, listening))
        pages = [answer["metrics"] if answer is not None else None for answer in answers]
        return list(zip(listening, lives, pages, strict=True))

    async def _ask(self, worker: Worker, **question: list[str]) -> Message | None:
        """Return what a worker answers, None if it does not in time. Without a question it is its metrics."""
        if worker.writer is None:
            return None
        worker.requests += 1
        number = worker.requests
        answer = worker.asked[number] = asyncio.get_running_loop().create_future()
        worker.writer.write(frame({"request": number, **question}))
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                message: Message = await answer
                return message
        except (TimeoutError, asyncio.CancelledError):
            return None
        finally:
            worker.asked.pop(number, None)

    async def _keep(self, worker: Worker) -> None:
        def ended(how: str, delay: float) -> None:
            log.error("worker_ended", worker=worker.number, how=how, restart_in_seconds=delay)

        await keep_running(lambda: self._run(worker), ended, self._stop)

    async def _run(self, worker: Worker) -> str:
        """Run one process until it has ended, and return how."""
        worker.life += 1
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = worker.process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    # A terminal's Ctrl-C is for the control process, which drains its workers.
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            how = f"it cannot be started: {error.strerror or error}"
            self._note_end(worker, how)
            return how
        if self._stop.is_set():
            process.terminate()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker.writer = writer
        assignment = Assignment(worker.number, self._data, worker.listen, self._store, self._bundles)
        writer.write(frame(assignment.as_message()))
        reading = asyncio.create_task(self._listen(worker, reader))
        try:
            code = await process.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(reading, _LAST_WORDS_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
            reading.cancel()
            writer.close()
            worker.writer = None
            worker.is_listening = False
            self._set_ready(worker, is_ready=False)
            self.totals.end(worker.name, worker.life)
        how = describe_exit(code)
        self._note_end(worker, how, code)
        return how

    def _note_end(self, worker: Worker, how: str, code: int = 1) -> None:
        """Before all workers serve, the end of one is the end of all: what is wrong will not go away."""
        if self._started or self._stop.is_set():
            return
        self._stop.set()
        message = f"worker {worker.number} ended before it served: {how}"
        where = Diagnostic("settings", Position(1, 1), ("workers",), "worker", message)
        self._failure = ConfigError([where]) if code == CONFIG_ERROR else DependencyError(message)
        self._news.set()

    async def _listen(self, worker: Worker, reader: asyncio.StreamReader) -> None:
        while (message := await read_frame(reader)) is not None:
            if "request" in message:
                waiting = worker.asked.get(message["request"]) if message["request"] else None
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
                elif waiting is None and "metrics" in message:
                    self._record(worker, worker.life, message["metrics"])
                continue
            if "addresses" in message:
                # Also for its next life: ports that were free are taken by now, and callers know them.
                worker.listen = [Address.parse(text) for text in message["addresses"]]
                worker.is_listening = True
                self._news.set()
            else:
                self._set_ready(worker, is_ready=message["ready"])

    def _set_ready(self, worker: Worker, *, is_ready: bool) -> None:
        if worker.is_ready is not is_ready:
            worker.is_ready = is_ready
            if self._started:
                log.info("worker_ready" if is_ready else "worker_not_ready", worker=worker.number)
            self.changed()


class SummedCollector(Collector):
    """The metrics of the control process and its workers together."""

    def __init__(self, control: CollectorRegistry, workers: Workers) -> None:
        self._control = control
        self._workers = workers
        # One scrape after the other: an older answer must not take the place of a newer one.
        self._turn = threading.Lock()

    def collect(self) -> Iterable[Metric]:
        """Ask the workers, and yield every metric family."""
        with self._turn:
            answered = self._workers.metrics()
            merged = self._workers.totals.merge(self._control.collect(), answered)
        yield from merged


@dataclass(frozen=True, slots=True)
class Children:
    """What the control process keeps running: its workers, and their store if it is the embedded one."""

    workers: Workers
    store: EmbeddedValkey | None

    def describe(self) -> dict[str, str]:
        """Return a line about each."""
        lines = self.workers.describe()
        if self.store is not None:
            state = "running" if self.store.is_running else "starting"
            lines["embedded_store"] = f"{state} (restarts {self.store.restarts})"
        return lines

    async def stop(self) -> None:
        """End what has not ended."""
        await self.workers.drain(0)
        if self.store is not None:
            await self.store.stop()
