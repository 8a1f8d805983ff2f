"""One writer at a time in a folder, on a disk of this machine, a disk of several, or an object store.

Who wants a folder lays a file of its own into it and then looks whose files lie there: of two who want it at once, the
later look sees both files, so at most one goes on. That asks of the store only that a listing shows what was written
before it; no conditional put, no lock of a kernel, which not every store has.

A holder of this machine is asked for by its process: number and start time, so that a killed one is known at once, and
one that has its number now is not taken for it. A holder elsewhere refreshes its file every `beat` seconds; one that
has not for `stale` seconds is dead. Elsewhere also means another container, whose processes have other numbers.
"""

import _thread
import ctypes
import getpass
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import get_type_hints

from gracl.errors import ConfigError, GraclError, expected
from gracl.images import storage
from gracl.images.plain_json import check_values, read_values

BEAT_S = 10.0
STALE_S = 60.0
# How long one who wants a folder waits for another who wants it too, and was later.
CLAIM_S = 15.0
_LOOK_S = 0.2
_PREFIX, _END = ".gracl-lock-", ".json"
_PASSWORD = re.compile(r"(://)[^/@\s]*@")


@dataclass(frozen=True)
class Holder:
    """Who holds a folder, or wants to.

    Attributes:
        host, pid, user, since, command: for whoever is refused; `since` in UTC.
        machine: what must be equal for `pid` to mean something: the boot of a machine and a space of process numbers.
        started: when the process began, in the kernel's own units; None where nobody says.
        token: of this one time.
        held: false while it only wants to.
    """

    host: str
    pid: int
    user: str
    since: str
    command: str
    machine: str
    started: str | None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    held: bool = False

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.since}: {self.command}"


def is_lock(name: str) -> bool:
    """Whether a file in a folder is one of ours, no content of the folder."""
    return name.startswith(_PREFIX) and name.endswith(_END)


def myself() -> Holder:
    """This process; passwords in its command are left out."""
    command = " ".join(sys.argv)
    if "default_worker.py" in sys.argv[0]:  # the rest is for Ray alone
        command = "a task of Ray"
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Holder(
        socket.gethostname(), os.getpid(), _user(), since, _PASSWORD.sub(r"\1...@", command), _machine(), _started()
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return str(os.getuid())


def _machine() -> str:
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text().strip()} {os.readlink(numbers)}"
    except OSError:  # no Linux: one space of process numbers for the machine
        return socket.gethostname()


def _started(pid: int | None = None) -> str | None:
    """When a process began, in ticks since the boot; None where nobody says, "" for one that has ended."""
    try:
        # Behind the name, which may hold anything: state is the third field of all, the start the 22nd.
        stat = Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if stat[0] in "ZX" else stat[19]


def is_gone(holder: Holder) -> bool | None:
    """Whether the process of a holder is no more; None where that cannot be asked from here."""
    if holder.machine != _machine():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's, so it lives
    now = _started(holder.pid)
    return now is not None and holder.started is not None and now != holder.started


class Lock:
    """A folder that this process holds; `holding` is the way to one.

    Attributes:
        lost: why it does not hold it any more, though nobody gave it back.
    """

    def __init__(self, folder: str, what: str, tell: Callable[[str], None], beat: float, stale: float) -> None:
        self.folder, self.lost = folder, ""
        self._what, self._tell, self._beat, self._stale = what, tell, beat, stale
        self._me = myself()
        self._uri = storage.join(folder, f"{_PREFIX}{self._me.token}{_END}")
        self._made = _missing(folder)
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._held, self._beats = False, 0
        self._watcher = threading.Thread(target=self._refresh, name="gracl-lock", daemon=True)

    def take(self) -> None:
        """Holds the folder from now on.

        Raises:
            ConfigError: somebody else does.
        """
        self._put()
        self._watcher.start()  # also who only waits must show that it lives
        self._wait_for_others()
        self._held = True
        self._put()

    def give_back(self) -> None:
        """Takes the file away, and the folder where it was made for it and is empty; says so where that fails."""
        self._stop.set()
        if self._watcher.ident:
            self._watcher.join(self._beat)
        try:
            _remove(self._uri)
        except (OSError, GraclError) as error:
            self._tell(f"note: the lock {self._uri} could not be taken away ({error}); it is dead with this process")
        for place in self._made:
            with suppress(OSError):  # others have put something there, which is theirs
                place.rmdir()

    def _put(self) -> None:
        with self._writing:
            values = asdict(self._me) | {"held": self._held, "beats": self._beats}
            storage.write_bytes(self._uri, json.dumps(values, indent=1).encode())

    def _wait_for_others(self) -> None:
        seen: dict[str, tuple[object, float]] = {}
        begun, told = time.monotonic(), set[str]()
        while True:
            others = list(_others(self.folder, self._uri))
            for uri, other in others:
                gone = is_gone(other) if other else None
                if gone is None:
                    gone = self._is_stale(uri, seen)
                if gone:
                    self._tell(f"note: {self._what} was held by {other or uri}, which is dead; taken over")
                    _remove(uri)
                elif self._goes_first(other, gone):
                    raise _refused(self._what, uri, other)
                elif gone is None and uri not in told:
                    told.add(uri)
                    self._tell(
                        f"{self._what} is held by {other or uri}, who cannot be asked from here; "
                        f"waiting for a sign of life, {self._stale:.0f} s at most"
                    )
            if not others:
                return
            if time.monotonic() - begun > self._stale + CLAIM_S:
                raise _refused(self._what, *others[0])
            time.sleep(_LOOK_S)

    def _goes_first(self, other: Holder | None, gone: bool | None) -> bool:
        """Whether it is the other's. Of two who only want it, the later one steps back, so that one of them has it."""
        if other is None or other.held:
            return gone is False
        return (other.since, other.token) < (self._me.since, self._me.token)

    def _is_stale(self, uri: str, seen: dict[str, tuple[object, float]]) -> bool | None:
        """Whether a file is refreshed no more; None as long as nobody can know. It is refreshed: False."""
        now, version = time.monotonic(), storage.version_of(uri)
        if version is None:
            return None  # it is being given back; the next listing says so
        if uri not in seen:
            # The store's own clock says how old it is, held against a file that is new: clocks of machines differ.
            seen[uri] = version, now - max(0.0, _age(uri, self._uri))
        before, since = seen[uri]
        if version != before:
            return False
        return True if now - since >= self._stale else None

    def _refresh(self) -> None:
        """Shows every few seconds that this process lives; ends the work where the folder was taken over."""
        failed = False
        while not self._stop.wait(self._beat):
            try:
                self._show_life()
                failed = False
            except FileNotFoundError:
                if self._stop.is_set():
                    return
                self.lost = f"the lock {self._uri} is gone: somebody took {self._what} over, or deleted it"
                self._tell(f"{self.lost}; stopping")
                _interrupt_main()
                return
            except (OSError, GraclError) as error:
                if not failed:
                    self._tell(f"note: the lock {self._uri} cannot be refreshed ({error}); trying again")
                failed = True

    def _show_life(self) -> None:
        if storage.is_local(self._uri):
            os.utime(storage.local_path(self._uri))  # also where the disk is full
            return
        if storage.version_of(self._uri) is None:
            raise FileNotFoundError(self._uri)
        self._beats += 1
        self._put()


