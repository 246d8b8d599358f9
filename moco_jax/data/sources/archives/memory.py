"""The memory that this process may still use."""

import os
import pathlib
import re

_MEMINFO = pathlib.Path("/proc/meminfo")
# Limit and use of a container, of cgroups version 2 and 1.
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def available_bytes() -> int:
    """Returns the bytes of memory that are free on this machine or in this container."""
    free = [_machine()]
    for limit, used in _CGROUPS:
        try:
            free.append(int(pathlib.Path(limit).read_text()) - int(pathlib.Path(used).read_text()))
        except (OSError, ValueError):  # another version of cgroups, or the limit is 'max'
            continue
    return max(0, min(free))


def _machine() -> int:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
