"""What waits for the thread that computes for a client: never more than an honest one lets wait."""

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.wire import ProtocolError

Job = Callable[[], None]


class Jobs:
    """A queue of jobs, and the batches that are under way: those that wait, and those that are computed.

    A job is the session's, or a run's. When its run is over, all that one of a run does is to let go of what
    it holds: so it need not wait any longer, and what waits is always of one run.

    run    the number of the one that goes on
    """

    def __init__(self) -> None:
        self.run = 1
        self._queue: SimpleQueue[tuple[int, Job] | None] = SimpleQueue()
        self._under_way: defaultdict[int, set[int]] = defaultdict(set)  # numbers of batches, by parts
        self._lock = threading.Lock()

    def put(self, job: Job) -> None:
        """One of the session, of which there are only so many: the caller knows."""
        self._queue.put((0, job))

    def put_batch(self, message: "pb.Forward", slots: int, job: Job) -> None:
        """One of the run that goes on; ProtocolError when its part has more batches under way than slots."""
        with self._lock:
            numbers = self._under_way[message.part]
            if message.batch in numbers:
                raise ProtocolError(f"batch {message.batch} is under way already")
            if len(numbers) >= slots:
                raise ProtocolError(f"part {message.part}: {slots} batches are under way, and no more can be")
            numbers.add(message.batch)
        self._queue.put((message.run, job))

    def done(self, message: "pb.Forward") -> bool:
        """A batch is under way no more, which is said before its result; whether its run still goes on."""
        with self._lock:
            if message.run != self.run:
                return False
            self._under_way[message.part].discard(message.batch)
            return True

    def begin_run(self, run: int, job: Job) -> None:
        """Go on with another run, whose first job this is."""
        with self._lock:
            self.run = run
            self._under_way.clear()
        waiting = []
        with suppress(Empty):
            while True:
                waiting.append(self._queue.get_nowait())
        for item in waiting:
            if item and item[0]:
                item[1]()
            else:
                self._queue.put(item)
        self._queue.put((run, job))

    def take(self) -> Job | None:
        """Wait for the next; None: there is none any more."""
        item = self._queue.get()
        return item[1] if item else None

    def end(self) -> None:
        """Let `take` give None behind all that waits."""
        self._queue.put(None)
