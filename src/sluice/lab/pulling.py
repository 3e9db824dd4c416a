"""A pull made on a node: the program that ``Laboratory.pull`` runs there, where the kubelet would be.

It has to run inside, because the kubelet's plugins read files under the names that they have there. Prints one object
as JSON: ``image`` or ``error``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sluice.errors import SluiceError
from sluice.lab.cri import pull
from sluice.lab.kubelet import pull_as_kubelet


def main() -> None:
    """Arguments: containerd's socket, the image, the kubelet's configuration for plugins, their directory."""
    socket, image, config, plugins = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    try:
        found = pull_as_kubelet(socket, image, config, plugins) if config.exists() else pull(socket, image)
        outcome = {"image": found}
    except SluiceError as error:
        outcome = {"error": error.message}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
