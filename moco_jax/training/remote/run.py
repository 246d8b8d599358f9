"""A run whose workdir is in a bucket: the run works in a local copy, and a mirror copies it."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO

import jax

from moco_jax.buckets import fetching, objects
from moco_jax.buckets.client import Kind
from moco_jax.buckets.lock import RENEWED_EVERY, Held, Lock
from moco_jax.buckets.mirror import Mirror, NotAllowed
from moco_jax.parallel import cluster
from moco_jax.terminal import logs, progress
from moco_jax.terminal.paths import SCHEMES, check_no_url, is_url, without_slash
from moco_jax.training import interruption
from moco_jax.training.checkpoints import NotSaved
from moco_jax.training.loop import Interrupted
from moco_jax.training.outputs import appending
from moco_jax.training.remote import copies, layout, together

_ONLY_READ = ("http://", "https://")
SCAN_EVERY = 3.0  # seconds between two looks at the local files
# Seconds that the end of a run waits for a server that is gone: launchers kill some time after
# SIGTERM.
_PATIENCE, _PATIENCE_AFTER_ERROR, _PATIENCE_AFTER_SIGTERM = 1800.0, 60.0, 20.0
_RETRY_EVERY = 2.0
_TRIES = 5  # to copy files that change meanwhile
_LARGEST_LOG = 1 << 28  # bytes of starts.jsonl


@contextlib.contextmanager
def opened(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the local folder of a workdir; that of a URL is a copy, written back to the bucket.

    Of several processes only the first one has the copy. The folder of the others does not exist.

    Raises:
      ValueError: if the bucket can't be used, or another process is running in the workdir.
      NotSaved: at the end, if the bucket does not have the last state.
    """
    given = os.fspath(workdir)
    check_no_url(given, "--workdir")
    if not is_url(given):
        yield pathlib.Path(given)
        return
    url = _checked(given)
    with objects.given_by("--workdir"):
        folder = fetching.cache("runs", url)
        if not cluster.is_first():
            folder = folder.with_name(f"{folder.name}-process-{jax.process_index()}")
        copy = _Copy(folder, url)
        with copies.workdir(folder, url):
            with progress.phase(f"reading {url}"):
                copy.begin_on_first()
            try:
                yield folder
            except BaseException as error:
                try:
                    copy.end(error)
                except (NotSaved, ValueError) as second:
                    if isinstance(error, Interrupted):
                        raise
                    logs.warning("%s", second)  # the error of the run is not hidden by it
                if type(error) is ValueError and not isinstance(error.__cause__, OSError):
                    # The copy may be gone by now; it is named only if the disk is what fails.
                    raise ValueError(str(error).replace(str(folder), url)) from error
                raise
            copy.end(None)


def _checked(url: str) -> str:
    """Returns the URL of a workdir without its last slash; raises a ValueError if it is none."""
    allowed = " or ".join(f"{scheme}bucket/runs/a" for scheme in SCHEMES)
    if url.lower().startswith(_ONLY_READ):
        raise ValueError(f"--workdir={url} must be a folder, or the URL of one: {allowed}")
    with objects.given_by("--workdir"):
        _, key = objects.split(url)
    if not key:
        raise ValueError(
            f"--workdir={url} is a whole bucket; it must name a folder there, such as {allowed}"
        )
    if url.count("://") > 1:
        raise ValueError(
            f"--workdir={url} names several folders; allowed is one, such as {allowed}"
        )
    return without_slash(url)