def _interrupt_main() -> None:
    """A KeyboardInterrupt in the main thread, also where the shell that began this in its background ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        _thread.interrupt_main()
        return
    main = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(KeyboardInterrupt))


def _others(folder: str, mine: str = "") -> Iterator[tuple[str, Holder | None]]:
    """Who else has a file in a folder; None for one that cannot be read."""
    for name in storage.names_in(folder):
        uri = storage.join(folder, name)
        if is_lock(name) and uri != mine:
            try:
                yield uri, _read(uri)
            except FileNotFoundError:
                continue  # given back meanwhile


def _refused(what: str, uri: str, other: Holder | None) -> ConfigError:
    return ConfigError(
        expected(
            f"{what} for this process alone",
            f"one that is held by {other or uri}",
            f"wait for its end, stop it, or choose another place (its lock is {uri})",
        )
    )


def refuse_held(folder: str, what: str) -> None:
    """Refuses a folder that a living process of this machine holds; takes nothing, so another may be faster still.

    Raises:
        ConfigError: naming the holder.
    """
    for uri, other in _others(folder):
        if other and other.held and is_gone(other) is False:
            raise _refused(what, uri, other)


def _remove(uri: str) -> None:
    with suppress(FileNotFoundError):  # another one was faster
        storage.remove(uri)


def _read(uri: str) -> Holder | None:
    try:
        values = read_values(uri)
        check_values(values, get_type_hints(Holder))
        if not 0 < values["pid"] < 2**31:
            raise ValueError("a process of no number")
    except FileNotFoundError:  # given back meanwhile, which is for who asks
        raise
    except (OSError, ValueError):
        return None  # torn, or of another version: judged by whether it is refreshed
    return Holder(**{one.name: values[one.name] for one in fields(Holder)})


def _age(uri: str, new: str) -> float:
    """Seconds between the last writing of two files by the store's clock; 0 where it does not say."""
    (fs, path), (_, newer) = storage.locate(uri), storage.locate(new)
    try:
        with storage.answered(uri):
            return float((fs.modified(newer) - fs.modified(path)).total_seconds())
    except (FileNotFoundError, NotImplementedError, KeyError):
        # The other file was given back meanwhile, or the store keeps no times (of which fsspec has two ways to say so):
        # it is then waited for from now on, which is longer, and takes nothing from anybody.
        return 0.0


def _missing(folder: str) -> list[Path]:
    """The folders of a local place that are not there yet, innermost first: a lock that is given back leaves none."""
    if not storage.is_local(folder):
        return []
    place = storage.local_path(folder)
    return [one for one in (place, *place.parents) if not one.exists()]


def _to_stderr(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


@contextmanager
def holding(
    folder: str,
    what: str,
    *,
    tell: Callable[[str], None] = _to_stderr,
    beat: float = BEAT_S,
    stale: float = STALE_S,
) -> Iterator[Lock]:
    """Holds a folder for the length of the block, whatever ends it.

    Args:
        folder: URI; made where it is missing.
        what: is held, in words.
        tell: says out loud that a dead holder's place was taken, or who is waited for.
        beat: seconds between two signs of life.
        stale: seconds without one after which a holder that cannot be asked is dead.

    Raises:
        ConfigError: somebody else holds it, who is named; or somebody took it over, because this process gave no sign
            of life for too long.
    """
    lock = Lock(folder, what, tell, beat, stale)
    try:
        lock.take()
        yield lock
    except KeyboardInterrupt:
        if lock.lost:
            what_then = "look whether another one works there, then run the same command again"
            raise ConfigError(expected(f"{what} for this process alone", lock.lost, what_then)) from None
        raise
    finally:
        lock.give_back()
