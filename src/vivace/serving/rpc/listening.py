"""The gRPC server: its address, its bounds, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from vivace.errors import ConfigError, MissingExtra
from vivace.serving.rpc.service import handlers

if TYPE_CHECKING:
    from vivace.serving.app import Application

__all__ = ["check_grpc", "rpc_server"]

# of a call's metadata, and of its connection where nothing happens
MAX_METADATA_BYTES, IDLE_MS = 32 << 10, 300_000
# between two looks at whether to end at once
LOOK_SECONDS = 0.1
# bit 0: as it is. A compressed message could unpack to far more than what is bounded
UNCOMPRESSED = 1


def check_grpc() -> None:
    """Raises MissingExtra unless grpcio and protobuf are installed."""
    # read when it is imported: else its library in C writes lines of its own on stderr, as many as clients cause
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for library, module in (("grpcio", "grpc"), ("protobuf", "google.protobuf")):
        try:
            __import__(module)
        except ImportError:
            raise MissingExtra(library, "grpc", "serving over gRPC") from None


@contextlib.asynccontextmanager
async def rpc_server(application: Application) -> AsyncIterator[str | None]:
    """HOST:PORT of a gRPC server for an application's bundles, while the block runs; None: none is asked for.

    At the end no new call is taken, and those that were are answered. Raises ConfigError if the address can't be had.
    """
    settings = application.settings
    if settings.grpc_port is None:
        yield None
        return
    check_grpc()
    import grpc

    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        # a client that is gone without a word is noticed
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.compression_enabled_algorithms_bitset", UNCOMPRESSED),
        # else a second server on the same port would take half of the calls
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.queue)
    server.add_generic_rpc_handlers((handlers(application),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError:
        port = 0
    if not port:
        raise ConfigError(
            f"the address can't be listened on: {settings.host} port {settings.grpc_port}. Give another `grpc_port`, "
            "or 0 for a free one."
        )
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        # calls that are under way may take as long as an answer may
        stopping = asyncio.ensure_future(server.stop(settings.answer_seconds))
        while not stopping.done():
            await asyncio.wait([stopping], timeout=LOOK_SECONDS)
            if application.stops_at_once:
                await server.stop(None)
