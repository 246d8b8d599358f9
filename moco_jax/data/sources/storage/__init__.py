"""Files on disks and in buckets behind one interface: size, version, reads by offset."""
