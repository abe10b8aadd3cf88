"""The Python runner of an Ember guest: an interpreter that is warm before there is anything to run.

The agent starts it and speaks to it on descriptor 3, a stream socket. It runs the code that warms
it up, says so, and then forks a *spare* whenever the agent asks for one: a process that waits, on a
socket of its own, for one program, runs it as `python3` would, and ends. Nothing of a program is
left for the next.

A message is a header of eight bytes (kind, flags, zero, zero, u32 length; numbers are little-endian)
and a payload. With the flag 1 the payload is not behind the header but in a file that comes along.

    agent  -> runner   1 SETUP    code to run first
    runner -> agent    2 READY    it has been run
    agent  -> runner   3 FORK     make a spare; if namespaces come along (PID, mount, IPC), it has
                                  to be in them, and has to confine itself: the payload is the
                                  filter for its system calls, as the kernel takes it
    runner -> agent    4 SPARE    here it is: its socket comes along
    spare  -> agent    5 WAITING  sent with the process's credentials
    agent  -> spare    6 RUN      stdin, stdout and stderr come along, then perhaps the file;
                                  u8 options (1: they are a terminal), then directory, code,
                                  arguments, and variables as NAME=value, each with its length
                                  (u32) before it. Every argument and variable ends in a zero byte.
                                  The first argument is the path of the program, or `-c` if it is
                                  the code.

A spare's parent is the agent: it is forked by a child of the runner that ends at once. It leads a
session of its own, in which it may be signalled. A spare that was forked before the guest was cloned
is the same in all clones, so every generator of random numbers is seeded anew before a program
runs. Code that keeps its own can be told: `import ember_runner; ember_runner.on_reseed(function)`.
What the warm-up code defines is in the module `ember_setup`.
"""

import atexit
import builtins
import ctypes
import fcntl
import gc
import io
import os
import signal
import struct
import sys
import termios
import types

import _socket

SETUP, READY, FORK, SPARE, WAITING, RUN = range(1, 7)
IN_FILE = 1
TERMINAL = 1
HEADER = struct.Struct("<BBHI")
LENGTH = struct.Struct("<I")
# Descriptors that may come with a message.
MAX_FDS = 4
# More is sent in a file.
MAX_INLINE = 64 * 1024
# For setns(2), prctl(2) and capset(2).
CLONE_NEWPID = 0x20000000
PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 24, 22, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION = 0x20080522
# What a spare that cannot run its program exits with, and says why on its standard error.
CANNOT_RUN = 126

libc = ctypes.CDLL(None, use_errno=True)
flush_c_streams = libc.fflush
reseed_hooks = []


