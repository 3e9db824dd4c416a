"""The configuration: one schema from which the file, the flags, the environment and the manual page are made.

Every leaf of ``RegistryConfig`` has one dotted key (``limits.manifest_bytes``): a place in the YAML file, a flag
(``--limits-manifest-bytes``) and an environment variable (``SLUICE_LIMITS_MANIFEST_BYTES``). ``values`` reads single
values, ``schema`` says which there are, ``load`` merges what was given over the defaults.
"""

from sluice.config.doors import DoorConfig
from sluice.config.load import CONFIG_VARIABLE, ConfigSource, load_config
from sluice.config.remote import DOCKER_HUB, DOCKER_HUB_HOST, CacheConfig, UpstreamConfig, place_of
from sluice.config.schema import (
    LEAVES,
    AccessConfig,
    GcConfig,
    Leaf,
    LimitsConfig,
    LogConfig,
    RegistryConfig,
    StorageConfig,
    TlsConfig,
)
from sluice.config.values import is_loopback, split_address

__all__ = [
    "CONFIG_VARIABLE",
    "DOCKER_HUB",
    "DOCKER_HUB_HOST",
    "LEAVES",
    "AccessConfig",
    "CacheConfig",
    "ConfigSource",
    "DoorConfig",
    "GcConfig",
    "Leaf",
    "LimitsConfig",
    "LogConfig",
    "RegistryConfig",
    "StorageConfig",
    "TlsConfig",
    "UpstreamConfig",
    "is_loopback",
    "load_config",
    "place_of",
    "split_address",
]
