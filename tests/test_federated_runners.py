"""Federated runs by Ray, and by a deployment of Flower: machines that talk over sockets."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("flwr")

import federated_cmd
from tests.test_federated_cmd import ENVIRONMENT, SMALL, rows_of


def on_ray(*flags):
    """federated_cmd.py in a process of its own, which Ray wants."""
    return subprocess.Popen(
        [sys.executable, ROOT / "federated_cmd.py", *SMALL, *map(str, flags), "--runner", "ray"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT,
    )  # fmt: skip


def test_on_ray_as_in_one_process(tmp_path):
    flags = ["--rounds", "4", "--methods", "cmd", "topk", "--results_dir"]
    assert federated_cmd.main([*SMALL, *flags, str(tmp_path / "inproc")]) == 0
    process = on_ray(*flags, tmp_path / "ray")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert rows_of(tmp_path / "ray") == rows_of(tmp_path / "inproc") != []


def test_interrupted_on_ray_it_ends(tmp_path):
    """Ray has a handler of SIGTERM of its own, and a server would keep Python from ending."""
    process = on_ray("--rounds", "30", "--methods", "fedavg", "--results_dir", tmp_path)
    for line in process.stdout:
        if "FedAvg, round  2" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error.splitlines()[-1].startswith("federated_cmd.py: interrupted")


class Proxy(socketserver.ThreadingTCPServer):
    """The middle man of TCP connections to a port, who counts their bytes."""

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Middle)
        self.to, self.crossed = port, {"up": 0, "down": 0}
        self.port = self.server_address[1]


class Middle(socketserver.BaseRequestHandler):
    def handle(self):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.server.to)) as far,
        ):
            back = threading.Thread(target=self.pump, args=(far, self.request, "down"))
            back.start()
            self.pump(self.request, far, "up")
            back.join()

    def pump(self, source, target, way):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.server.crossed[way] += len(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_deployment_on_loopback_and_the_bytes_on_its_sockets(tmp_path):
    """SuperLink, two SuperNodes and `flwr run`, as in the README."""
    programs, port = Path(sys.executable).parent, free_port()
    proxy = Proxy(port)
    accepting = threading.Thread(target=proxy.serve_forever)
    accepting.start()
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
        "insecure = true\n"
    )
    environment = ENVIRONMENT | {
        "FLWR_HOME": str(tmp_path),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    running, log = [], (tmp_path / "log").open("w")

    def start(*words):
        running.append(
            subprocess.Popen(
                [str(word) for word in words], env=environment, stdout=log, stderr=log,
                cwd=tmp_path,
            )
        )  # fmt: skip

    flags = "--model lenet --dataset digits --limit 100 --rounds 2 --clients 2 --methods fedavg"
    try:
        start(programs / "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", port)
        for _ in range(60):  # until the SuperLink listens
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        for part in range(2):
            start(
                programs / "flower-supernode", "--insecure", "--superlink",
                f"127.0.0.1:{proxy.port}", "--port", free_port(), "--node-config",
                f"partition-id={part} num-partitions=2",
            )  # fmt: skip
        done = subprocess.run(
            [programs / "flwr", "run", ROOT, "here", "--stream", "--run-config",
             f'arguments="{flags} --results_dir {tmp_path}"'],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)
        proxy.shutdown()
        accepting.join()
        proxy.server_close()
        log.close()
    path = tmp_path / "federated/lenet_iid/rounds.csv"
    assert path.exists(), done.stdout + done.stderr + (tmp_path / "log").read_text()[-3000:]
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    assert len(rows) == 2
    for way, crossed in proxy.crossed.items():
        counted = sum(int(row[header.index(f"{way}_wire")]) for row in rows)
        # the app itself, sent once to each SuperNode, is some 15 % of what comes down
        assert counted == pytest.approx(crossed, rel=0.2)
