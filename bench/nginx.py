"""nginx as the benchmark needs it: one frame of a configuration, for serving files and for passing requests on."""

from __future__ import annotations

import os
from pathlib import Path

from bench.process import Process
from bench.tls import Identity

_FRAME = """{user}
worker_processes 2;
daemon off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {directory}/access.log;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  {http}
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {identity.certificate};
    ssl_certificate_key {identity.key};
    ssl_protocols TLSv1.2 TLSv1.3;
    {server}
  }}
}}
"""


def run_nginx(directory: Path, identity: Identity, port: int, http: str, server: str) -> Process:
    """Start it in ``directory``, which exists. ``http`` and ``server`` are directives for those two blocks."""
    user = "user root;" if os.geteuid() == 0 else ""  # its workers must reach the benchmark's directory
    configuration = directory / "nginx.conf"
    configuration.write_text(
        _FRAME.format(user=user, directory=directory, port=port, identity=identity, http=http, server=server)
    )
    return Process(["nginx", "-e", str(directory / "error.log"), "-c", str(configuration)], directory / "log")
