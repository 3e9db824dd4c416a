"""From the configuration to the settings of the parts: for the server, and for commands that work without one."""

from __future__ import annotations

from sluice.cache.space import SpaceSettings
from sluice.config import RegistryConfig
from sluice.store.settings import StoreSettings


def store_settings(config: RegistryConfig) -> StoreSettings:
    """The part of the configuration that the store works by."""
    return StoreSettings(
        reserve_bytes=config.storage.reserve_bytes,
        uploads_max=config.limits.uploads,
        upload_age_s=config.limits.upload_age_s,
        sparse_indexes=config.storage.sparse_indexes,
        history_per_tag=config.storage.history_per_tag,
        unlink_delay_s=config.gc.unlink_delay_s,
        grace_s=config.gc.grace_s,
        write_bytes_per_s=config.storage.write_bytes_per_s,
        pace_pushes=config.storage.pace_pushes,
    )


def space_settings(config: RegistryConfig) -> SpaceSettings:
    """The part of the configuration that bounds a cache."""
    return SpaceSettings(max_bytes=config.cache.max_bytes, ttl_s=config.cache.ttl_s)
