"""How much memory this process may still take: asked before tokens of whole data sets are kept."""

import resource
from pathlib import Path

from oct_foundation.runtime.child_watch import cgroup_folders, cgroup_limit

_MEMINFO = Path("/proc/meminfo")


def free_bytes(meminfo: Path = _MEMINFO) -> int | None:
    """What the machine has available, or less where a cgroup allows less; None where the system does not say."""
    if not meminfo.is_file():
        return None
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(rows["MemAvailable"].split()[0]) * 1024
    limit = cgroup_limit(cgroup_folders())
    if limit is None:
        return available
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kB on Linux, the only system with cgroups
    return min(available, max(limit - peak, 0))
