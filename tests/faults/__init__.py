"""Suites that hurt a running server: kill it, fill its disk, starve it, damage its files, defect its durability."""
