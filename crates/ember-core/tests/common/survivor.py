# Holds what a process can have open, and says over a socket whether all of it still works.
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time

os.chdir("/tmp")

# A file whose name is still there, one whose name is gone, each in the middle of being read.
with open("kept", "w") as file:
    file.write("0123456789")
kept = open("kept")
kept.read(4)
gone = open("gone", "w+")
gone.write("abcdefghij")
gone.flush()
gone.seek(3)
os.unlink("gone")

# A connection on loopback, with bytes on their way.
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b"sent before")

# A child behind a terminal.
terminal, other = pty.openpty()
child = subprocess.Popen(["cat"], stdin=other, stdout=other, close_fds=True)

# A thread that sleeps and a timer that has been set, both to end after the guest was saved.
woken = threading.Event()


def sleep():
    time.sleep(4)
    woken.set()


threading.Thread(target=sleep, daemon=True).start()
fired = threading.Event()
signal.signal(signal.SIGALRM, lambda *_: fired.set())
signal.setitimer(signal.ITIMER_REAL, 4)

# Time never steps back, whoever looks.
stepped = []


def look():
    last = time.monotonic()
    while True:
        now = time.monotonic()
        if now < last:
            stepped.append((last, now))
        last = now
        time.sleep(0.001)


threading.Thread(target=look, daemon=True).start()


def check(expect):
    expect("a file that is open", kept.read(3), "456")
    kept.seek(4)
    expect("a file without a name", gone.read(3), "def")
    gone.seek(3)
    expect("bytes under way", server.recv(11, socket.MSG_PEEK), b"sent before")
    client.sendall(b"x")
    expect("the child", child.poll(), None)
    os.write(terminal, b"hello\n")
    echoed = b""
    while echoed.count(b"hello") < 2:
        echoed += os.read(terminal, 64)
    expect("a thread that slept", woken.wait(60), True)
    expect("a timer", fired.wait(60), True)
    expect("time that stepped back", stepped, [])


asked = socket.socket(socket.AF_UNIX)
asked.bind("asked")
asked.listen()
print("ready", flush=True)


def answer():
    while True:
        asker, _ = asked.accept()
        wrong = []

        def expect(what, found, expected):
            if found != expected:
                wrong.append(f"{what}: {found!r} is not {expected!r}")

        try:
            check(expect)
        except Exception as error:
            wrong.append(repr(error))
        asker.sendall(("; ".join(wrong) or "all is well").encode())
        asker.close()


threading.Thread(target=answer, daemon=True).start()
while True:
    # For the timer's signal, which Python handles here.
    signal.pause()
