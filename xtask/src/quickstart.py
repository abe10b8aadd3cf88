"""The longer program of `cargo xtask quickstart`: a little of everything a program does."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile


def primes(limit):
    sieve = bytearray([1]) * limit
    sieve[:2] = b"\0\0"
    for number in range(2, int(limit**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(len(sieve[number * number :: number]))
    return [number for number in range(limit) if sieve[number]]


found = primes(200_000)
with tempfile.NamedTemporaryFile("w+") as file:
    json.dump(found, file)
    file.flush()
    size = os.path.getsize(file.name)
    digest = hashlib.sha256(open(file.name, "rb").read()).hexdigest()

shell = subprocess.run(["uname", "-sr"], capture_output=True, text=True, check=True)

print(f"Python {platform.python_version()} on {shell.stdout.strip()}, {os.cpu_count()} CPU")
print(f"{len(found)} primes below 200000, the largest {found[-1]}")
print(f"as JSON {size} bytes, SHA-256 {digest[:16]}…")
print(f"process {os.getpid()}, user {os.getuid()}", file=sys.stderr)
assert len(found) == 17984
