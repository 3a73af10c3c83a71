"""The service on a socket: where it may listen, and how it ends."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.serve.app import create_app
from headrank_pipeline.serve.batcher import Batcher, Limits

__all__ = ["KEY_VARIABLE", "bound_socket", "read_key", "serve"]

KEY_VARIABLE = "HEADRANK_API_KEY"

_log = logging.getLogger(__name__)

# Clients keep idle connections for seconds (httpx: 5); who hangs up first while the other sends loses a request.
_KEEP_ALIVE = 75
_GRACE = 5  # seconds beyond the time-out, for replies to be sent


def read_key() -> str | None:
    """Return the key that requests must bear, from the environment; None where there is none.

    Raises:
        ValueError: an empty key, or one that a header cannot carry.
    """
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and (not key.isascii() or key.split() != [key]):
        raise ValueError(f"{KEY_VARIABLE}: expected ASCII characters without white space; unset it to ask for no key")
    return key


def bound_socket(host: str, port: int, *, key: str | None, insecure: bool = False) -> socket.socket:
    """Return a socket that is bound and does not listen yet, so that a port in use is told before a model is loaded.

    Args:
        host: an address or a name of this machine.
        port: 0 takes a free one.
        key: what `read_key` returns.
        insecure: allow addresses that others reach without a key.

    Raises:
        ValueError: others could reach it and there is no key, or no such address.
        OSError: the port is in use, or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ValueError(f"host {host!r}: {error.strerror}; name an address of this machine") from error
    if key is None and not insecure and not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback:
        raise ValueError(
            f"host {host!r}: other machines could use the model without a key; set {KEY_VARIABLE}, or say --insecure"
        )
    bound = socket.socket(family, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"{host}:{port}: {error.strerror}; choose another --port") from error
    return bound


def serve(
    open_reranker: Callable[[], Reranker],
    bound: socket.socket,
    *,
    model: str,
    system: str,
    key: str | None,
    limits: Limits,
) -> None:
    """Load the reranker and answer requests until SIGTERM or SIGINT, after which those that were taken are finished.

    Args:
        open_reranker: loads it, in the thread that will own it.
        bound: what `bound_socket` returns.
        model: the name by which clients ask for it.
        system: its method.
        key: what requests must bear.
        limits: how much is taken.

    The process ends here, with status 0.

    Raises:
        RuntimeError: the server did not start.
    """
    batcher = Batcher(open_reranker, limits)
    app = create_app(batcher, model=model, system=system, key=key)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(limits.timeout) + _GRACE,
    )
    host, port = bound.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    guarded = "a key is needed" if key else f"no key is needed ({KEY_VARIABLE} sets one)"
    bound.listen()  # who reads the next line may connect at once, before uvicorn does this itself
    _log.info("%s with %s at %s, its page at %s/docs; %s", system, model, where, where, guarded)
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, _end)  # uvicorn raises the signal again when it is done
    server = uvicorn.Server(config)
    server.run(sockets=[bound])
    if not server.started:
        raise RuntimeError("the server did not start; the log says why")


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: the interpreter's own end would wait for a call that is still under way, however long it takes."""
    _log.info("ended")
    logging.shutdown()
    os._exit(0)
