"""``python -m airflow_mediation_provider.simulator``: a simulated Zuora Mediation on 127.0.0.1."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from airflow_mediation_provider.simulator.callout_config import CalloutConfig
from airflow_mediation_provider.simulator.config import SimulatorConfig
from airflow_mediation_provider.simulator.manual import MANUAL
from airflow_mediation_provider.simulator.server import SimulatorServer


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; its epilog is the simulator's manual."""
    made = argparse.ArgumentParser(
        prog="python -m airflow_mediation_provider.simulator",
        description="A simulator of Zuora Mediation that implements its documented API: for tests, demos and CI.",
        epilog=MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--host", help="address to listen on (default 127.0.0.1); it has no login")
    made.add_argument("--port", type=int, help="port to listen on; 0, the default, takes a free one")
    made.add_argument("--config", type=Path, metavar="FILE", help="settings and meters, YAML or JSON; see below")
    made.add_argument("--demo", action="store_true", help="use the built-in demo meters, not those of the file")
    made.add_argument("--time-scale", type=float, metavar="X", help="real seconds per second of a script (default 1)")
    made.add_argument("--token-life", type=float, metavar="SECONDS", help="life of an OAuth token (default 3599)")
    made.add_argument("--client-id", metavar="ID", help="OAuth client id (default simulator-client)")
    made.add_argument("--client-secret", metavar="SECRET", help="its secret (default simulator-secret)")
    made.add_argument("--max-running-meters", type=int, metavar="N", help="meters that may run at once (default 5)")
    made.add_argument("--rate-limit", type=int, metavar="N", help="calls a minute, with RateLimit headers (no limit)")
    made.add_argument("--callout-url", metavar="URL", help="send each change of a status there; see CALLOUTS")
    made.add_argument("--callout-secret", metavar="SECRET", help="sign those callouts with HMAC, SHA-256 and BASE64")
    made.add_argument("--callout-interval", type=float, metavar="SECONDS", help="from one attempt to the next (1800)")
    made.add_argument("--no-mediation", action="store_true", help="a tenant without Mediation: 400 with 70002004")
    made.add_argument("--lenient", action="store_true", help="accept a missing Content-Type and any Zuora-Track-Id")
    made.add_argument("--log-file", type=Path, metavar="FILE", help="append the log to a file, one JSON object a line")
    return made


def configuration(arguments: argparse.Namespace) -> SimulatorConfig:
    """Return the file's settings, overridden by the command line's.

    :raises OSError: the file cannot be read
    :raises ValueError: a setting is unknown or wrong
    """
    config = SimulatorConfig.load(arguments.config) if arguments.config else SimulatorConfig()
    names = [
        "host",
        "port",
        "time_scale",
        "token_life",
        "client_id",
        "client_secret",
        "max_running_meters",
        "rate_limit",
        "log_file",
    ]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.demo:
        given["meters"] = SimulatorConfig().meters
    if arguments.callout_url:
        given["callouts"] = (CalloutConfig(url=arguments.callout_url, hmac_secret=arguments.callout_secret),)
    if arguments.callout_interval is not None:
        given["delivery"] = replace(config.delivery, interval=arguments.callout_interval)
    if arguments.no_mediation:
        given["mediation_enabled"] = False
    if arguments.lenient:
        given |= {"require_content_type": False, "strict_track_id": False}
    return replace(config, **given)


async def serve(config: SimulatorConfig) -> None:
    """Serve until SIGTERM or SIGINT; prints one JSON line once it listens.

    :raises OSError: the address cannot be listened on
    """
    server = SimulatorServer(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"{config.host} lets its network control the simulator without a login", file=sys.stderr)
    await server.start()
    try:
        ready = {"event": "ready", "url": server.url, "pid": os.getpid(), "client_id": config.client_id}
        print(json.dumps({**ready, "meters": [meter.id for meter in config.meters]}), flush=True)
        await stopped.wait()
    finally:
        await server.stop()


def main(argv: list[str] | None = None) -> int:
    """Run the simulator; the exit code is 0 after a signal, 1 when it cannot listen, 2 for wrong settings."""
    made = parser()
    try:
        config = configuration(made.parse_args(argv))
    except (OSError, ValueError) as error:
        made.error(str(error))
    try:
        asyncio.run(serve(config))
    except OSError as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
