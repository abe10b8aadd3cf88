"""The Python driver of Ember's sessions: an interpreter whose variables stay from cell to cell.

Ember's keeper starts it, as `python3 python.py NUMBER`. Descriptor NUMBER is a socket, on which come
`run NUMBER LENGTH` and a newline, behind which are so many bytes of code, or `reseed` and a newline, in
a clone of the machine. What is said there is a line each: `done NUMBER` at the end of a cell (`done 0`
when the interpreter is ready), and before that events, each a JSON object:

    {"type": "value", "data": {"text/plain": "42"}}       the last expression's value, and
    {"type": "display", "data": {"image/png": "iVBO.."}}  what is shown besides, by media type (what is
                                                          no text is base64)
    {"type": "error", "name": "ValueError", "message": "..", "traceback": "..",
     "frames": [{"file": "..", "line": 1, "function": "..", "text": ".."}]}

A cell is interrupted by SIGINT. Objects show what they say of themselves as Jupyter has it:
`_repr_png_`, `_repr_html_`, `_repr_mimebundle_` and so on.
"""

import ast
import base64
import builtins
import gc
import json
import linecache
import os
import signal
import sys
import threading
import traceback
import types

# More of one representation, of a traceback, of its frames, is cut off.
MAX_TEXT = 1 << 20
MAX_DATA = 8 << 20
MAX_TRACEBACK = 64 << 10
MAX_FRAMES = 64
METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_json_": "application/json",
}

channel = int(sys.argv[1])
os.set_inheritable(channel, False)
requests = os.fdopen(os.dup(channel), "rb")
saying = threading.Lock()
running = False
hooks = []


def say(line):
    data = line.encode("utf-8", "backslashreplace") + b"\n"
    with saying:
        while data:
            data = data[os.write(channel, data) :]


def tell(kind, **content):
    say(json.dumps({"type": kind, **content}))


def as_text(kind, value):
    """A representation as text: what is JSON is written down, what is bytes is base64."""
    if kind == "application/json" or kind.endswith("+json"):
        return value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    return str(value)


def representations(value):
    data = {}
    bundle = method(value, "_repr_mimebundle_")
    if bundle is not None:
        found = bundle()
        # Its data, and perhaps what is known of them.
        found = found[0] if isinstance(found, tuple) else found
        for kind, content in (found or {}).items():
            data[str(kind)] = as_text(str(kind), content)
    for name, kind in METHODS.items():
        show = kind not in data and method(value, name)
        if show:
            content = show()
            content = content[0] if isinstance(content, tuple) else content
            if content is not None:
                data[kind] = as_text(kind, content)
    # What may be cut is text for people; half of an image is nothing.
    data = {kind: content for kind, content in data.items() if len(content) <= MAX_DATA}
    if "text/plain" not in data:
        data["text/plain"] = repr(value)
    text = data["text/plain"]
    if len(text) > MAX_TEXT:
        data["text/plain"] = text[:MAX_TEXT] + "…"
    return data


def method(value, name):
    """A method of the value's class. A class's own are for its instances, and some values have
    attributes of any name."""
    if isinstance(value, type) or not hasattr(type(value), name):
        return None
    return getattr(value, name)


def flush():
    """Writes what was printed, as far as that is possible."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def display(*values):
    """Shows values as a cell's last expression is shown."""
    for value in values:
        flush()
        tell("display", data=representations(value))


def figures():
    """Shows the figures that were drawn by pyplot, and forgets them."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot else ():
        import io

        image = io.BytesIO()
        figure = pyplot.figure(number)
        figure.savefig(image, format="png")
        pyplot.close(figure)
        tell("display", data={
            "image/png": base64.b64encode(image.getvalue()).decode(),
            "text/plain": repr(figure),
        })


def frames(trace):
    """What a traceback consists of, without what is this file's."""
    found = [frame for frame in traceback.extract_tb(trace) if frame.filename != __file__]
    return [
        {
            "file": frame.filename,
            "line": frame.lineno or 0,
            "function": frame.name,
            "text": (frame.line or "")[:1000],
        }
        for frame in found[-MAX_FRAMES:]
    ]


def report(error):
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    try:
        message = str(error)
    except Exception:
        message = ""
    try:
        told = traceback.TracebackException(type(error), error, trace)
        # An interrupt is raised in this file.
        theirs = [frame for frame in told.stack if frame.filename != __file__]
        told.stack = traceback.StackSummary.from_list(theirs)
        text = "".join(told.format())
    except Exception:
        text = f"{type(error).__name__}: {message}\n"
    tell(
        "error",
        name=type(error).__qualname__[:1000],
        message=message[:MAX_TRACEBACK],
        traceback=text[-MAX_TRACEBACK:],
        frames=frames(trace),
    )


def perform(number, code):
    name = f"<cell {number}>"
    source = code.decode("utf-8")
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    tree = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    space = main.__dict__
    if tree.body:
        exec(compile(tree, name, "exec", dont_inherit=True), space)
    if last is not None:
        value = eval(compile(last, name, "eval", dont_inherit=True), space)
        if value is not None:
            builtins._ = value
            data = representations(value)
            flush()
            tell("value", data=data)
    figures()


def cell(number, code):
    global running
    signal.signal(signal.SIGINT, interrupted)
    try:
        try:
            running = True
            perform(number, code)
        finally:
            # From here on nothing is interrupted.
            running = False
    except SystemExit:
        raise
    except BaseException as error:
        report(error)
    flush()


def interrupted(*_):
    if running:
        raise KeyboardInterrupt


def reseed():
    """Makes everything that is random different from what it is in any other clone."""
    loaded = sys.modules.get
    if random := loaded("random"):
        random.seed()
    if numpy := loaded("numpy.random"):
        numpy.seed()
    if uuid := loaded("uuid"):
        uuid._generate_time_safe = None
        uuid._node = int.from_bytes(os.urandom(6), "big") | 1 << 40
        uuid._last_timestamp = None
    if ssl := loaded("_ssl"):
        ssl.RAND_add(os.urandom(32), 32.0)
    for hook in hooks:
        try:
            hook()
        except Exception:
            traceback.print_exc()


def on_reseed(function):
    """Has `function` called in each clone, where it has to draw new random numbers."""
    hooks.append(function)
    return function


main = types.ModuleType("__main__")
main.__annotations__ = {}
main.__builtins__ = builtins
main.display = display
sys.modules["__main__"] = main
runner = types.ModuleType("ember_runner")
runner.on_reseed = on_reseed
sys.modules["ember_runner"] = runner
sys.argv = [""]
sys.path[0] = ""
# Nobody sees a window here.
os.environ.setdefault("MPLBACKEND", "Agg")
sys.stdout.reconfigure(line_buffering=True)
signal.signal(signal.SIGINT, interrupted)
gc.collect()
say("done 0")

while request := requests.readline():
    words = request.split()
    if words[0] == b"reseed":
        reseed()
    elif words[0] == b"run":
        cell(int(words[1]), requests.read(int(words[2])))
        say(f"done {int(words[1])}")
