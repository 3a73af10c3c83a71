"""Pipes as a shell makes them."""

import os
import threading
from contextlib import contextmanager, suppress


@contextmanager
def piped(content: bytes, pieces: int = 1):
    """Give the name of a pipe that holds `content`, as a shell's <(…) does; the first bytes may come one by one."""
    reading, writing = os.pipe()

    def fill() -> None:
        with suppress(BrokenPipeError), os.fdopen(writing, "wb", buffering=0) as file:
            for place in range(pieces - 1):
                file.write(content[place : place + 1])
            file.write(content[pieces - 1 :])

    writer = threading.Thread(target=fill)
    writer.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        writer.join()
