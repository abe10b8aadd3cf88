# Keeps every part of a guest at work and checks what it does: reads of the disk, wake-ups across
# processors, memory, timers, and a stream to the host. Each part counts in a file of its own; what
# went wrong is in files whose names begin with "failed". Each part rests between its turns, so that
# where an instruction costs much there is something left for whoever saves and clones the guest.
import glob
import hashlib
import mmap
import os
import signal
import struct
import sys
import threading
import time

STATE = "/dev/shm/load"
CPUS = sorted(os.sched_getaffinity(0))


def count(name, number):
    # Never half written, for whoever looks.
    with open(f"{STATE}/.{name}", "w") as file:
        file.write(str(number))
    os.rename(f"{STATE}/.{name}", f"{STATE}/{name}")


def fail(why):
    count(f"failed-{os.getpid()}", why)
    os._exit(1)


def disk():
    files = sorted(glob.glob("/usr/lib/python3*/[a-m]*.py"))[:2]
    first, number = None, 0
    while True:
        digest = hashlib.sha256()
        for path in files:
            with open(path, "rb") as file:
                # Read again from the disk.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                digest.update(file.read())
        first = first or digest.digest()
        if digest.digest() != first:
            fail("the disk's content has changed")
        number += 1
        count("disk", number)
        time.sleep(0.2)


def processors():
    there, back = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.sched_setaffinity(0, {CPUS[-1]})
        number = 0
        while True:
            number += 1
            if os.read(there[0], 8) != struct.pack("Q", number):
                fail("a message between processors was lost")
            os.write(back[1], struct.pack("Q", number))
    os.sched_setaffinity(0, {CPUS[0]})
    number = 0
    while True:
        number += 1
        os.write(there[1], struct.pack("Q", number))
        if os.read(back[0], 8) != struct.pack("Q", number):
            fail("an answer between processors was lost")
        if number % 4 == 0:
            count("processors", number)
            time.sleep(0.2)


def memory():
    numbers = [0, 0, 0]

    def work(which):
        while True:
            pattern = hashlib.sha256(b"%d %d" % (which, numbers[which])).digest() * 512
            # Mapped and unmapped, so that every processor has to forget it.
            with mmap.mmap(-1, len(pattern)) as block:
                block[:] = pattern
                time.sleep(0.2)
                if block[:] != pattern:
                    fail("memory has changed")
            numbers[which] += 1
            if which == 0:
                count("memory", min(numbers))

    for which in range(1, len(numbers)):
        threading.Thread(target=work, args=(which,), daemon=True).start()
    work(0)


def timers():
    number, last = 0, time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    while True:
        signal.sigwait([signal.SIGALRM])
        now = time.monotonic()
        if now < last:
            fail(f"monotonic time went from {last} to {now}")
        number, last = number + 1, now
        count("timers", number)


def stream():
    number = 0
    while True:
        number += 1
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        sys.stdout.write(f"{number} {digest}\n")
        sys.stdout.flush()
        time.sleep(0.1)


os.makedirs(STATE)
for part in (disk, processors, memory, timers):
    if os.fork() == 0:
        try:
            part()
        except BaseException as error:
            fail(f"{part.__name__}: {error!r}")
stream()
