"""The port where the ranks of a job meet, and a trial whether they can: seconds, where torch would wait for hours.

python slurm/meet.py port [PORT]    print a port that is free on this node
python slurm/meet.py meet           a task a node: the first listens at MASTER_ADDR:MASTER_PORT, all others call

Plain Python 3, run by slurm/ranks.sh.
"""

from __future__ import annotations

import os
import random
import socket
import sys
import time

PORTS = range(20000, 32768)
"""Below those that the system gives away by itself."""

PATIENCE_S = float(os.environ.get("HEADSPARK_MEET_S", "60"))


class Missed(Exception):
    """The nodes cannot meet; one line says why."""


def free_port(given: str) -> int:
    """A port that nobody listens at.

    Args:
        given: The one that the user wants; empty: any.
    """
    if given:
        if not given.isdecimal() or not 0 < int(given) < 65536:
            raise Missed(f"MASTER_PORT={given}: no port; leave it out, or give a number below 65536")
        if not _is_free(int(given)):
            raise Missed(f"MASTER_PORT={given}: taken on {socket.gethostname()}; leave it out, and a free one is found")
        return int(given)
    for port in random.sample(PORTS, 100):
        if _is_free(port):
            return port
    raise Missed(f"{socket.gethostname()}: no free port of a hundred between {PORTS.start} and {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
    return True


def meet(rank: int, nodes: int, address: str, port: int, name: str) -> None:
    """Listen on the first node, call it from the others."""
    deadline = time.monotonic() + PATIENCE_S
    if rank == 0:
        _listen(nodes - 1, port, deadline, name)
    else:
        _call(address, port, deadline, name)


def _listen(callers: int, port: int, deadline: float, name: str) -> None:
    with socket.create_server(("", port), backlog=callers) as server:
        for left in range(callers, 0, -1):
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                caller, _ = server.accept()
            except TimeoutError:
                raise Missed(f"{name}: {left} of {callers} nodes did not call at port {port}") from None
            with caller:
                caller.settimeout(PATIENCE_S)
                caller.sendall(b"!")
                caller.recv(1)  # the caller hangs up first, which leaves the port free


def _call(address: str, port: int, deadline: float, name: str) -> None:
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection((address, port), timeout=max(left, 0.01)) as connection:
                if connection.recv(1) == b"!":
                    return
                raise OSError("somebody else answers")
        except OSError as error:
            if left <= 0:
                raise Missed(
                    f"{name}: cannot reach the first node at {address}:{port} ({error}); the nodes' firewall must let "
                    "ports through between them, or MASTER_PORT must be one that it does"
                ) from error
        time.sleep(0.2)


def main(words: list[str]) -> int:
    """Run a command; a fault is one line."""
    environment = os.environ
    name = environment.get("SLURMD_NODENAME", socket.gethostname())
    try:
        if words[0] == "port":
            sys.stdout.write(f"{free_port(words[1])}\n")
        else:
            nodes, port = int(environment["SLURM_NTASKS"]), int(environment["MASTER_PORT"])
            meet(int(environment["SLURM_PROCID"]), nodes, environment["MASTER_ADDR"], port, name)
    except Missed as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
