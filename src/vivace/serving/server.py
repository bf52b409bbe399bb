"""The server: an address, the application behind it, and signals.

SIGTERM    not ready; answers what was sent for `drain_seconds`, then what was taken, and ends
SIGINT     the same without waiting for more
SIGHUP     opens the bundles anew
a second SIGTERM or SIGINT ends at once

While the server starts, SIGTERM and SIGINT end it, and SIGHUP is remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from vivace import systems
from vivace.errors import ConfigError
from vivace.serving.app import Application, check_libraries
from vivace.serving.settings import Settings
from vivace.serving.starting import Hangups, Stopped, hangups_remembered, stops_raised
from vivace.serving.web.logs import Log, libraries_logged
from vivace.signals import Handler, handled

__all__ = ["bound_socket", "serve"]

BACKLOG = 1024
# between two looks at whether to end at once
LOOK_SECONDS = 0.1


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at that address, which takes no connection yet. Raises ConfigError if it can't be had."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found = socket.socket(family, kind)
    except OSError as error:
        raise ConfigError(
            f"host is no address of this machine: got {host!r} ({error.strerror}). Try 127.0.0.1."
        ) from None
    try:
        if sys.platform != "win32":
            # else a server that ends leaves its port taken for a minute
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise ConfigError(
            f"the address can't be listened on: {host} port {port} ({error.strerror}). Give another `port`, or 0 for a "
            "free one."
        ) from None
    return found


def serve(
    folders: Mapping[str, Path],
    settings: Settings,
    *,
    threads: int | None = None,
    ready: Callable[[str, Application], None] = lambda url, application: None,
) -> None:
    """Serve bundles until a signal ends it. ready: called with the URL once it takes requests.

    folders: name → folder. Raises what `Settings`, `bound_socket` and opening a bundle raise.
    """
    check_libraries()
    if settings.grpc_port is not None:
        from vivace.serving.rpc.listening import check_grpc

        check_grpc()
    log = Log(settings.log)
    with contextlib.closing(bound_socket(settings.host, settings.port)) as listening, hangups_remembered() as hangups:
        try:
            with stops_raised(), libraries_logged(log):
                application = Application(folders, settings, threads=threads, log=log)
                host, port = listening.getsockname()[:2]
                url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                    runner.run(_serve(application, listening, lambda: ready(url, application), hangups))
        except Stopped as stopped:
            log.event("stopped", signal=signal.Signals(stopped.number).name, while_starting=True)
        finally:
            log.flush()


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        # there is none for Windows
        return None
    return uvloop.new_event_loop


async def _serve(
    application: Application, listening: socket.socket, ready: Callable[[], None], hangups: Hangups
) -> None:
    import uvicorn

    from vivace.serving.web.connections import connection_class, sweep

    settings, log = application.settings, application.log
    protocol, last = connection_class(settings, application.meters, log), listening.dup()

    class Server(uvicorn.Server):
        """uvicorn's, without its signal handlers: they would end by the signal and not by a status."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: Any = None) -> None:
            # the system resets the connections that a closed socket has not handed over yet: these are taken first
            waiting = _waiting(self.servers, last)
            loop = asyncio.get_running_loop()
            for found in waiting:
                await loop.connect_accepted_socket(
                    lambda: protocol(config=config, server_state=self.server_state, app_state={}, _loop=loop), found
                )
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # nothing depends on where a client is
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=int(settings.answer_seconds) + 5,
    )
    server = Server(config)
    sweeping = asyncio.create_task(sweep(server.server_state.connections))
    with _signals(application, server, hangups):
        async with _rpc_server(application) as application.grpc_address:
            await server.serve(sockets=[listening])
        sweeping.cancel()
        await _stopped(application)
    log.event("stopped")


async def _stopped(application: Application) -> None:
    """Answer what was taken and end the threads; given up once a second signal comes."""
    stopping = asyncio.ensure_future(application.stop())
    while not stopping.done() and not application.stops_at_once:
        await asyncio.wait([stopping], timeout=LOOK_SECONDS)
    if stopping.done():
        stopping.result()


def _rpc_server(application: Application) -> contextlib.AbstractAsyncContextManager[str | None]:
    if application.settings.grpc_port is None:
        # the first answer does not wait for what is not asked for
        return contextlib.nullcontext()
    from vivace.serving.rpc.listening import rpc_server

    return rpc_server(application)


def _waiting(servers: list[Any], listening: socket.socket) -> list[socket.socket]:
    """The connections that no server has accepted yet; from then on nobody listens."""
    for server in servers:
        server.close()
    listening.setblocking(False)
    found = []
    with contextlib.closing(listening), contextlib.suppress(OSError):
        while True:
            found.append(listening.accept()[0])
    return found


@contextlib.contextmanager
def _signals(application: Application, server: Any, hangups: Hangups) -> Iterator[None]:
    loop, log, tasks = asyncio.get_running_loop(), application.log, set[Any]()

    def stop(number: int) -> None:
        if application.draining:
            log.event("stopping_at_once", level="warning", signal=signal.Signals(number).name)
            server.should_exit = server.force_exit = application.stops_at_once = True
            return
        # whoever presses Ctrl-C waits for it
        wait = application.settings.drain_seconds if number == signal.SIGTERM else 0.0
        log.event("stopping", signal=signal.Signals(number).name, drain_seconds=wait)
        application.begin_to_stop()
        loop.call_later(wait, lambda: setattr(server, "should_exit", True))

    def reload() -> None:
        log.event("reloading")
        task = loop.create_task(application.reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def handing_over(handler: Callable[[], None]) -> Handler:
        # not the loop's own handlers, which Windows lacks
        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(handler)

        return handle

    stops = (signal.SIGINT, signal.SIGTERM)
    handlers: dict[int, Handler] = {number: handing_over(functools.partial(stop, number)) for number in stops}
    if systems.HANGUP is not None:
        handlers[systems.HANGUP] = handing_over(reload)
    # in another thread than the main one a program has its own way to stop it
    with handled(handlers, even_ignored=True):
        if hangups.came:
            reload()
        yield