def send(sock, kind, fds=()):
    rights = struct.pack(f"{len(fds)}i", *fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
    sock.sendmsg([HEADER.pack(kind, 0, 0, 0)], ancillary)


def receive(sock):
    """The next message's kind, payload and descriptors. None at the end."""
    data, fds = b"", []
    wanted = HEADER.size
    while True:
        while len(data) < wanted:
            part, ancillary, _, _ = sock.recvmsg(
                HEADER.size + MAX_INLINE, _socket.CMSG_SPACE(MAX_FDS * 4)
            )
            for level, kind, content in ancillary:
                if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                    count = len(content) // 4
                    fds.extend(struct.unpack(f"{count}i", content[: count * 4]))
            if not part:
                return None
            data += part
        if wanted > HEADER.size:
            break
        kind, flags, _, length = HEADER.unpack_from(data)
        if flags & IN_FILE:
            file = fds.pop()
            data = os.pread(file, length, 0)
            os.close(file)
            return kind, data, fds
        wanted += length
        if length == 0:
            break
    return kind, data[HEADER.size :], fds


def fields(payload):
    """The parts of a payload behind its options."""
    place = 1
    while place < len(payload):
        (length,) = LENGTH.unpack_from(payload, place)
        place += LENGTH.size + length
        yield payload[place - length : place]


def call(function, *arguments):
    """Calls a function of the C library that says by -1 that it has failed."""
    if function(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function.__name__}{arguments}: {os.strerror(number)}")


def prctl(option, *arguments):
    values = [ctypes.c_ulong(it) for it in (*arguments, 0, 0, 0, 0)[:4]]
    call(libc.prctl, option, *values)


def confine(rules):
    """Gives up for good what a program is not to have: every right beyond its user's, and the
    system calls that the filter denies."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:
            # There are no more.
            break
    header = struct.pack("Ii", CAPABILITY_VERSION, 0)
    call(libc.capset, header, bytes(24))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    instructions = ctypes.create_string_buffer(rules, len(rules))
    program = struct.pack("HxxxxxxN", len(rules) // 8, ctypes.addressof(instructions))
    program = ctypes.create_string_buffer(program, len(program))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program))


def on_reseed(function):
    """Has `function` called before each program, where it has to draw new random numbers."""
    reseed_hooks.append(function)
    return function


def reseed(hooks):
    """Makes everything that is random different from what it is in any other process."""
    loaded = sys.modules.get
    if random := loaded("random"):
        random.seed()
    if numpy := loaded("numpy.random"):
        numpy.seed()
    if uuid := loaded("uuid"):
        # Version 1 is made of a node, a clock and a sequence, all of which clones share; without
        # the C library's generator (which keeps a sequence of its own), the sequence is random.
        uuid._generate_time_safe = None
        uuid._node = int.from_bytes(os.urandom(6), "big") | 1 << 40
        uuid._last_timestamp = None
    if process := loaded("multiprocessing.process"):
        config = process.current_process()._config
        if "authkey" in config:
            config["authkey"] = process.AuthenticationString(os.urandom(32))
    if ssl := loaded("_ssl"):
        # OpenSSL reseeds itself in a process whose number it does not know; this is for one that
        # it has met in the machine that was cloned.
        ssl.RAND_add(os.urandom(32), 32.0)
    for hook in hooks:
        hook()


def report(error, skip):
    """Says what CPython says of an exception that nobody has caught."""
    trace = error.__traceback__
    for _ in range(skip):
        trace = trace and trace.tb_next
    error = error.with_traceback(trace)
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    try:
        sys.stdout.flush()
    except BaseException:
        pass
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit as end:
        return exit_code(end)
    except BaseException as wrong:
        print("Error in sys.excepthook:", file=sys.stderr)
        wrong = wrong.with_traceback(wrong.__traceback__ and wrong.__traceback__.tb_next)
        sys.__excepthook__(type(wrong), wrong, wrong.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        sys.__excepthook__(type(error), error, trace)
    return 1


def attempt(code, name, module):
    """Runs code. Gives the exception back that it ends with, if any: outside of a handler, what
    is raised while it is dealt with does not refer to it."""
    try:
        exec(compile(code, name, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return error
    return None


def ended(error):
    """What a process exits with that ends with this exception, which is reported."""
    # Neither `attempt` nor what called it is the program's.
    return exit_code(error) if isinstance(error, SystemExit) else report(error, 1)


def exit_code(end):
    """What a process exits with that raised SystemExit."""
    code = end.code
    if code is None:
        return 0
    if isinstance(code, int):
        # As exit(3) takes it, of what fits a C int.
        return code & 0xFF if -(2**63) <= code < 2**63 else 0xFF
    print(code, file=sys.stderr)
    return 1


def flush():
    """Writes what was printed. Says whether that was possible."""
    written = True
    for stream, counts in ((sys.stdout, True), (sys.stderr, False)):
        if stream is None or getattr(stream, "closed", False):
            continue
        try:
            stream.flush()
        except BaseException as error:
            if counts:
                written = False
                try:
                    print(f"Exception ignored in: {stream!r}", file=sys.stderr)
                    print(f"{type(error).__qualname__}: {error}", file=sys.stderr)
                except BaseException:
                    pass
    return written


def clear(namespace):
    """Lets go of a module's values in the order in which CPython does (`_PyModule_ClearDict`)."""
    for private in (True, False):
        for name in list(namespace):
            if name == "__builtins__" or namespace[name] is None:
                continue
            if not private or name[:1] == "_" and name[1:2] != "_":
                namespace[name] = None


def finalize(main, known):
    """Ends as the interpreter does (`Py_FinalizeEx`), but for what nobody can see: the memory of
    what was there before the program is left to the kernel. Says whether everything was written.
    """
    if threading := sys.modules.get("threading"):
        try:
            threading._shutdown()
        except BaseException as error:
            sys.__excepthook__(type(error), error, error.__traceback__)
    atexit._run_exitfuncs()
    written = flush()
    modules = [module for name, module in sys.modules.items() if name not in known]
    clear(main.__dict__)
    for module in reversed(modules):
        if isinstance(module, types.ModuleType):
            clear(module.__dict__)
    gc.collect()
    # What could not be written is not said twice.
    written = written and flush()
    flush_c_streams(None)
    return written


def setup(code):
    """Runs the code that warms the interpreter up, in a module that programs can import."""
    module = types.ModuleType("ember_setup")
    sys.modules["ember_setup"] = module
    hooks = types.ModuleType("ember_runner")
    hooks.on_reseed = on_reseed
    sys.modules["ember_runner"] = hooks
    error = attempt(code, "<setup>", module)
    return None if error is None else ended(error)


def rehearse():
    """Does for nobody what every program will do, so that the pages that it writes are this
    process's own before it waits, and each clone of the guest has them."""
    stdout = sys.stdout
    sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    module = types.ModuleType("rehearsal")
    try:
        attempt("import sys\nfor i in range(3):\n    print(i, sys.argv)\n", "<string>", module)
        sys.stdout.flush()
    finally:
        sys.stdout = stdout
    reseed(())
    take_environment(b"".join([b"%b=%b\0" % it for it in os.environb.items()]))
    frozenset(sys.modules)
    clear(module.__dict__)
    flush()
    gc.collect()
    flush_c_streams(None)
    gc.freeze()


def serve(control):
    """Makes spares. Comes back in a spare that has something to run, with that."""
    while (message := receive(control)) is not None:
        kind, rules, namespaces = message
        if kind != FORK:
            raise ValueError(f"the agent sent a message of kind {kind}")
        near, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        near, far = _socket.socket(fileno=near.detach()), _socket.socket(fileno=far.detach())
        # The agent learns from the kernel who waits.
        far.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        child = os.fork()
        if child == 0:
            if namespaces:
                # Of the children, not of this process.
                call(libc.setns, namespaces[0], CLONE_NEWPID)
            if os.fork():
                os._exit(0)
            control.close()
            far.close()
            os.setsid()
            if namespaces:
                for namespace in namespaces[1:]:
                    call(libc.setns, namespace, 0)
                confine(rules)
            for namespace in namespaces:
                os.close(namespace)
            rehearse()
            send(near, WAITING)
            work = receive(near)
            near.close()
            if work is None:
                os._exit(0)
            return work
        os.waitpid(child, 0)
        for namespace in namespaces:
            os.close(namespace)
        near.close()
        send(control, SPARE, [far.fileno()])
        far.close()
    os._exit(0)


def take_environment(variables):
    """Makes the environment what the variables say, in their order."""
    environment = dict([it.split(b"=", 1) for it in variables.split(b"\0")[:-1]])
    # The mapping behind `os.environ` and `os.environb`, which differ from the process's own by
    # nothing: comparing it as a whole is many times faster than through them.
    current = os.environ._data
    for name in [name for name in current if name not in environment]:
        os.unsetenv(name)
    for name, value in environment.items():
        if current.get(name) != value:
            os.putenv(name, value)
    current.clear()
    current.update(environment)


def become(payload, fds):
    """Takes over the streams, directory, environment and arguments of a program."""
    options = payload[0]
    directory, code, argv, variables = fields(payload)
    if len(fds) != 3:
        raise ValueError(f"{len(fds)} descriptors came along, not 3")
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    if options & TERMINAL:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        sys.stdout.reconfigure(line_buffering=True)
    os.chdir(directory)

    zone = os.environb.get(b"TZ")
    take_environment(variables)
    if os.environb.get(b"TZ") != zone:
        import time

        time.tzset()
    reseed(reseed_hooks)
    return code, os.fsdecode(argv).split("\0")[:-1]


def load(code, argv):
    """The program's code and its module. What cannot be read is said as `python3` says it."""
    main = types.ModuleType("__main__")
    main.__annotations__ = {}
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    sys.argv = argv
    if argv[0] == "-c":
        sys.orig_argv = [sys.executable, "-c", os.fsdecode(code), *argv[1:]]
        sys.path[0] = ""
        main.__loader__ = sys.modules["_frozen_importlib"].BuiltinImporter
        try:
            return main, code.decode(), "<string>"
        except UnicodeDecodeError:
            return main, code, "<string>"
    path = argv[0]
    sys.orig_argv = [sys.executable, *argv]
    try:
        with open(path, "rb") as file:
            code = file.read()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {os.path.abspath(path)!r}: {reason}", file=sys.stderr)
        flush()
        os._exit(2)
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    main.__file__ = os.path.abspath(path)
    main.__cached__ = None
    loader = sys.modules["_frozen_importlib_external"].SourceFileLoader
    main.__loader__ = loader("__main__", main.__file__)
    return main, code, main.__file__


control = _socket.socket(fileno=3)
os.set_inheritable(3, False)
sys.path[0] = ""
# What it may do beyond its user, to confine its programs, is nothing for programs that it starts.
prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
message = receive(control)
if message is None or message[0] != SETUP:
    sys.exit("the agent did not say what to run first")
failed = setup(message[1])
if failed is not None:
    flush()
    os._exit(failed or 1)
flush()
del message
# What is there now is left alone by the collector, and so stays shared with the spares.
gc.collect()
gc.freeze()
# Where its programs may write: nothing is imported from there before they are confined.
sys.path[0] = os.path.dirname(os.__file__)
send(control, READY)

work = serve(control)
del control
# From here on this is a spare that has something to run.
try:
    code, argv = become(work[1], work[2])
except BaseException as error:
    print(f"the program cannot be run: {error}", file=sys.stderr)
    flush()
    os._exit(CANNOT_RUN)
del work
main, code, name = load(code, argv)
known = frozenset(sys.modules)
error = attempt(code, name, main)
status = 0 if error is None else ended(error)
interrupted = isinstance(error, KeyboardInterrupt)
# With it go the values of the functions that it came from.
del error
if not finalize(main, known) and not interrupted:
    status = 120
if interrupted:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
os._exit(status)
