"""Writes shards for tests."""

import io
import os
import tarfile


def write_shard(path, members):
    """Writes a tar of {name: bytes or text}, in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            data = data if isinstance(data, bytes) else os.fsencode(data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(keys, ending="cls", label=lambda key: key[0]):
    """Returns the members of samples: an image whose contents are its key, and a label."""
    members = {}
    for key in keys:
        members[f"{key}.jpg"] = key
        members[f"{key}.{ending}"] = label(key)
    return members
