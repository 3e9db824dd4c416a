"""``python -m bench.discard PORT PATH SIZE COUNT CERTIFICATE``: COUNT downloads at once, for next to nothing.

On two cores a client that decrypts and copies takes about as much as the server, and the row would show the client.
This one does the TLS handshake and decrypts up to the end of the response head; after that it has the kernel throw
the ciphertext away (``MSG_TRUNC``, tcp(7)) in large steps (``SO_RCVLOWAT``). It asks the server to close, so that the
end of the stream is the end of the body, and checks that the ciphertext is as long as the body must make it. What is
*in* the body is checked elsewhere, by a download that decrypts and hashes.

One JSON line: seconds from the first connect to the last byte, and the client's own CPU seconds.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from bench.tls import CIPHER, client_context
from bench.wire import HEAD_BYTES_MAX, BenchError

STALL_TIMEOUT_S = 120
_STEP_BYTES = 1024 * 1024
_LOW_WATER_BYTES = 512 * 1024
# TLS 1.3 adds 22 bytes to a record of up to 16 KiB; servers start with records of about 1,400 bytes.
_CIPHERTEXT_RATIO_MAX = 1.02
_HEAD_ROOM_BYTES = 64 * 1024


class _Client:
    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        # A timeout in Python makes the socket non-blocking, and SO_RCVLOWAT then needs a poll per read.
        stall = STALL_TIMEOUT_S.to_bytes(8, sys.byteorder) + bytes(8)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, stall)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._ciphertext_bytes = 0

    def download(self, path: str, size: int) -> None:
        self._handshake()
        self._tls.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        self._flush()
        self._ciphertext_bytes = 0
        _check_head(self._head(), size)
        self._discard()
        self._socket.close()
        least, most = size, int(size * _CIPHERTEXT_RATIO_MAX) + _HEAD_ROOM_BYTES
        if not least <= self._ciphertext_bytes <= most:
            raise BenchError(f"{self._ciphertext_bytes} bytes of ciphertext for {size} bytes of content")

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
        cipher = self._tls.cipher()
        if cipher is None or cipher[0] != CIPHER:
            raise BenchError(f"negotiated {cipher}, expected {CIPHER}: is OPENSSL_CONF set?")

    def _head(self) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
            try:
                head += self._tls.read(_HEAD_ROOM_BYTES)
            except ssl.SSLWantReadError:
                self._fill()
        return head

    def _discard(self) -> None:
        nowhere = bytearray(_STEP_BYTES)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _LOW_WATER_BYTES)
        while gone := self._socket.recv_into(nowhere, _STEP_BYTES, socket.MSG_TRUNC):
            self._ciphertext_bytes += gone

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._socket.sendall(data)

    def _fill(self) -> None:
        data = self._socket.recv(16 * 1024)
        if not data:
            raise BenchError("the server ended the connection before the response began")
        self._ciphertext_bytes += len(data)
        self._incoming.write(data)


def _check_head(head: bytes, size: int) -> None:
    text = head.split(b"\r\n\r\n")[0].decode("latin-1").lower()
    if " 200 " not in text.split("\r\n")[0] + " " or f"content-length: {size}" not in text:
        raise BenchError(f"expected 200 with {size} bytes, got {head[:300]!r}")


def _main(port: int, path: str, size: int, count: int, certificate: str) -> None:
    context = client_context(certificate)
    with ThreadPoolExecutor(count) as pool:
        before_s = time.process_time()
        started = time.perf_counter()
        jobs = [pool.submit(lambda: _Client(context, port).download(path, size)) for _ in range(count)]
        for job in jobs:
            job.result()
        elapsed_s = time.perf_counter() - started
    print(json.dumps({"elapsed_s": elapsed_s, "cpu_s": time.process_time() - before_s}))


if __name__ == "__main__":
    try:
        _main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    except (BenchError, OSError, ssl.SSLError) as error:
        print(f"discard: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # the other downloads need not end first
