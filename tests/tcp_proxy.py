"""A TCP proxy that fails on request: it breaks, refuses or holds connections, or loses a response."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Connect = Callable[[], socket.socket]


class Proxy:
    """Listens on a free port and forwards each connection; ``proxy`` creates one."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self._loses_response = False
        self._refuses = False
        self.lost = threading.Event()
        """Set when a response was lost."""
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection."""
        pairs, self._open = self._open, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Break every connection, and every new one at once."""
        self._refuses = True
        self.cut()

    def hold(self) -> None:
        """Forward nothing, as a cable that was pulled out: connections stay open."""
        self._flowing.clear()

    def recover(self) -> None:
        """Forward everything again."""
        self._refuses = False
        self._flowing.set()

    def lose_next_response(self) -> None:
        """Forward the next request, and break the connection at its response."""
        self.lost.clear()
        self._loses_response = True

    def close(self) -> None:
        """Accept no more connections, and break all."""
        self._listener.close()
        self._flowing.set()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                client.close()
                continue
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            self._open.append((client, server))
            threading.Thread(target=self._forward, args=[client, server]).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            responses = threading.Thread(target=self._flow, args=[server, client], kwargs={"is_response": True})
            responses.start()
            self._flow(client, server)
            responses.join()

    def _flow(self, source: socket.socket, target: socket.socket, *, is_response: bool = False) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._flowing.wait()
                if is_response and self._loses_response:
                    self._loses_response = False
                    self.lost.set()
                    break
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(connect: Connect) -> Iterator[Proxy]:
    """A proxy for as long as the context lasts."""
    made = Proxy(connect)
    try:
        yield made
    finally:
        made.close()
