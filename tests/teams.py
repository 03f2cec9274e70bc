"""What a team shares, on loopback: PostgreSQL, an S3 server, and MLflow's server as docs/compose.yaml starts it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from tests.checkout import ROOT

PASSWORD = "secret"
PROGRAMS = Path(shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), "/missing")).resolve().parent
HAS_POSTGRES = (PROGRAMS / "postgres").exists()
COMPOSE = yaml.safe_load((ROOT / "docs/compose.yaml").read_text())["services"]


@dataclass(frozen=True)
class Services:
    """The addresses. `variables`: what each machine of the team sets."""

    database: str
    s3: str
    mlflow: str

    @property
    def variables(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": self.mlflow, "MLFLOW_HTTP_REQUEST_TIMEOUT": "120", **s3_variables(self.s3)}


def s3_variables(address: str) -> dict[str, str]:
    settings = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": PASSWORD, "DEFAULT_REGION": "us-east-1"}
    return {f"AWS_{name}": value for name, value in settings.items()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def running(command, port, log, stop=signal.SIGTERM, **options):
    """A server during the block, from the moment at which it listens."""
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **options)
        try:
            for _ in range(1200):
                assert server.poll() is None, log.read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield server
        finally:
            os.killpg(server.pid, stop)
            server.wait(60)


@contextmanager
def postgres(log):
    """PostgreSQL with an empty database `mlflow`, and its address. It refuses to run as root, so that a folder of nobody is needed."""
    user = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder:
        data, password, port = Path(folder, "data"), Path(folder, "password"), free_port()
        password.write_text(PASSWORD)
        if user:
            for path in (Path(folder), password):
                shutil.chown(path, *user.values())
        initdb = [
            PROGRAMS / "initdb",
            "-D",
            data,
            "-U",
            "mlflow",
            f"--pwfile={password}",
            "--auth=scram-sha-256",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **user)
        command = [PROGRAMS / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", ""]
        with running(command, port, log, signal.SIGINT, cwd="/", **user):
            address = f"postgresql+psycopg://mlflow:{PASSWORD}@127.0.0.1:{port}/"
            make_database(address + "postgres")
            yield address + "mlflow"


def make_database(address):
    """Create the database `mlflow`; PostgreSQL listens before it answers."""
    import psycopg

    for attempt in range(100):
        try:
            with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
                connection.execute("create database mlflow")
            return
        except psycopg.OperationalError:
            assert attempt < 99
            time.sleep(0.1)


@contextmanager
def mlflow_server(database, s3, log):
    """MLflow's server, by the command of the compose file, on the database and the store, and its address."""
    port = free_port()
    script = COMPOSE["mlflow"]["command"][2].replace("--host 0.0.0.0 --port 5000", f"--host 127.0.0.1 --port {port}")
    assert str(port) in script
    declared = {name: str(value) for name, value in COMPOSE["mlflow"]["environment"].items() if not re.search(r"http:|\$", str(value))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        **declared,
        **s3_variables(s3),
        "PATH": path,
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_S3_ENDPOINT_URL": s3,
    }
    with running(["/bin/sh", "-euc", script], port, log, env=environment, cwd=log.parent):
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, ConnectionError):
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def shared_services(folder):
    """All three."""
    with ExitStack() as stack:
        database = stack.enter_context(postgres(folder / "postgres.log"))
        port = free_port()
        stack.enter_context(running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port, folder / "s3.log"))
        s3 = f"http://127.0.0.1:{port}"
        yield Services(database, s3, stack.enter_context(mlflow_server(database, s3, folder / "mlflow.log")))
