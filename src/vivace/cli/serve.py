"""Answer requests over HTTP with BUNDLES: Open Inference Protocol v2, Hugging Face's clients, POST /predict.

Ends with 0 after SIGTERM or Ctrl-C, once what was taken is answered. SIGHUP opens the bundles anew, once they are open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vivace.cli.answers import print_json
from vivace.cli.options import verb_options
from vivace.cli.predict import Paths
from vivace.errors import ConfigError

if TYPE_CHECKING:
    from vivace.serving.app import Application

BUNDLES = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="BUNDLES",
    instance_from_str=Paths,
    is_instance=lambda value: isinstance(value, Paths),
    str_from_instance=list,
)
# options that what --print writes can't have: it says itself where to listen and where the token is
UNPRINTED = {
    "host": "it listens beyond the container, the unit on 127.0.0.1",
    "token": "the token is a secret or credential there",
}
# those that go into it as they are
PASSED = ("allow_host", "threads", "max_batch", "max_wait", "queue", "max_body", "drain", "log")
# parameters of the settings that have another name here
PARAMETERS = {"max_body_bytes": "--max-body", "drain_seconds": "--drain"}


@verb_options
class Options:
    """The options of `vivace serve`."""

    bundles: Annotated[
        tyro.conf.Positional[Paths], BUNDLES, tyro.conf.arg(metavar="BUNDLES", help_behavior_hint="(required)")
    ]
    """Folders of bundles or runs, or NAME=FOLDER; the first answers where a request names none."""
    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a token."""
    port: int = 8000
    """0: one that is free."""
    grpc_port: int | None = None
    """Port of Open Inference Protocol v2 over gRPC (extra `grpc`). Default: it is not spoken. 0: one that is free."""
    token: Path | None = None
    """A file with the token that clients are to send. Default: $VIVACE_SERVE_TOKEN."""
    allow_host: str | None = None
    """Further names of this server, separated by commas, that requests may have as their Host."""
    threads: int | None = None
    """Processors to use. Default: all."""
    max_batch: int | None = None
    """Images per forward pass at most. Default: by a trial of 2 s, after the first answer."""
    max_wait: str | None = None
    """How long an image waits for others, such as 2ms. Default: by the trial."""
    queue: int = 256
    """Images of a bundle that wait at most; more are refused with 503."""
    max_body: int = 32
    """MiB of a request at most."""
    drain: float = 1.0
    """Seconds in which requests are still taken after SIGTERM."""
    log: Literal["problems", "requests", "nothing"] = "problems"
    """Requests that get a line on stderr, as JSON: those refused or failed, all, or none."""
    print_: Annotated[
        Literal["docker", "k8s", "kserve", "systemd"] | None, tyro.conf.arg(name="print", help_behavior_hint="")
    ] = None
    """Print a file that runs the server elsewhere, with the other options that are given, and end: a Dockerfile,
    manifests of Kubernetes or KServe, a unit."""
    json: bool = False
    """Print the address as one JSON object once requests are taken."""


def run(options: Options) -> int:
    """Serve until a signal comes."""
    from vivace.serving.collecting import collecting_later

    with collecting_later() as ready:
        return _run(options, ready)


def _run(options: Options, collect: Callable[[], None]) -> int:
    """collect: called once requests are taken."""
    from vivace.predictor import check_whole
    from vivace.serving.bundles import named
    from vivace.serving.server import serve
    from vivace.serving.settings import Settings, read_token

    if options.print_ is not None:
        check_unused(options)
    check_whole("max_body", options.max_body)
    if options.threads is not None:
        check_whole("threads", options.threads)
    settings = Settings(
        host=options.host,
        # what is printed has ports and a token of its own, which are looked at there
        port=options.port if options.print_ is None else 0,
        grpc_port=options.grpc_port if options.print_ is None else None,
        token=read_token(options.token) if options.print_ is None else None,
        allow_hosts=tuple(name.strip() for name in (options.allow_host or "").split(",") if name.strip()),
        max_batch=options.max_batch,
        max_wait_ms=milliseconds(options.max_wait),
        queue=options.queue,
        max_body_bytes=options.max_body << 20,
        drain_seconds=options.drain,
        log=options.log,
    )
    if options.print_ is not None:
        return print_file(options)
    folders = named(list(options.bundles))

    def ready(url: str, application: Application) -> None:
        collect()
        if options.json:
            told = {"bundles": [served.describe() for served in application.bundles.all]}
            print_json("serve", {"url": url, "grpc": application.grpc_address, **told})
        else:
            beside = f" (gRPC: {application.grpc_address})" if application.grpc_address else ""
            print(f"{url}{beside} answers with {', '.join(application.bundles.names)}", flush=True)

    serve(folders, settings, threads=options.threads, ready=ready)
    return 0


def print_file(options: Options) -> int:
    """Print what --print asks for, for the first bundle."""
    from vivace.bundle import load_bundle
    from vivace.runtimes.table import PORTABLE
    from vivace.serving.bundles import named
    from vivace.serving.deploying.files import printed

    assert options.print_ is not None
    if len(options.bundles) > 1:
        raise ConfigError(f"--print is for one bundle: got {len(options.bundles)}. Add the others to what it prints.")
    name, runtime = "bundle", PORTABLE
    if options.bundles:
        ((name, folder),) = named(list(options.bundles)).items()
        runtime = load_bundle(folder).info.runtime
    given = _given(options)
    text = printed(
        options.print_,
        name,
        runtime,
        port=options.port if "port" in given else None,
        grpc_port=options.grpc_port,
        options={f"--{one.replace('_', '-')}": _written(given[one]) for one in PASSED if one in given},
    )
    if options.json:
        print_json("serve", {"url": None, "grpc": None, "bundles": [], "file": text})
    else:
        print(text, end="")
    return 0


def check_unused(options: Options) -> None:
    """Raises ConfigError for an option that what --print writes would not have."""
    given = _given(options)
    for name, why in UNPRINTED.items():
        if name in given:
            raise ConfigError(
                f"--{name} would be ignored: got {given[name]} and --print, and {why}. Leave it out, and write another "
                "into what is printed."
            )


def _written(value: Any) -> str:
    """A value as it stands on a command line, without spaces."""
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def _given(options: Options) -> dict[str, Any]:
    """The options that are not as they are by default."""
    pairs = ((field, getattr(options, field.name)) for field in dataclasses.fields(options))
    return {field.name: value for field, value in pairs if value != field.default}


def milliseconds(text: str | None) -> float | None:
    """Of "2ms", "2" or "0.002s". Raises ConfigError for anything else."""
    if text is None:
        return None
    number, factor = (
        (text[:-2], 1.0) if text.endswith("ms") else (text[:-1], 1000.0) if text.endswith("s") else (text, 1.0)
    )
    try:
        return float(number) * factor
    except ValueError:
        raise ConfigError(f"`max_wait` is no time: got {text[:40]!r}. Give one such as 2ms.") from None