class _Copy:
    """The local copy of a workdir in a bucket, on process 0."""

    def __init__(self, folder: pathlib.Path, url: str):
        """Asks nothing yet."""
        self._folder, self._url = folder, url
        self._lock = Lock(f"{url}/.lock")
        self._mirror = Mirror(folder, url, layout.RULES, self._may_write)
        self._record = folder.with_name(f"{folder.name}.json")
        self._local_lock: IO | None = None
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._scanning: threading.Thread | None = None
        self._failed = ""  # why the last copy failed

    def begin_on_first(self) -> None:
        """Begins on process 0; raises as `begin`."""
        try:
            together.on_first(self.begin)
        except KeyboardInterrupt:
            self._ended.set()  # the thread may still wait for the lock, or fetch
            raise

    def begin(self) -> None:
        """Locks the workdir, makes the local copy equal to it, and begins to mirror the copy."""
        try:
            with fetching.explained(self._folder):
                self._lock_here()
            self._lock.acquire()
            # To fetch, and to copy at the end, may take long.
            self._start(self._renew, RENEWED_EVERY, self._ended)
            with fetching.explained(self._folder):
                self._read()
            if self._ended.is_set():  # nobody waits any more
                raise KeyboardInterrupt
            self._scanning = self._start(self._scan, SCAN_EVERY, self._stopping)
        except BaseException as error:
            self._ended.set()
            with contextlib.suppress(Exception):
                self._lock.release()
            self._unlock_here()
            if isinstance(error, Held):
                raise self._in_use(str(error)) from None
            if isinstance(error, objects.BucketError | OSError):
                raise ValueError(f"--workdir={self._url}: {error}") from error
            raise

    def _start(
        self, work: Callable[[], None], every: float, end: threading.Event
    ) -> threading.Thread:
        """Calls `work` in a thread again and again, until the end; returns the thread."""

        def repeat() -> None:
            with objects.given_by("--workdir"):
                while not end.wait(every):
                    try:
                        work()
                    except Exception as error:  # a lock that nobody renews is taken over
                        logs.warning("%s: %s; it is tried again", self._url, error)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        return thread

    def _lock_here(self) -> None:
        """Locks the copy on this machine, where a second start is found at once."""
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._local_lock = open(self._folder.with_name(f"{self._folder.name}.lock"), "a")
        try:
            fcntl.flock(self._local_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use("on this machine") from None
        except OSError as error:
            logs.warning("no lock in %s (%s)", self._folder.parent, error)

    def _unlock_here(self) -> None:
        if self._local_lock:
            self._local_lock.close()

    def _in_use(self, by: str) -> ValueError:
        return ValueError(
            f"another process is running in {self._url} ({by}); wait for it, or give another "
            "--workdir"
        )

    def _read(self) -> None:
        """Goes on with the local copy of an earlier start, if there is one, or fetches the run."""
        found = self._mirror.list_bucket()
        if self._folder.exists() and self._record.exists():
            if self._is_newest(found, self._mirror.resume(self._record.read_bytes())):
                logs.warning("going on with the local copy of %s: %s", self._url, self._folder)
                # A cleaner of disks may have removed files of the copy.
                self._mirror.fetch(self._mirror.absent(self._mirror.complete(found)))
                return
            aside = self._folder.with_name(f"{self._folder.name}.{time.strftime('%Y%m%d-%H%M%S')}")
            self._folder.rename(aside)
            logs.warning(
                "%s was continued elsewhere: the local copy of an earlier start is now %s",
                self._url,
                aside,
            )
        elif self._folder.exists():  # half of a copy, which no run has used
            shutil.rmtree(self._folder)
        self._check_ours(found)
        self._record.unlink(missing_ok=True)
        self._folder.mkdir()
        self._mirror.fetch(self._mirror.complete(found))
        self._write_record()

    def _check_ours(self, found: Iterable[str]) -> None:
        """Raises a ValueError if other programs wrote what is there: it would be fetched."""
        names = sorted(found)
        if layout.starts(names):
            return
        if self._is_object():
            raise ValueError(f"--workdir={self._url} is an object; it must name a folder")
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(
                f"--workdir={self._url} has objects ({len(names)}: {shown}) but no "
                f"{layout.STARTS}, so no run of moco_jax wrote them; give another "
                "--workdir: a new folder, or that of a run"
            )

    def _is_object(self) -> bool:
        try:
            return objects.stat(self._url).size > 0
        except FileNotFoundError:
            return False

    def _is_newest(self, found: Iterable[str], copied: set[str]) -> bool:
        """Returns whether nobody has started the run elsewhere since this copy was made.

        Args:
          found: the files in the bucket.
          copied: those that the bucket got from this copy.
        """
        if layout.starts(copied) - layout.starts(found):
            return False  # somebody removed the run
        for name in layout.starts(found):
            there = objects.read_whole(f"{self._url}/{name}", _LARGEST_LOG)[1]
            here = self._folder / name
            if not (here.is_file() and here.read_bytes().startswith(there)):
                return False
        return True

    def _write_record(self) -> None:
        appending.write_whole(self._record, self._mirror.record())

    def _renew(self) -> None:
        with contextlib.suppress(
            objects.BucketError, OSError
        ):  # the mirror says that the server is gone
            if not self._lock.renew(after=RENEWED_EVERY):
                self._stopping.set()
                self._ended.set()
                self._stop_the_run()

    def _stop_the_run(self) -> None:
        """Makes the loop save and stop, if it catches signals: then `end` says why."""
        if callable(signal.getsignal(signal.SIGTERM)):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            return
        # The signal would end a Python program that runs the loop in a thread of its own.
        logs.warning(
            "another process has taken over %s: what this run writes stays in %s",
            self._url,
            self._folder,
        )

    def _may_write(self) -> bool:
        """Returns whether the lock is held; a process that was asleep has to renew it first."""
        return self._lock.renew(after=2 * RENEWED_EVERY)

    def _scan(self) -> None:
        """Copies what is new; warns if that fails, once, and when it works again."""
        failed = ""
        try:
            self._mirror.scan()
        except NotAllowed:
            return
        except Exception as error:  # the run goes on, whatever it is
            failed = f"{error}" or type(error).__name__
            logs.debug("copying to %s: %s", self._url, error)
        with contextlib.suppress(OSError, ValueError):
            self._write_record()
        if failed and not self._failed:
            logs.warning(
                "%s can't be written: %s. The run goes on; what is missing is in %s and is "
                "written later.",
                self._url,
                failed,
                self._folder,
            )
        elif self._failed and not failed:
            logs.warning("%s is written again; nothing is missing.", self._url)
        self._failed = failed

    def end(self, error: BaseException | None) -> None:
        """Copies what is left, and removes the local copy if the bucket has everything.

        Args:
          error: that ended the run.

        Raises:
          NotSaved: if the bucket does not have everything; the local copy stays.
          ValueError: if another process has taken over the workdir.
        """
        try:
            self._end(error)
        finally:
            self._ended.set()
            self._unlock_here()

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, KeyboardInterrupt):  # a second Ctrl-C waits for nothing
            self._stopping.set()
            cluster.say(f"{self._kept()} has what is not in {self._url} yet")
            return
        with_others = error is None or isinstance(error, Interrupted)
        if not with_others and not cluster.is_first():
            return
        by = error.signal if isinstance(error, Interrupted) else None
        seconds = _PATIENCE if error is None else _PATIENCE_AFTER_ERROR
        seconds = _PATIENCE_AFTER_SIGTERM if by == signal.SIGTERM else seconds
        # A second Ctrl-C ends the wait; a launcher may repeat SIGTERM.
        caught = contextlib.nullcontext() if by == signal.SIGINT else interruption.watch(
            always_waits=True
        )  # fmt: skip
        try:
            with caught as asked, progress.phase(f"writing {self._url}"):
                together.on_first(lambda: self._finish(seconds, asked), alone=not with_others)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped at once; {self._kept()} has what is not in {self._url} yet"
            ) from None

    def _finish(self, seconds: float, asked: interruption.Interruption | None) -> None:
        begun = time.monotonic()

        def wanted() -> bool:
            waited = time.monotonic() - begun
            most = _PATIENCE_AFTER_SIGTERM if asked and asked.by else seconds
            return waited < most and not self._ended.is_set()  # set: nobody waits any more

        self._stopping.set()
        if self._scanning:
            self._scanning.join()
        why, tries = "", 0
        while not self._lock.lost:
            try:
                if self._mirror.scan(final=True):
                    self._leave()
                    return
                why = "files change all the time, or a checkpoint is incomplete"
                if (tries := tries + 1) == _TRIES:
                    break
            except NotAllowed:
                break
            except Exception as problem:
                why = f"{problem}" or type(problem).__name__
                passing = isinstance(problem, objects.BucketError) and problem.kind == Kind.PASSING
                if not passing:
                    break
            if not wanted():
                break
            time.sleep(_RETRY_EVERY)
        with contextlib.suppress(OSError, ValueError):
            self._write_record()
        if self._lock.lost:
            raise ValueError(
                f"another process has taken over {self._url}, so this run stopped. {self._kept()} "
                "has its last state"
            )
        with contextlib.suppress(OSError, ValueError):
            self._lock.release()
        raise NotSaved(
            f"{self._url} does not have the last state of the run: {why}. {self._kept()} has it. "
            "Start the same command again on this machine: it goes on from there."
        )

    def _kept(self) -> str:
        return f"The local copy {self._folder}"

    def _leave(self) -> None:
        """Releases the lock, and removes the local copy."""
        with contextlib.suppress(objects.BucketError):
            self._lock.release()
        self._record.unlink(missing_ok=True)  # first: what is left without it is no copy
        shutil.rmtree(self._folder, ignore_errors=True)
